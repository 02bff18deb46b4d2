"""Method `mgca`: words against softmax regions of their own report (Wang et al. 2022).

This is the word side of MGCA's token alignment: words are weighted by the attention they get from
the text embedding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.losses import words_info_nce
from plan_jax.alignment.methods import base
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, WordAttention
from plan_jax.alignment.pairwise import Keys
from plan_jax.alignment.regions import soft_region
from plan_jax.alignment.similarity import l2_normalize

TAU = 0.1


def clipped_attention(
  attention: Float[Array, "B W"], mask: Bool[Array, "B W"]
) -> Float[Array, "B W"]:
  """Clips attention to its 10th and 90th percentile in the report, and scales it to sum to one.

  No gradient passes. Zero for padding.
  """
  known = jnp.where(mask | ~mask.any(-1, keepdims=True), attention, jnp.nan)
  low, high = jnp.nanquantile(known, jnp.array([0.1, 0.9]), axis=-1, keepdims=True)
  clipped = jnp.where(mask, jnp.clip(attention, low, high), 0)
  total = clipped.sum(-1, keepdims=True)
  return jax.lax.stop_gradient(clipped / jnp.where(total > 0, total, 1))


def loss(
  x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes (loss, accuracy) of the words against the regions of one report."""
  pixels, words = l2_normalize(x.pixels), l2_normalize(x.words)
  attention = soft_region(jnp.einsum("...wd,...pd->...wp", words, pixels), TAU)
  regions = l2_normalize(jnp.einsum("bwp,bpd->bwd", attention, pixels))
  weight = clipped_attention(x.attention, x.mask)
  return words_info_nce(regions, words, weight, x.mask, 1 / TAU)


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns cosines of words and pixels, the positive ones as weights."""
  return base.positive_regions(l2_normalize(text.words) @ l2_normalize(image.pixels).T)


METHOD = base.Method(loss, attend)
