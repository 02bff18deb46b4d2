"""Soft regions: from a word's similarity to every pixel to weights of the pixels it names."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.similarity import product

_LEAST = 0.01  # of the attention that suppression lets pass, before the plain one fills it up


class WordRegions(NamedTuple):
  """Regions of the words of J reports in I images of P pixels.

  Words come before pixels, so that products with either side are plain matrix products of rows in
  memory order.

  Attributes:
    similarity: of the word with each pixel.
    weight: the soft region.
    evidence: the sum of weight times similarity, a soft maximum of the similarity.
  """

  similarity: Float[Array, "J W I P"]
  weight: Float[Array, "J W I P"]
  evidence: Float[Array, "J W I"]


def word_regions(
  pixels: Float[Array, "I P D"], words: Float[Array, "J W D"], tau: float, gamma: float, dtype: str
) -> WordRegions:
  """Computes the regions of all words in all images.

  Pixels are of unit norm; words are, or are zero for padding. `tau` and `gamma` are as in
  `soft_region`, `dtype` as in `similarity.product`.
  """
  similarity = product("jwd,ipd->jwip", dtype, words, pixels)
  weight = soft_region(similarity, tau, gamma)
  return WordRegions(similarity, weight, (weight * similarity).sum(-1))


def soft_region(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Attends softly at temperature `tau`, less `gamma` uniform shares: pixels below lose all (ours).

  Weights are >= 0 and sum to one over the pixels. Where less than a hundredth of the attention
  passes, the plain one fills it up to that: a word that fits all pixels alike keeps the plain
  attention, and the gradient stays bounded.
  """
  weight = jax.nn.softmax(similarity / tau, axis=-1)
  if not gamma:
    return weight
  kept = jax.nn.relu(weight - gamma / similarity.shape[-1])
  total = kept.sum(-1, keepdims=True)
  return (kept + jax.nn.relu(_LEAST - total) * weight) / jnp.maximum(total, _LEAST)


def square_side(pixels: int, need: str) -> int:
  """Returns the side of a square grid of so many pixels.

  Raises ValueError where it is none, which `need` begins ("sides need").
  """
  side = math.isqrt(pixels)
  if side * side != pixels:
    raise ValueError(f"{need} a square grid, not {pixels} pixels")
  return side
