"""Regions that spread along the image, between pixels that look alike and lie close.

A contrast lights what tells images apart, a part of a finding; its extent is in the image. What
looks alike is told by the image encoder's own features, not by those that the contrast has learned.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.regions import square_side
from plan_jax.alignment.similarity import l2_normalize


@dataclass(frozen=True)
class Diffusion:
  """Diffusion over the pixels of a square grid.

  Attributes:
    steps: number of them; 0: regions stay as they are.
    tau: temperature of the cosine of two pixels' features, each less the image's mean.
    radius_fraction: standard deviation of a step's reach, a share of the image's side.
  """

  steps: int
  tau: float
  radius_fraction: float


def spread(
  weight: Float[Array, "W P"], features: Float[Array, "P C"], diffusion: Diffusion
) -> Float[Array, "W P"]:
  """Spreads regions; the sum of each stays.

  In a step each pixel p takes the mean of the weights of all pixels q, by exp(cos(F_p, F_q) / tau -
  |p - q|^2 / (2 radius^2)), F being features less their mean over the image (ours: a bilateral
  filter by features, Tomasi and Manduchi 1998). Raises ValueError where P is no square number.
  """
  if not diffusion.steps:
    return weight
  size = square_side(features.shape[0], "diffusion needs")
  x = features.astype(jnp.float32)
  x = l2_normalize(x - x.mean(0))
  line = jnp.arange(size) / size
  place = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
  distance = jnp.square(place[:, None] - place).sum(-1)
  distance /= 2 * diffusion.radius_fraction**2
  step = jax.nn.softmax(x @ x.T / diffusion.tau - distance, axis=-1)
  spread_out = jax.lax.fori_loop(0, diffusion.steps, lambda _, w: w @ step.T, weight)
  total = spread_out.sum(-1, keepdims=True)
  return spread_out * weight.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)
