"""How well a report's words find themselves in an image: the local score, round by round (ours).

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

_TINY = 1e-12


@dataclass(frozen=True)
class Rounds:
  """Refinement rounds.

  Attributes:
    tau: temperature of the region, one a round, falling.
    gamma: suppressed uniform shares, one a round, rising.
    eta: how far the next query moves from the word to its region, 0 to 1.
    beta: sharpness of the pooling over words; large comes near to the maximum.
    sparsifier: a name of regions.SPARSIFIERS.
  """

  tau: tuple[float, ...]
  gamma: tuple[float, ...]
  eta: float
  beta: float
  sparsifier: str


class WordRegions(NamedTuple):
  """What the words of report j see in image i in one round.

  Attributes:
    similarity: [I, J, W, P], of the round's query with each pixel.
    weight: [I, J, W, P], the soft region.
    evidence: [I, J, W], sum of weight times similarity: a soft maximum of the similarity.
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
  found: list[WordRegions] = []
  for tau, gamma in zip(rounds.tau, rounds.gamma, strict=True):
    if found:
      weight = found[-1].weight
      projected = jnp.einsum("ijwp,ipq->ijwq", weight, gram)
      length = jnp.sqrt((weight * projected).sum(-1, keepdims=True) + _TINY)
      towards = (weight * first).sum(-1, keepdims=True) / length
      keep, move = 1 - rounds.eta, rounds.eta
      norm = jnp.sqrt(keep**2 + move**2 + 2 * keep * move * towards + _TINY)
      similarity = (keep * first + move * projected / length) / norm
    weight = sparsify(similarity, tau, gamma)
    found.append(WordRegions(similarity, weight, (weight * similarity).sum(-1)))
  return found


def pool_words(evidence: jax.Array, significance: jax.Array, beta: float) -> jax.Array:
  """Local score: (1 / beta) (log sum_w r exp(beta e) - log sum_w r), no length bias.

  Args:
    evidence: [..., W].
    significance: broadcastable to it, >= 0; zero excludes a word. Without any word the score is 0.
    beta: sharpness.
  """
  log_r = jnp.where(
    significance > 0, jnp.log(jnp.where(significance > 0, significance, 1)), -jnp.inf
  )
  some = (significance > 0).any(-1)
  log_r = jnp.where(some[..., None], log_r, 0)
  score = jax.nn.logsumexp(log_r + beta * evidence, axis=-1) - jax.nn.logsumexp(log_r, axis=-1)
  return jnp.where(some, score / beta, 0)


def plan_scores(
  pixels: jax.Array, words: jax.Array, significance: jax.Array, rounds: Rounds
) -> jax.Array:
  """Local scores of all pairs, [K, I, J] float32, one a round.

  Args:
    pixels: [I, P, D], unit norm.
    words: [J, W, D], unit norm.
    significance: [J, W], zero where there is no word.
    rounds: K rounds.
  """
  return jnp.stack(
    [
      pool_words(found.evidence, significance, rounds.beta)
      for found in word_regions(pixels, words, rounds)
    ]
  )
