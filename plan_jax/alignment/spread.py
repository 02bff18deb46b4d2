"""Regions that spread along the image, between pixels that look alike and lie close.

A contrast lights what tells images apart, a part of a finding; its extent is in the image. What
looks alike is told by the image encoder's own features, not by those that the contrast has learned;
they may be of an earlier stage, whose grid is finer.
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
    steps: number of them.
    tau: temperature of the cosine of two pixels' features, each less the image's mean.
    radius_fraction: standard deviation of a step's reach, a share of the image's side.
  """

  steps: int
  tau: float
  radius_fraction: float


def spread(
  weight: Float[Array, "W P"], features: Float[Array, "Q C"], diffusion: Diffusion
) -> Float[Array, "W Q"]:
  """Spreads regions over the grid of the features; the sum of each stays.

  In a step each pixel p takes the mean of the weights of all pixels q, by exp(cos(F_p, F_q) / tau -
  |p - q|^2 / (2 radius^2)), F being features less their mean over the image (ours: a bilateral
  filter by features, Tomasi and Manduchi 1998). Where the features' grid is finer, whose first
  pixel lies on that of the regions, regions are interpolated first (bilinear). Raises ValueError
  where P or Q is no square number.
  """
  size = square_side(features.shape[0], "diffusion needs")
  spread_out = _enlarge(weight, size)
  x = features.astype(jnp.float32)
  x = l2_normalize(x - x.mean(0))
  line = jnp.arange(size) / size
  place = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
  distance = jnp.square(place[:, None] - place).sum(-1)
  distance /= 2 * diffusion.radius_fraction**2
  step = jax.nn.softmax(x @ x.T / diffusion.tau - distance, axis=-1)
  spread_out = jax.lax.fori_loop(0, diffusion.steps, lambda _, w: w @ step.T, spread_out)
  total = spread_out.sum(-1, keepdims=True)
  return spread_out * weight.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)


def _enlarge(weight: Float[Array, "W P"], size: int) -> Float[Array, "W Q"]:
  """Interpolates regions on a grid of `size` x `size`, the first pixels of both on each other."""
  coarse = square_side(weight.shape[1], "diffusion needs")
  if coarse == size:
    return weight
  place = jnp.minimum(jnp.arange(size) * coarse / size, coarse - 1)
  tent = jax.nn.relu(1 - jnp.abs(place[:, None] - jnp.arange(coarse)))
  return jnp.einsum("yi,wij,xj->wyx", tent, weight.reshape(-1, coarse, coarse), tent).reshape(
    len(weight), -1
  )
