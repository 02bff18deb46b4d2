"""Method `gloria`: contrast of all pairs by GLoRIA's scores (Huang et al. 2021)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.losses import info_nce
from plan_jax.alignment.methods import base
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, WordAttention
from plan_jax.alignment.pairwise import Keys, PairFeatures, tile_bytes
from plan_jax.alignment.similarity import TINY, product


@dataclass(frozen=True)
class GloriaScore:
  """Logits of pairs, GLoRIA's temperatures included.

  S = 10 log sum_w exp(5 cos(t_w, c_w)) with c_w the attended sum of the pixels: a sum over words,
  so that longer reports score higher, as published. 0 for a report without words.

  Attributes:
    dtype: as of `similarity.product`.
    scale: before the logarithm, fixed.
  """

  dtype: str = "float32"
  scale: ClassVar[float] = 10.0

  def cosines(
    self, pixels: Float[Array, "I P D"], words: Float[Array, "J W D"], mask: Bool[Array, "J W"]
  ) -> Float[Array, "I J W"]:
    """Computes cos(t_w, c_w), for pixels and words of any norm."""
    similarity = product("jwd,ipd->jwip", self.dtype, words, pixels)
    # Padding takes no part in the words' competition; finite, for a report may be empty.
    competing = jnp.where(mask[..., None, None], similarity, -1e9)
    attention = jax.nn.softmax(4 * jax.nn.softmax(competing, axis=1), axis=-1)
    region = product("jwip,ipd->jwid", self.dtype, attention, pixels)
    words = words.astype(region.dtype)[:, :, None]
    norms = (jnp.sqrt(jnp.square(x).sum(-1) + TINY) for x in (region, words))
    return jnp.moveaxis((words * region).sum(-1) / math.prod(norms), -1, 0)

  def logits(
    self,
    pixels: Float[Array, "I P D"],
    words: Float[Array, "J W D"],
    word_weights: Float[Array, "J W"],
    scale: ScalarLike,
  ) -> tuple[Float[Array, "I J"], Float[Array, "I J 0"]]:
    """Computes the logits of pairs; weights are > 0 for words, `scale` is not used."""
    mask = word_weights > 0
    cosine = self.cosines(pixels, words, mask)
    any_word = mask.any(-1)
    counted = jnp.where(mask | ~any_word[:, None], 5 * cosine, -jnp.inf)
    score = jnp.where(any_word, self.scale * jax.nn.logsumexp(counted, axis=-1), 0)
    return score, score[..., None][..., :0]

  def tile_bytes(self, *shape: int) -> int:
    """Bounds from above what the gradient of `logits` holds at once, for I, J, P, W, D."""
    return tile_bytes(8, 6, *shape)  # by XLA's count


def pair_score(alignment: Alignment, stage: Stage) -> GloriaScore:
  """Returns the score, the same in every stage."""
  return GloriaScore(alignment.dtype)


def loss(
  x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes (loss, accuracy) of the contrast of pairs."""
  features = PairFeatures(x.pixels, x.words, x.mask.astype(jnp.float32), jnp.float32(1))
  terms = base.contrast_pairs(pair_score(alignment, stage), alignment, features, keys)
  return info_nce(terms, keys.valid)


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns dot products of words and pixels, the positive ones as weights."""
  return base.positive_regions(text.words @ image.pixels.T)


METHOD = base.Method(loss, attend, pair_score)
