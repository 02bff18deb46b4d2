"""Method `plan`: contrast of all pairs by evidence from refined soft regions (after PLAN)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from plan_jax.alignment.curriculum import Stage, word_weights
from plan_jax.alignment.losses import info_nce, word_info_nce
from plan_jax.alignment.methods import base
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, WordAttention
from plan_jax.alignment.pairwise import Keys, PairFeatures, tile_bytes
from plan_jax.alignment.refinement import Rounds, refine
from plan_jax.alignment.similarity import ImageKeys, l2_normalize, pool_words, prepare
from plan_jax.alignment.spread import Diffusion, smooth, spread


@dataclass(frozen=True)
class PlanScore:
  """Logits of pairs: scale times the pooled evidence of the words, one matrix a round.

  Attributes:
    rounds: of the regions.
    beta: of `pool_words`.
    single: whether the words' own logits (scale times evidence) are wanted too.
  """

  rounds: Rounds
  beta: float
  single: bool

  def prepare(self, pixels: Float[Array, "I P D"]) -> ImageKeys:
    """Computes what all words share of the images; pixels of unit norm."""
    return prepare(pixels, gram=self.rounds.needs_gram, dtype=self.rounds.dtype)

  def logits(
    self,
    prepared: ImageKeys,
    words: Float[Array, "J W D"],
    word_weights: Float[Array, "J W"],
    scale: ScalarLike,
  ) -> tuple[Float[Array, "K I J"], Float[Array, "K I J U"]]:
    """Computes the logits of pairs and of single words; words of unit norm or zero."""
    refined = refine(prepared, words, self.rounds)
    evidence = jnp.stack([jnp.moveaxis(regions.evidence, -1, 0) for regions in refined])
    single = scale * (evidence if self.single else evidence[..., :0])
    return scale * pool_words(evidence, word_weights, self.beta), single

  def tile_bytes(self, *shape: int) -> int:
    """Bounds from above what the gradient of `logits` holds at once, for I, J, P, W, D."""
    arrays = 4 + 12 * len(self.rounds.tau)  # of [J, W, I, P], by XLA's count
    return tile_bytes(arrays, self.rounds.needs_gram, *shape)


def rounds(alignment: Alignment, stage: Stage) -> Rounds:
  """Returns the refinement rounds of a stage."""
  a = alignment
  return Rounds(stage.tau, stage.gamma, a.eta, a.sparsifier, a.evidence, a.dtype)


def pair_score(alignment: Alignment, stage: Stage) -> PlanScore | None:
  """Returns the score of a stage; None where it has no round."""
  if not stage.local_weight:
    return None
  return PlanScore(rounds(alignment, stage), alignment.beta, alignment.word_weight > 0)


def losses(x: EmbeddedBatch, stage: Stage, alignment: Alignment, keys: Keys) -> list:
  """Computes (loss, accuracy) of each round: the contrast of pairs, and of single words."""
  weights = word_weights(stage, x.significance, x.mask)
  features = PairFeatures(l2_normalize(x.pixels), l2_normalize(x.words), weights, x.local_scale)
  terms = base.contrast_pairs(pair_score(alignment, stage), alignment, features, keys)
  loss, accuracy = info_nce(terms, keys.valid)
  if alignment.word_weight:
    weights = jax.lax.stop_gradient(weights)
    loss += alignment.word_weight * word_info_nce(terms, keys.valid, weights)
  return list(zip(loss, accuracy, strict=True))


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
  """Returns the regions of the stage's last round, spread along the image where that is chosen."""
  a = alignment
  attention, _ = own_regions(image.pixels, text.words, rounds(a, stage))
  if not a.spread_steps:
    return attention
  diffusion = Diffusion(a.spread_steps, a.spread_tau, a.spread_radius_fraction)
  return attention._replace(weight=spread(attention.weight, image.features, diffusion))


def own_regions(
  pixels: Float[Array, "P D"], words: Float[Array, "W D"], settings: Rounds
) -> tuple[WordAttention, Float[Array, " W"]]:
  """Computes regions and evidence of words in one image in the last round, from any norm."""
  keys = prepare(l2_normalize(pixels)[None], gram=settings.needs_gram, dtype=settings.dtype)
  last = refine(keys, l2_normalize(words)[None], settings)[-1]
  return WordAttention(last.weight[0, :, 0], last.similarity[0, :, 0]), last.evidence[0, :, 0]


METHOD = base.Method(losses, attend, pair_score)
