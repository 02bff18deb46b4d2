"""Diffusion along the image, between pixels that look alike and lie close: of features, of regions.

A contrast lights what tells images apart, a part of a finding; its extent is in the image. What
looks alike is told by the image encoder's own features, not by those that the contrast has learned;
they may be of an earlier stage, whose grid is finer.

In a step each pixel p takes the mean of what all pixels q have, by exp(cos(F_p, F_q) / tau - |p -
q|^2 / (2 radius^2)), F being features less their mean over the image (ours: a bilateral filter by
features, Tomasi and Manduchi 1998).
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

  Where the features' grid is finer, whose first
  pixel lies on that of the regions, regions are interpolated first (bilinear). Raises ValueError
  where P or Q is no square number.
  """
  size = square_side(features.shape[0], "diffusion needs")
  spread_out = _enlarge(weight, size)
  step = _step(features, diffusion)
  spread_out = jax.lax.fori_loop(0, diffusion.steps, lambda _, w: w @ step.T, spread_out)
  total = spread_out.sum(-1, keepdims=True)
  return spread_out * weight.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)


def smooth(
  pixels: Float[Array, "P D"], features: Float[Array, "Q C"], diffusion: Diffusion
) -> Float[Array, "P D"]:
  """Averages pixels over what looks alike.

  Where the features' grid is finer, whose first pixel lies on that of the pixels, each pixel has
  the mean of the features round it, by the weights with which regions would be interpolated. Raises
  ValueError where P or Q is no square number.
  """
  size = square_side(pixels.shape[0], "diffusion needs")
  step = _step(_reduce(features.astype(jnp.float32), size), diffusion)
  return jax.lax.fori_loop(0, diffusion.steps, lambda _, x: step @ x, pixels)


def _step(features: Float[Array, "Q C"], diffusion: Diffusion) -> Float[Array, "Q Q"]:
  """Computes the weights of a step; each row sums to one."""
  size = square_side(features.shape[0], "diffusion needs")
  x = features.astype(jnp.float32)
  x = l2_normalize(x - x.mean(0))
  line = jnp.arange(size) / size
  place = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
  distance = jnp.square(place[:, None] - place).sum(-1)
  distance /= 2 * diffusion.radius_fraction**2
  cosine = jnp.matmul(x, x.T, precision="highest")  # which a small tau enlarges
  return jax.nn.softmax(cosine / diffusion.tau - distance, axis=-1)


def _enlarge(weight: Float[Array, "W P"], size: int) -> Float[Array, "W Q"]:
  """Interpolates regions on a grid of `size` x `size`, the first pixels of both on each other."""
  coarse = square_side(weight.shape[1], "diffusion needs")
  if coarse == size:
    return weight
  tent = _tent(coarse, size)
  return jnp.einsum("yi,wij,xj->wyx", tent, weight.reshape(-1, coarse, coarse), tent).reshape(
    len(weight), -1
  )


def _reduce(features: Float[Array, "Q C"], size: int) -> Float[Array, "P C"]:
  """Averages features on a grid of `size` x `size`, by the weights of `_enlarge`."""
  fine = square_side(features.shape[0], "diffusion needs")
  if fine == size:
    return features
  tent = _tent(size, fine)
  tent /= tent.sum(0)
  return jnp.einsum("yi,yxc,xj->ijc", tent, features.reshape(fine, fine, -1), tent).reshape(
    size**2, -1
  )


def _tent(coarse: int, fine: int) -> Float[Array, "fine coarse"]:
  """Weights with which a line of `coarse` pixels is interpolated on `fine`."""
  place = jnp.minimum(jnp.arange(fine) * coarse / fine, coarse - 1)
  return jax.nn.relu(1 - jnp.abs(place[:, None] - jnp.arange(coarse)))
