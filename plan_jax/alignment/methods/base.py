"""Common parts of the local alignments: their inputs, settings, and what each must provide."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from input_pipeline.section import (
  Count,
  FiniteFloat,
  PositiveFloat,
  Section,
  Share,
  Weight,
  one_of,
)
from plan_jax.alignment import blockwise, pairwise
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.similarity import narrow

_CPU_TILE_MIB = 32  # what the caches of a CPU can hold
_TILES = 16  # that a device's memory would hold


def choose_tile_mib(memory_bytes: int | None) -> int:
  """Chooses the MiB for a tile on devices of so much memory; None: on CPUs.

  A power of two, so that devices whose limits differ a little run one program, and at most a
  sixteenth: parameters, optimizer and activations, which a larger batch needs too, have the rest.
  """
  if memory_bytes is None:
    return _CPU_TILE_MIB
  mib = memory_bytes // _TILES // 2**20
  return max(_CPU_TILE_MIB, 2 ** (mib.bit_length() - 1))


class SwappedWords(NamedTuple):
  """Words of the same reports where left and right are exchanged in sentences of one side.

  Attributes:
    words: features of the words, of any norm.
    half: as of EmbeddedBatch, the other; 0 where nothing is exchanged.
  """

  words: Float[Array, "B W D"]
  half: Int[Array, "B W"]


class EmbeddedBatch(NamedTuple):
  """Features of B pairs, as the objective takes them; all float32 but masks and keys.

  Attributes:
    pixels: features of the pixels, of any norm.
    image_embedding: unit norm.
    words: features of the words, of any norm.
    text_embedding: unit norm.
    mask: which words are words.
    term: which words are diagnostic terms.
    half: of the image, that a word's sentence names: 1 the right, -1 the left, 0 unknown.
    significance: in (0, 1), zero for padding.
    attention: share of each word in the text embedding.
    report_key: equal for reports of the same text, 0 for none.
    study_key: equal for images and reports of the same study.
    global_scale, local_scale: inverse temperatures of the contrasts.
    swapped: None where no loss needs it.
  """

  pixels: Float[Array, "B P D"]
  image_embedding: Float[Array, "B D"]
  words: Float[Array, "B W D"]
  text_embedding: Float[Array, "B D"]
  mask: Bool[Array, "B W"]
  term: Bool[Array, "B W"]
  half: Int[Array, "B W"]
  significance: Float[Array, "B W"]
  attention: Float[Array, "B W"]
  report_key: Int[Array, " B"]
  study_key: Int[Array, " B"]
  global_scale: ScalarLike
  local_scale: ScalarLike
  swapped: SwappedWords | None = None


@dataclass(frozen=True, kw_only=True)
class Alignment(Section):
  """Settings that hold through all of training.

  Attributes:
    method: a name of by_name.METHODS.
    mask_positives: whether reports that say the same are left out of each other's negatives.
    beta: of `plan`, see similarity.pool_words.
    word_weight: of `plan`, weight of the contrast of single words over the images.
    term_weight: of `plan`, weight of the significance's own loss, towards the diagnostic terms; 0:
      it learns from the other losses alone.
    side_weight, swap_weight, move_weight: of `plan`, weights of sides.side_losses; all 0: sides are
      learned from the contrast alone.
    smooth_steps: of `plan`, of the diffusion that averages pixels over what looks alike, before
      words are compared with them.
    smooth_share: of `plan`, of the average in a pixel; the rest is the pixel itself.
    spread_steps: of `plan`, of the diffusion of regions that are shown; training does not see it.
    spread_tau, spread_radius_fraction: of both, see spread.Diffusion.
    dtype: of the products of words and pixels, see similarity.product.
    implementation: of the contrast over all pairs, a name of pairwise.IMPLEMENTATIONS.
    tile_images, tile_reports: how many are compared at once; 0: as many as fit into `tile_mib`.
    tile_mib: memory for a tile; 0: `with_tile_mib` chooses it, before anything is traced. Values
      are the same to rounding, whatever it is.
  """

  method: str
  mask_positives: bool
  beta: FiniteFloat
  word_weight: Weight
  term_weight: Weight
  dtype: Annotated[str, one_of("float32", "bfloat16")]
  implementation: Annotated[str, one_of(*pairwise.IMPLEMENTATIONS)]
  tile_images: Count
  tile_reports: Count
  tile_mib: Count
  # A run's config may be older than these keys.
  side_weight: Weight = 0.0
  swap_weight: Weight = 0.0
  move_weight: Weight = 0.0
  smooth_steps: Count = 0
  smooth_share: Share = 1.0
  spread_steps: Count = 0
  spread_tau: PositiveFloat = 0.2
  spread_radius_fraction: PositiveFloat = 0.0625

  @property
  def swaps_sides(self) -> bool:
    """Need for the reports' sentences with left and right exchanged."""
    return self.method == "plan" and (self.swap_weight > 0 or self.move_weight > 0)

  def with_tile_mib(self, memory_bytes: int | None) -> "Alignment":
    """Returns the settings for devices of so much memory; `choose_tile_mib` where it is 0."""
    return self if self.tile_mib else replace(self, tile_mib=choose_tile_mib(memory_bytes))


class WordAttention(NamedTuple):
  """Attention of the words of a text to the pixels of an image."""

  weight: Float[Array, "W Q"]  # >= 0, the region; Q = P, or of a finer grid
  similarity: Float[Array, "W P"]  # signed


def positive_regions(similarity: Float[Array, "W P"]) -> WordAttention:
  """Regions of the pixels with a positive similarity to each word, by that similarity."""
  return WordAttention(jax.nn.relu(similarity), similarity)


class Method(NamedTuple):
  """Local alignment.

  Attributes:
    loss: (batch, stage, alignment, pair keys) -> (loss, accuracy); None: the method has no local
      loss.
    attend: (image features, text features, stage, alignment) -> WordAttention, of one image and one
      text without a batch axis.
    pair_score: (alignment, stage) -> the score of image x report pairs; None: the method compares
      none.
  """

  loss: Callable | None
  attend: Callable
  pair_score: Callable[[Alignment, Stage], pairwise.Score] | None = None


def choose_tile(
  score: pairwise.Score,
  alignment: Alignment,
  pixels: tuple[int, int, int],
  words: tuple[int, int, int],
) -> pairwise.Tile:
  """Returns the tile for pixels (B, P, D) and words (B, W, D), for a `tile_mib` above 0.

  Raises ValueError where none fits.
  """
  if not alignment.tile_mib:
    raise ValueError("tile_mib: is 0; Alignment.with_tile_mib has not chosen it")
  images, reports, mib = alignment.tile_images, alignment.tile_reports, alignment.tile_mib
  return pairwise.tile(score, pixels, words, images=images, reports=reports, mib=mib)


def contrast_pairs(
  score: pairwise.Score, alignment: Alignment, x: pairwise.PairFeatures, keys: pairwise.Keys
) -> pairwise.ContrastTerms:
  """Contrasts all images with all reports, by the implementation that `alignment` names."""
  pixels, words = narrow(x.pixels, alignment.dtype), narrow(x.words, alignment.dtype)
  x = x._replace(pixels=pixels, words=words)
  if alignment.implementation == "full":
    return pairwise.full(score, x, keys)
  contrast = {"chunked": blockwise.chunked, "ring": blockwise.ring}[alignment.implementation]
  return contrast(score, choose_tile(score, alignment, pixels.shape, words.shape), x, keys)
