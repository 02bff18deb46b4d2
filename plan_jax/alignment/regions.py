"""Soft regions: from a word's similarity to every pixel to weights of the pixels it names.

All functions take similarities and give weights that are >= 0 and sum to one over the pixels;
`SPARSIFIERS` names them for `config.alignment.sparsifier` ("threshold" by default), and
`refinement.refine` applies the one chosen in every round.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TOP_SHARE = 1 / 16
_LEAST = 0.01  # of the attention that suppression lets pass, before the plain one fills it up


def softmax(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Attends softly at temperature `tau`; `gamma` is not used."""
  return jax.nn.softmax(similarity / tau, axis=-1)


def threshold(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Subtracts `gamma` uniform shares from soft attention: pixels below lose all weight (ours).

  Where less than a hundredth of the attention passes, the plain one fills it up to that: a word
  that fits all pixels alike keeps the plain attention, and the gradient stays bounded.
  """
  weight = jax.nn.softmax(similarity / tau, axis=-1)
  if not gamma:
    return weight
  kept = jax.nn.relu(weight - gamma / similarity.shape[-1])
  total = kept.sum(-1, keepdims=True)
  return (kept + jax.nn.relu(_LEAST - total) * weight) / jnp.maximum(total, _LEAST)


def minmax(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Scales to [0, 1] and cuts pixels below 1 / P (SPARC, Bica et al. 2024).

  `tau` and `gamma` are not used. Equal similarities, where the formula divides by zero, give equal
  weights.
  """
  low = similarity.min(-1, keepdims=True)
  spread = similarity.max(-1, keepdims=True) - low
  scaled = (similarity - low) / jnp.where(spread > 0, spread, 1)
  scaled = jnp.where(spread > 0, scaled, 1.0)
  kept = jnp.where(scaled >= 1 / similarity.shape[-1], scaled, 0)
  return kept / kept.sum(-1, keepdims=True)


def square_side(pixels: int, need: str) -> int:
  """Returns the side of a square grid of so many pixels.

  Raises ValueError where it is none, which `need` begins ("boxes need").
  """
  side = math.isqrt(pixels)
  if side * side != pixels:
    raise ValueError(f"{need} a square grid, not {pixels} pixels")
  return side


@jax.custom_vjp
def _entmax15(x: jax.Array) -> jax.Array:
  x = (x - x.max(-1, keepdims=True)) / 2
  ordered = -jnp.sort(-x, axis=-1)
  count = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
  mean = jnp.cumsum(ordered, -1) / count
  square = jnp.cumsum(ordered**2, -1) / count
  # Root of sum((x - t)^2) = 1 over the `count` largest entries.
  root = mean - jnp.sqrt(jnp.maximum((1 - count * (square - mean**2)) / count, 0))
  support = (root <= ordered).sum(-1, keepdims=True)
  cut = jnp.take_along_axis(root, support - 1, axis=-1)
  return jnp.maximum(x - cut, 0) ** 2


def _entmax15_forward(x):
  y = _entmax15(x)
  return y, y


def _entmax15_backward(y, gradient):
  root = jnp.sqrt(y)
  product = gradient * root
  return (product - root * product.sum(-1, keepdims=True) / root.sum(-1, keepdims=True),)


_entmax15.defvjp(_entmax15_forward, _entmax15_backward)


def entmax15(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Applies 1.5-entmax at temperature `tau` (Peters et al. 2019, exact by sorting).

  `gamma` is not used.
  """
  return _entmax15(similarity / tau)


def topk(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Gives equal weights to the best `TOP_SHARE` of the pixels; `tau`, `gamma` are not used.

  Pixels that tie for the last place, to rounding, all belong.
  """
  count = math.ceil(TOP_SHARE * similarity.shape[-1])
  least = jax.lax.top_k(similarity, count)[0][..., -1:]
  # The compiler may compute the two sides apart, with other roundings; none must go empty.
  rounding = 4 * jnp.finfo(similarity.dtype).eps * jnp.abs(least)
  return _equal_weights(similarity >= least - rounding, similarity.dtype)


def box(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Gives equal weights to the smallest box round the foreground of a square grid (ours).

  Foreground are the pixels with at least half of the highest soft attention at temperature `tau`;
  `gamma` is not used. Raises ValueError where P is no square number.
  """
  side = square_side(similarity.shape[-1], "boxes need")
  highest = similarity.max(-1, keepdims=True)
  foreground = similarity >= highest - tau * math.log(2)
  foreground = foreground.reshape(*similarity.shape[:-1], side, side)

  def span(line):
    """Marks all from the first to the last true entry of [..., side]."""
    begun = jnp.cumsum(line, -1) > 0
    remaining = jnp.cumsum(line[..., ::-1], -1)[..., ::-1] > 0
    return begun & remaining

  rows, columns = span(foreground.any(-1)), span(foreground.any(-2))
  inside = (rows[..., :, None] & columns[..., None, :]).reshape(similarity.shape)
  return _equal_weights(inside, similarity.dtype)


def _equal_weights(region: jax.Array, dtype) -> jax.Array:
  weight = region.astype(dtype)
  return weight / weight.sum(-1, keepdims=True)


SPARSIFIERS = {f.__name__: f for f in (softmax, threshold, minmax, entmax15, topk, box)}
