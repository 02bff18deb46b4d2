"""Method `gloria`: contrast of all pairs by GLoRIA's scores (Huang et al. 2021)."""

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
from plan_jax.alignment.similarity import TINY, ImageKeys, prepare, product


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

  def prepare(self, pixels: Float[Array, "I P D"]) -> ImageKeys:
    """Computes what all words share of the images; pixels of any norm."""
    return prepare(pixels, gram=True, dtype=self.dtype)

  def cosines(
    self, prepared: ImageKeys, words: Float[Array, "J W D"], mask: Bool[Array, "J W"]
  ) -> Float[Array, "I J W"]:
    """Computes cos(t_w, c_w), for words of any norm."""
    similarity = product("jwd,ipd->jwip", self.dtype, words, prepared.pixels)
    # Padding takes no part in the words' competition; finite, for a report may be empty.
    competing = jnp.where(mask[..., None, None], similarity, -1e9)
    attention = jax.nn.softmax(4 * jax.nn.softmax(competing, axis=1), axis=-1)
    projected = product("jwip,ipq->jwiq", self.dtype, attention, prepared.gram)
    length = jnp.sqrt((attention * projected).sum(-1) + TINY)
    norm = jnp.sqrt(jnp.square(words.astype(length.dtype)).sum(-1) + TINY)
    return jnp.moveaxis((attention * similarity).sum(-1) / (length * norm[..., None]), -1, 0)

  def logits(
    self,
    prepared: ImageKeys,
    words: Float[Array, "J W D"],
    word_weights: Float[Array, "J W"],
    scale: ScalarLike,
  ) -> tuple[Float[Array, "1 I J"], Float[Array, "1 I J 0"]]:
    """Computes the logits of pairs; weights are > 0 for words, `scale` is not used."""
    mask = word_weights > 0
    cosine = self.cosines(prepared, words, mask)
    any_word = mask.any(-1)
    counted = jnp.where(mask | ~any_word[:, None], 5 * cosine, -jnp.inf)
    score = jnp.where(any_word, self.scale * jax.nn.logsumexp(counted, axis=-1), 0)[None]
    return score, score[..., None][..., :0]

  def tile_bytes(self, *shape: int) -> int:
    """Bounds from above what the gradient of `logits` holds at once, for I, J, P, W, D."""
    return tile_bytes(12, True, *shape)


def pair_score(alignment: Alignment, stage: Stage) -> GloriaScore:
  """Returns the score, the same in every stage."""
  return GloriaScore(alignment.dtype)


def losses(x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys) -> list:
  """Computes (loss, accuracy) of the contrast of pairs."""
  features = PairFeatures(x.pixels, x.words, x.mask.astype(jnp.float32), jnp.float32(1))
  terms = base.contrast_pairs(pair_score(alignment, stage), alignment, features, keys)
  return list(zip(*info_nce(terms, keys.valid), strict=True))


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns dot products of words and pixels, the positive ones as weights."""
  return base.positive_regions(text.words @ image.pixels.T)


METHOD = base.Method(losses, attend, pair_score)
