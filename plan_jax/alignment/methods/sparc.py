"""Method `sparc`: words against min-max regions of their own report (Bica et al. 2024)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.losses import words_info_nce
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, Method, WordAttention
from plan_jax.alignment.pairwise import Keys
from plan_jax.alignment.similarity import l2_normalize


def minmax(similarity: Float[Array, "*n P"]) -> Float[Array, "*n P"]:
  """Scales to [0, 1], cuts pixels below 1 / P, and scales to sum to one.

  Equal similarities, where the formula divides by zero, give equal weights.
  """
  low = similarity.min(-1, keepdims=True)
  spread = similarity.max(-1, keepdims=True) - low
  scaled = (similarity - low) / jnp.where(spread > 0, spread, 1)
  scaled = jnp.where(spread > 0, scaled, 1.0)
  kept = jnp.where(scaled >= 1 / similarity.shape[-1], scaled, 0)
  return kept / kept.sum(-1, keepdims=True)


def _attention(pixels, words):
  return minmax(jnp.einsum("...wd,...pd->...wp", words, pixels))


def loss(
  x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes (loss, accuracy) of the words against the regions of one report."""
  attended = jnp.einsum("bwp,bpd->bwd", _attention(x.pixels, x.words), x.pixels)
  weight = x.mask / jnp.maximum(x.mask.sum(-1, keepdims=True), 1)
  regions, words = l2_normalize(attended), l2_normalize(x.words)
  return words_info_nce(regions, words, weight, x.mask, x.local_scale)


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns min-max regions, and the dot products of words and pixels."""
  return WordAttention(_attention(image.pixels, text.words), text.words @ image.pixels.T)


METHOD = Method(loss, attend)
