"""Regions that grow along the image: a random walk between pixels that look alike and lie close.

A contrast lights what tells images apart, a part of a finding; its extent is in the image. The walk
rests on the image encoder's own features, not on those that the contrast has learned.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.similarity import l2_normalize


@dataclass(frozen=True)
class Walk:
  """Random walk over the pixels of a square grid.

  Attributes:
    steps: number of them; 0: regions stay as they are.
    tau: temperature of the cosine of two pixels' features, each less the image's mean.
    radius_fraction: standard deviation of a step, a share of the image's side.
  """

  steps: int
  tau: float
  radius_fraction: float


def spread(
  weight: Float[Array, "W P"], features: Float[Array, "P C"], walk: Walk
) -> Float[Array, "W P"]:
  """Moves the weight of regions for some steps of a walk; the sum of each stays.

  A step goes from pixel p to q with a probability in proportion to exp(cos(F_p, F_q) / tau -
  |p - q|^2 / (2 radius^2)), F being features less their mean over the image (ours). Raises
  ValueError where P is no square number.
  """
  if not walk.steps:
    return weight
  size = math.isqrt(features.shape[0])
  if size * size != features.shape[0]:
    raise ValueError(f"a walk needs a square grid, not {features.shape[0]} pixels")
  x = features.astype(jnp.float32)
  x = l2_normalize(x - x.mean(0))
  line = jnp.arange(size) / size
  place = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
  distance = jnp.square(place[:, None] - place).sum(-1)
  step = jax.nn.softmax(x @ x.T / walk.tau - distance / (2 * walk.radius_fraction**2), axis=-1)
  return jax.lax.fori_loop(0, walk.steps, lambda _, w: w @ step, weight)
