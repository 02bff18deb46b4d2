"""How well a report's words find themselves in an image: the local score of a pair.

`evidence` of the words, round by round, and `pool_words` are ours; `gloria_scores` is the baseline
of that name.

Shapes: I images of P pixels, J reports of W words, D channels. Everything after the first product
lives in pixel space: the region embedding c = norm(sum_p a V_p) is never formed, for with s = T V',
weights a and the Gram matrix G = V V'

  |sum_p a V_p|^2 = a' G a    <c, V_p> = (G a)_p / |sum_p a V_p|    <T, c> = a' s / |sum_p a V_p|

and the next query q = norm((1 - eta) T + eta c) enters only through its products with pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plan_jax.alignment.regions import SPARSIFIERS

EVIDENCE = ("soft_maximum", "cosine")
_TINY = 1e-12


@dataclass(frozen=True)
class Rounds:
  """Refinement rounds.

  Attributes:
    tau: temperature of the region, one a round, falling.
    gamma: suppressed uniform shares, one a round, rising.
    eta: how far the next query moves from the word to its region, 0 to 1.
    sparsifier: a name of regions.SPARSIFIERS.
    evidence: what speaks for a word, "soft_maximum" or "cosine"; see `WordRegions`.
  """

  tau: tuple[float, ...]
  gamma: tuple[float, ...]
  eta: float
  sparsifier: str
  evidence: str = "soft_maximum"


class WordRegions(NamedTuple):
  """What the words of report j see in image i in one round.

  Attributes:
    similarity: [I, J, W, P], of the round's query with each pixel.
    weight: [I, J, W, P], the soft region.
    evidence: [I, J, W], the sum of weight times similarity (a soft maximum of the similarity), or
      the cosine of the query with the region: the same over the region's length.
  """

  similarity: jax.Array
  weight: jax.Array
  evidence: jax.Array


def word_regions(pixels: jax.Array, words: jax.Array, rounds: Rounds) -> list[WordRegions]:
  """All rounds of all words in all images.

  Args:
    pixels: [I, P, D], unit norm.
    words: [J, W, D], unit norm, or zero for padding.
    rounds: the settings.
  """
  sparsify = SPARSIFIERS[rounds.sparsifier]
  # Products of bfloat16 inputs accumulate and stay in float32.
  precise = jnp.promote_types(pixels.dtype, jnp.float32)
  first = similarity = jnp.einsum("ipd,jwd->ijwp", pixels, words, preferred_element_type=precise)
  gram = jnp.einsum("ipd,iqd->ipq", pixels, pixels, preferred_element_type=precise)

  def reach(weight):
    """The region's products with the pixels [I, J, W, P], and its length [I, J, W, 1]."""
    projected = jnp.einsum("ijwp,ipq->ijwq", weight, gram)
    return projected, jnp.sqrt((weight * projected).sum(-1, keepdims=True) + _TINY)

  found: list[WordRegions] = []
  for tau, gamma in zip(rounds.tau, rounds.gamma, strict=True):
    if found:
      weight = found[-1].weight
      projected, length = reach(weight)
      towards = (weight * first).sum(-1, keepdims=True) / length
      keep, move = 1 - rounds.eta, rounds.eta
      norm = jnp.sqrt(keep**2 + move**2 + 2 * keep * move * towards + _TINY)
      similarity = (keep * first + move * projected / length) / norm
    weight = sparsify(similarity, tau, gamma)
    evidence = (weight * similarity).sum(-1)
    if rounds.evidence == "cosine":
      evidence = evidence / reach(weight)[1][..., 0]
    found.append(WordRegions(similarity, weight, evidence))
  return found


def pool_words(evidence: jax.Array, significance: jax.Array, beta: float) -> jax.Array:
  """Local score: (1 / beta) (log sum_w r exp(beta e) - log sum_w r), no length bias.

  Args:
    evidence: [..., W].
    significance: broadcastable to it, >= 0; zero excludes a word. Without any word the score is 0.
    beta: sharpness; large comes near to the highest evidence.
  """
  log_r = jnp.where(
    significance > 0, jnp.log(jnp.where(significance > 0, significance, 1)), -jnp.inf
  )
  some = (significance > 0).any(-1)
  log_r = jnp.where(some[..., None], log_r, 0)
  score = jax.nn.logsumexp(log_r + beta * evidence, axis=-1) - jax.nn.logsumexp(log_r, axis=-1)
  return jnp.where(some, score / beta, 0)


def evidence(pixels: jax.Array, words: jax.Array, rounds: Rounds) -> jax.Array:
  """[K, I, J, W] float32: what speaks for each word in each image, round by round.

  Args:
    pixels: [I, P, D], unit norm.
    words: [J, W, D], unit norm, or zero for padding.
    rounds: K rounds.
  """
  return jnp.stack([found.evidence for found in word_regions(pixels, words, rounds)])


def gloria_scores(pixels: jax.Array, words: jax.Array, mask: jax.Array) -> jax.Array:
  """[1, I, J] float32 local scores of GLoRIA (Huang et al. 2021), its temperatures included.

  S = 10 log sum_w exp(5 cos(t_w, c_w)) with c_w the attended sum of the pixels: a sum over words,
  so that longer reports score higher, as published. 0 for a report without words.

  Args:
    pixels: [I, P, D], of any norm.
    words: [J, W, D], of any norm.
    mask: [J, W] bool; padding takes no part in the words' competition.
  """
  similarity, attention, gram = _gloria(pixels, words, mask)
  projected = jnp.einsum("ijwp,ipq->ijwq", attention, gram)
  length = jnp.sqrt((attention * projected).sum(-1) + _TINY)
  word = jnp.sqrt(jnp.square(words.astype(length.dtype)).sum(-1) + _TINY)
  cosine = (attention * similarity).sum(-1) / (length * word)
  some = mask.any(-1)
  counted = jnp.where(mask | ~some[:, None], 5 * cosine, -jnp.inf)
  score = 10 * jax.nn.logsumexp(counted, axis=-1)
  return jnp.where(some, score, 0)[None]


def _gloria(pixels, words, mask):
  precise = jnp.promote_types(pixels.dtype, jnp.float32)
  similarity = jnp.einsum("ipd,jwd->ijwp", pixels, words, preferred_element_type=precise)
  gram = jnp.einsum("ipd,iqd->ipq", pixels, pixels, preferred_element_type=precise)
  among = jnp.where(mask[None, :, :, None], similarity, -1e9)  # finite: a report may be empty
  return similarity, jax.nn.softmax(4 * jax.nn.softmax(among, axis=2), axis=-1), gram
