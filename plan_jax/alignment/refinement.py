"""Soft regions of words, refined round by round in pixel space.

The region embedding c = norm(sum_p a V_p) is never formed, for with s = T V', weights a and the
Gram matrix G = V V'

  |sum_p a V_p|^2 = a' G a    <c, V_p> = (G a)_p / |sum_p a V_p|    <T, c> = a' s / |sum_p a V_p|

and the next query q = norm((1 - eta) T + eta c) enters only through its products with pixels.

Shapes: I images of P pixels, J reports of W words, D channels. Words come before pixels, so that
products with either side are plain matrix products of rows in memory order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.regions import SPARSIFIERS
from plan_jax.alignment.similarity import TINY, ImageKeys, product


@dataclass(frozen=True)
class Rounds:
  """Refinement rounds.

  Attributes:
    tau: temperature of the region, one a round, falling.
    gamma: suppressed uniform shares, one a round, rising.
    eta: how far the next query moves from the word to its region, 0 to 1.
    sparsifier: a name of regions.SPARSIFIERS.
    evidence: a name of similarity.EVIDENCE, see `WordRegions`.
    dtype: "float32", or "bfloat16": of the operands of products; they accumulate, and all else is
      computed, in float32.
  """

  tau: tuple[float, ...]
  gamma: tuple[float, ...]
  eta: float
  sparsifier: str
  evidence: str = "soft_maximum"
  dtype: str = "float32"

  @property
  def needs_gram(self) -> bool:
    """Need for the products of the pixels among themselves."""
    return len(self.tau) > 1 or self.evidence == "cosine"


class WordRegions(NamedTuple):
  """Regions of the words of report j in image i, after one round.

  Attributes:
    similarity: of the round's query with each pixel.
    weight: the soft region.
    evidence: the sum of weight times similarity (a soft maximum of the similarity), or the cosine
      of the query with the region: the same over the region's length.
  """

  similarity: Float[Array, "J W I P"]
  weight: Float[Array, "J W I P"]
  evidence: Float[Array, "J W I"]


def refine(keys: ImageKeys, words: Float[Array, "J W D"], rounds: Rounds) -> list[WordRegions]:
  """Computes the regions of all words in all images, one entry a round.

  Pixels are of unit norm, with their Gram matrix where `rounds.needs_gram`; words are of unit norm,
  or zero for padding.
  """
  sparsify = SPARSIFIERS[rounds.sparsifier]
  first = similarity = product("jwd,ipd->jwip", rounds.dtype, words, keys.pixels)

  def project(weight):
    """Returns the region's products with the pixels [J, W, I, P], and its length [J, W, I, 1]."""
    projected = product("jwip,ipq->jwiq", rounds.dtype, weight, keys.gram)
    return projected, jnp.sqrt((weight * projected).sum(-1, keepdims=True) + TINY)

  refined: list[WordRegions] = []
  for tau, gamma in zip(rounds.tau, rounds.gamma, strict=True):
    if refined:
      weight = refined[-1].weight
      projected, length = project(weight)
      towards = (weight * first).sum(-1, keepdims=True) / length
      keep, move = 1 - rounds.eta, rounds.eta
      norm = jnp.sqrt(keep**2 + move**2 + 2 * keep * move * towards + TINY)
      similarity = (keep * first + move * projected / length) / norm
    weight = sparsify(similarity, tau, gamma)
    evidence = (weight * similarity).sum(-1)
    if rounds.evidence == "cosine":
      evidence = evidence / project(weight)[1][..., 0]
    refined.append(WordRegions(similarity, weight, evidence))
  return refined
