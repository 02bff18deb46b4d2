"""The local alignments by name: `plan`, and the baselines that it must beat under equal encoders.

- `plan`: contrast of all pairs by the scores of refined soft regions (ours, after PLAN).
- `none`: no local loss (ConVIRT, CLIP); a phrase is grounded by its global vector against pixels
  through the image's own head.
- `gloria`: contrast of all pairs by GLoRIA's scores (Huang et al. 2021).
- `sparc`: words against regions of one report, regions by min-max scaling (Bica et al. 2024).
- `mgca`: words against regions of one report, regions by softmax, words weighted by the attention
  they get from the report vector (Wang et al. 2022, the word side of its token alignment).

Each is its published formula, temperatures included, on the same features. Padding is left out
where the published code lets it in, and contrasts of pairs leave out equal reports and reports
without words, for every method alike.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plan_jax.alignment import curriculum, pairwise, regions
from plan_jax.alignment import losses as contrast
from plan_jax.alignment import similarity as scores
from plan_jax.alignment.l2_normalize import unit

MGCA_TAU = 0.1
NONE_TAU = 0.2  # of the map alone (ours)


class Embedded(NamedTuple):
  """What the objective needs of B pairs; all float32 but the masks and keys.

  Attributes:
    pixels: [B, P, D] and image [B, D]; images unit norm.
    words: [B, W, D] and report [B, D]; reports unit norm.
    mask: [B, W] bool, which words are words; term [B, W] bool, which name something seen.
    significance: [B, W] in (0, 1), zero for padding.
    attention: [B, W], share of each word in the report's vector.
    report_key, study_key: [B] int32.
    global_scale, local_scale: inverse temperatures.
  """

  pixels: jax.Array
  image: jax.Array
  words: jax.Array
  report: jax.Array
  mask: jax.Array
  term: jax.Array
  significance: jax.Array
  attention: jax.Array
  report_key: jax.Array
  example_key: jax.Array
  global_scale: jax.Array
  local_scale: jax.Array


@dataclass(frozen=True)
class Alignment:
  """What holds through all of training; `config.alignment`.

  Attributes:
    method: a name of METHODS.
    mask_positives: whether reports that say the same are left out of each other's negatives.
    sparsifier, evidence, eta: of `plan`, see scores.Rounds.
    beta: of `plan`, see scores.pool_words.
    word_weight: of `plan`, of the contrast of single words over the images.
    term_weight: of `plan`, of the significance's own loss, towards the diagnostic terms; 0: it
      learns from the other losses alone.
    dtype: of the products of words and pixels, see scores.product.
    implementation: of all pairs, a name of pairwise.IMPLEMENTATIONS.
    tile_images, tile_reports: how many are compared at once; 0: as many as fit into `tile_mib`.
    tile_mib: memory for a tile.
  """

  method: str
  mask_positives: bool
  sparsifier: str
  evidence: str
  eta: float
  beta: float
  word_weight: float
  term_weight: float
  dtype: str
  implementation: str
  tile_images: int
  tile_reports: int
  tile_mib: int

  def rounds(self, stage: curriculum.Stage) -> scores.Rounds:
    """The refinement rounds of a stage."""
    return scores.Rounds(
      stage.tau, stage.gamma, self.eta, self.sparsifier, self.evidence, self.dtype
    )


class Looked(NamedTuple):
  """What the words of a text see in an image.

  Attributes:
    weight: [W, P] float32 >= 0, the region.
    similarity: [W, P] float32, signed.
  """

  weight: jax.Array
  similarity: jax.Array


# --- the losses: one (loss, accuracy) a round -------------------------------------------------


def pair_score(alignment: Alignment, stage: curriculum.Stage) -> pairwise.Score | None:
  """The score of all image x report pairs in a stage; None where the method compares none."""
  if alignment.method == "plan" and stage.local_weight:
    return scores.PlanScore(alignment.rounds(stage), alignment.beta, alignment.word_weight > 0)
  return scores.GloriaScore(alignment.dtype) if alignment.method == "gloria" else None


def pair_tile(
  alignment: Alignment,
  stage: curriculum.Stage,
  pixels: tuple[int, int, int],
  words: tuple[int, int, int],
) -> pairwise.Tile | None:
  """The tile of a stage for (B, P, D) and (B, W, D); None where it needs none.

  Raises ValueError, naming the key, where none fits.
  """
  score = pair_score(alignment, stage)
  if score is None or alignment.implementation == "full":
    return None
  return pairwise.tile(
    score, pixels, words,
    images=alignment.tile_images, reports=alignment.tile_reports, mib=alignment.tile_mib,
  )  # fmt: skip


def _contrasted(alignment: Alignment, stage, pixels, words, say, scale, keys):
  """All images against all reports, by the evaluation that the config names."""
  score = pair_score(alignment, stage)
  pixels, words = scores.narrow(pixels, alignment.dtype), scores.narrow(words, alignment.dtype)
  tile = pair_tile(alignment, stage, pixels.shape, words.shape)
  if tile is None:
    return pairwise.full(score, pixels, words, say, scale, keys)
  evaluate = {"chunked": pairwise.chunked, "ring": pairwise.ring}[alignment.implementation]
  return evaluate(score, tile, pixels, words, say, scale, keys)


def _plan_losses(x: Embedded, stage, alignment: Alignment, keys):
  say = curriculum.say(stage, x.significance, x.mask)
  pairs = _contrasted(
    alignment, stage, unit(x.pixels), unit(x.words), say, x.local_scale, keys
  )  # fmt: skip
  loss, accuracy = contrast.info_nce(pairs, keys.valid)
  if alignment.word_weight:
    weight = jax.lax.stop_gradient(say)
    loss += alignment.word_weight * contrast.word_info_nce(pairs, keys.valid, weight)
  return list(zip(loss, accuracy, strict=True))


def _gloria_losses(x: Embedded, stage, alignment: Alignment, keys):
  say, scale = x.mask.astype(jnp.float32), jnp.float32(1)
  pairs = _contrasted(alignment, stage, x.pixels, x.words, say, scale, keys)
  return list(zip(*contrast.info_nce(pairs, keys.valid), strict=True))


def _sparc_losses(x: Embedded, stage, alignment: Alignment, keys):
  attended = unit(jnp.einsum("bwp,bpd->bwd", _sparc_attention(x.pixels, x.words), x.pixels))
  weight = x.mask / jnp.maximum(x.mask.sum(-1, keepdims=True), 1)
  return [contrast.words_info_nce(attended, unit(x.words), weight, x.mask, x.local_scale)]


def _mgca_losses(x: Embedded, stage, alignment: Alignment, keys):
  pixels, words = unit(x.pixels), unit(x.words)
  attended = unit(jnp.einsum("bwp,bpd->bwd", _mgca_attention(pixels, words), pixels))
  weight = mgca_weight(x.attention, x.mask)
  return [contrast.words_info_nce(attended, words, weight, x.mask, 1 / MGCA_TAU)]


def mgca_weight(attention: jax.Array, mask: jax.Array) -> jax.Array:
  """[B, W]: attention clipped to its 10th and 90th percentile in the report, summing to one.

  The attention is that which the report's vector pays its words. No gradient passes. Zero for
  padding.
  """
  known = jnp.where(mask | ~mask.any(-1, keepdims=True), attention, jnp.nan)
  low, high = jnp.nanquantile(known, jnp.array([0.1, 0.9]), axis=-1, keepdims=True)
  clipped = jnp.where(mask, jnp.clip(attention, low, high), 0)
  total = clipped.sum(-1, keepdims=True)
  return jax.lax.stop_gradient(clipped / jnp.where(total > 0, total, 1))


def _none_losses(x: Embedded, stage, alignment: Alignment, keys):
  return []


# --- the maps: of one image and one text -------------------------------------------------------
# A baseline shows its attention or its similarity, whichever grounded better on validation images.


def _plan_look(image, text, stage, alignment: Alignment) -> Looked:
  rounds = alignment.rounds(stage)
  seen = scores.see(unit(image.pixels)[None], gram=rounds.needs_gram, dtype=rounds.dtype)
  found = scores.word_regions(seen, unit(text.words)[None], rounds)[-1]
  return Looked(found.weight[0, :, 0], found.similarity[0, :, 0])


def _gloria_look(image, text, stage, alignment: Alignment) -> Looked:
  similarity = text.words @ image.pixels.T
  return Looked(jax.nn.relu(similarity), similarity)


def _sparc_attention(pixels, words):
  return regions.minmax(jnp.einsum("...wd,...pd->...wp", words, pixels), 1.0, 0.0)


def _sparc_look(image, text, stage, alignment: Alignment) -> Looked:
  return Looked(_sparc_attention(image.pixels, text.words), text.words @ image.pixels.T)


def _mgca_attention(pixels, words):
  return regions.softmax(jnp.einsum("...wd,...pd->...wp", words, pixels), MGCA_TAU, 0.0)


def _mgca_look(image, text, stage, alignment: Alignment) -> Looked:
  similarity = unit(text.words) @ unit(image.pixels).T
  return Looked(jax.nn.relu(similarity), similarity)


def _none_look(image, text, stage, alignment: Alignment) -> Looked:
  similarity = jnp.broadcast_to(
    image.image_pixels @ text.report, (text.mask.shape[-1], image.image_pixels.shape[-2])
  )
  return Looked(regions.softmax(similarity, NONE_TAU, 0.0), similarity)


class Method(NamedTuple):
  """A local alignment: its losses in training, and what it shows of an image and a text."""

  losses: callable
  look: callable


METHODS = {
  "plan": Method(_plan_losses, _plan_look),
  "none": Method(_none_losses, _none_look),
  "gloria": Method(_gloria_losses, _gloria_look),
  "sparc": Method(_sparc_losses, _sparc_look),
  "mgca": Method(_mgca_losses, _mgca_look),
}
