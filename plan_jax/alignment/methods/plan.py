"""Method `plan`: contrast of all pairs by evidence from soft regions (after PLAN)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from plan_jax.alignment.curriculum import Stage, word_weights
from plan_jax.alignment.losses import info_nce, word_info_nce
from plan_jax.alignment.methods import base
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, WordAttention
from plan_jax.alignment.pairwise import Keys, PairFeatures, tile_bytes
from plan_jax.alignment.regions import soft_evidence, soft_region
from plan_jax.alignment.similarity import l2_normalize, pool_words, product
from plan_jax.alignment.spread import Diffusion, smooth, spread


@dataclass(frozen=True)
class PlanScore:
  """Logits of pairs: scale times the pooled evidence of the words.

  Attributes:
    tau: of the regions, see `soft_region`.
    beta: of `pool_words`.
    single: whether the words' own logits (scale times evidence) are wanted too.
    dtype: as of `similarity.product`.
  """

  tau: float
  beta: float
  single: bool
  dtype: str = "float32"

  def logits(
    self,
    pixels: Float[Array, "I P D"],
    words: Float[Array, "J W D"],
    word_weights: Float[Array, "J W"],
    scale: ScalarLike,
  ) -> tuple[Float[Array, "I J"], Float[Array, "I J U"]]:
    """Computes the logits of pairs and of single words, from unit norm; words may be zero."""
    # Words come before pixels: products with either side are of rows in memory order.
    similarity = product("jwd,ipd->jwip", self.dtype, words, pixels)
    evidence = jnp.moveaxis(soft_evidence(similarity, self.tau), -1, 0)
    single = scale * (evidence if self.single else evidence[..., :0])
    return scale * pool_words(evidence, word_weights, self.beta), single

  def tile_bytes(self, *shape: int) -> int:
    """Bounds from above what the gradient of `logits` holds at once, for I, J, P, W, D."""
    return tile_bytes(6, 0, *shape)  # XLA holds 4


def pair_score(alignment: Alignment, stage: Stage) -> PlanScore:
  """Returns the score of a stage."""
  return PlanScore(stage.tau, alignment.beta, alignment.word_weight > 0, alignment.dtype)


def loss(
  x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes (loss, accuracy) of the contrast of pairs, and of single words."""
  weights = word_weights(stage, x.significance, x.mask)
  features = PairFeatures(l2_normalize(x.pixels), l2_normalize(x.words), weights, x.local_scale)
  terms = base.contrast_pairs(pair_score(alignment, stage), alignment, features, keys)
  total, accuracy = info_nce(terms, keys.valid)
  if alignment.word_weight:
    weights = jax.lax.stop_gradient(weights)
    total += alignment.word_weight * word_info_nce(terms, keys.valid, weights)
  return total, accuracy


def smoothed(image, alignment: Alignment) -> Float[Array, "B P D"]:
  """Returns the pixels of images as the method compares them with words.

  Each is the mean over pixels that look alike, where `alignment.smooth_steps` is chosen: what is
  found in a part of a structure is then found in all of it. Where `alignment.smooth_share` is below
  1 it is that share of the mean, and for the rest itself, both of unit norm. What looks alike is
  told by `image.features`, through which no gradient goes. Pixels of the baselines stay as they
  are.
  """
  a = alignment
  if a.method != "plan" or not a.smooth_steps:
    return image.pixels
  diffusion = Diffusion(a.smooth_steps, a.spread_tau, a.spread_radius_fraction)
  features = jax.lax.stop_gradient(image.features)
  means = jax.vmap(lambda pixels, features: smooth(pixels, features, diffusion))(
    image.pixels, features
  )
  if a.smooth_share == 1:
    return means
  return a.smooth_share * l2_normalize(means) + (1 - a.smooth_share) * l2_normalize(image.pixels)


def attend(image, text, stage: Stage, alignment: Alignment) -> WordAttention:
  """Returns the words' regions, spread along the image where that is chosen."""
  a = alignment
  attention, _ = own_regions(image.pixels, text.words, stage, a)
  if not a.spread_steps:
    return attention
  diffusion = Diffusion(a.spread_steps, a.spread_tau, a.spread_radius_fraction)
  return attention._replace(weight=spread(attention.weight, image.features, diffusion))


def own_regions(
  pixels: Float[Array, "P D"], words: Float[Array, "W D"], stage: Stage, alignment: Alignment
) -> tuple[WordAttention, Float[Array, " W"]]:
  """Computes regions and evidence of words in one image, from any norm."""
  operands = l2_normalize(words), l2_normalize(pixels)
  similarity = product("wd,pd->wp", alignment.dtype, *operands)
  weight = soft_region(similarity, stage.tau)
  return WordAttention(weight, similarity), (weight * similarity).sum(-1)


METHOD = base.Method(loss, attend, pair_score)
