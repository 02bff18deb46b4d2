"""Contrast over all image x report pairs: one mathematical function, three implementations.

A contrast never needs the B x B scores themselves, nor those of every word: it needs the score of
each positive pair, and the log-partition over its negatives (`ContrastTerms`). `full` forms
everything and lets JAX differentiate; it is the oracle, and good for small batches.
`blockwise.chunked` visits the pairs tile by tile, and `blockwise.ring` does so on a mesh. All three
give the same numbers to rounding; nothing is approximated.

Shapes: B images of P pixels and their B reports of W words of D channels; U = W where the words
are contrasted too, else 0. A tile has I images and J reports.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

IMPLEMENTATIONS = ("full", "chunked", "ring")
NO_LOGIT = -1e9  # the highest of no logits; finite, so that differences are


@runtime_checkable
class Score(Protocol):
  """Logits of images and reports that do not depend on other images or reports. Hashable."""

  def logits(
    self,
    pixels: Float[Array, "I P D"],
    words: Float[Array, "J W D"],
    word_weights: Float[Array, "J W"],
    scale: ScalarLike,
  ) -> tuple[Float[Array, "I J"], Float[Array, "I J U"]]:
    """Computes the logits of pairs, and of single words where they are contrasted."""

  def tile_bytes(self, images: int, reports: int, pixels: int, words: int, channels: int) -> int:
    """Bounds from above what the gradient of `logits` holds at once, for I, J, P, W, D."""


class Keys(NamedTuple):
  """Identities of images and reports, which decide the negatives.

  Attributes:
    index: >= 0; image and report of the same index are a positive pair.
    text: 0 for none; reports of the same text are no negatives.
    study: likewise, for images and reports of the same study.
    valid: whether there is a report; without it a pair is neither positive nor negative.
  """

  index: Int[Array, " B"]
  text: Int[Array, " B"]
  study: Int[Array, " B"]
  valid: Bool[Array, " B"]


class PairFeatures(NamedTuple):
  """Features of B pairs, and the inverse temperature, as a `Score` takes them."""

  pixels: Float[Array, "B P D"]
  words: Float[Array, "B W D"]
  word_weights: Float[Array, "B W"]
  scale: ScalarLike


class ContrastTerms(NamedTuple):
  """Positive logits and log-partitions over the negatives; all float32.

  Log-partitions are the log-sum-exp of each image's negative reports and of each report's, and each
  word's, negative images: -1e9 or less without any. The highest negatives carry no gradient.
  """

  positive: Float[Array, " B"]
  positive_word: Float[Array, "B U"]
  image_log_partition: Float[Array, " B"]
  report_log_partition: Float[Array, " B"]
  word_log_partition: Float[Array, "B U"]
  image_highest: Float[Array, " B"]
  report_highest: Float[Array, " B"]


class Tile(NamedTuple):
  """Number of images and reports that are compared at once."""

  images: int
  reports: int


def full(score: Score, features: PairFeatures, keys: Keys) -> ContrastTerms:
  """Contrasts all pairs with every logit and every intermediate held at once."""
  return contrast_terms(*score.logits(*features), keys)


def contrast_terms(
  pairs: Float[Array, "B B"], words: Float[Array, "B B U"], keys: Keys
) -> ContrastTerms:
  """Reduces all logits, of pairs and of single words, to the terms of the contrast."""
  return terms(*reduce_logits(pairs, words, *relate(keys, keys)))


def tile(
  score: Score,
  pixels: tuple[int, int, int],
  words: tuple[int, int, int],
  *,
  images: int,
  reports: int,
  mib: int,
) -> Tile:
  """Chooses how many images and reports to compare at once, on each device of the mesh in context.

  What is not given is chosen: reports for at least 256 words, and as many images as the memory then
  holds; where it holds all of them, as many reports as it holds beside.

  Args:
    score: whose memory counts.
    pixels, words: (B, P, D) and (B, W, D) of all devices together.
    images, reports: given, or 0.
    mib: memory for what a tile holds at once.

  Raises:
    ValueError: the tile given, or the least there is, needs more memory.
  """
  (batch, count, channels), length = pixels, words[1]
  batch //= max(1, jax.sharding.get_abstract_mesh().size)

  def fits(images, reports):
    return score.tile_bytes(images, reports, count, length, channels) <= mib * 2**20

  def even(most):
    """Prefers tiles that divide the batch and need no padding; else fills all of them alike."""
    divisor = max(n for n in range(1, most + 1) if batch % n == 0)
    return divisor if 2 * divisor > most else math.ceil(batch / math.ceil(batch / most))

  wanted = [reports] if reports else range(min(batch, math.ceil(256 / length)), 0, -1)
  # Of a single image XLA would copy the pixels to no end.
  for fewest in [images] if images else (min(2, batch), 1):
    for texts in wanted:
      candidates = [images] if images else range(batch, 0, -1)
      most = next((n for n in candidates if fits(n, texts)), 0)
      if most < fewest:
        continue
      if most >= batch and not reports:
        texts = next(n for n in range(batch, 0, -1) if fits(most, n))
      return Tile(images or even(most), reports or even(texts))
  least = images or 1, reports or 1
  need = math.ceil(score.tile_bytes(*least, count, length, channels) / 2**20)
  raise ValueError(
    f"tile_mib: comes to {mib}; a tile of {least[0]} images x {least[1]} reports (each of"
    f" {count} pixels and {length} words) needs {need}: set it to more, or lower"
    " tile_images and tile_reports (0: as many as fit)"
  )


# --- positives and negatives, and partial sums over them --------------------------------------


def relate(images: Keys, reports: Keys) -> tuple[Bool[Array, "I J"], Bool[Array, "I J"]]:
  """Returns which pairs are negatives, and which are positive."""

  def equal(a, b):
    return a[:, None] == b[None]

  positive = equal(images.index, reports.index)
  same = equal(images.text, reports.text) & (images.text != 0)[:, None]
  same |= equal(images.study, reports.study)
  valid = images.valid[:, None] & reports.valid[None]
  return valid & ~same & ~positive, positive


class PartialSums(NamedTuple):
  """Logits along one axis, reduced: highest negative, sum of exp(negative - highest), positive."""

  highest: jax.Array
  total: jax.Array
  positive: jax.Array

  def log_partition(self) -> jax.Array:
    """Returns the log-sum-exp of the negatives."""
    return self.highest + jnp.log(jnp.where(self.total > 0, self.total, 1))


def _reduce(logits, negative, positive, axis) -> PartialSums:
  counted = jnp.where(negative, logits, NO_LOGIT)
  highest = jax.lax.stop_gradient(counted.max(axis))
  exp = jnp.exp(counted - jnp.expand_dims(highest, axis))
  return PartialSums(
    highest, jnp.where(negative, exp, 0).sum(axis), jnp.where(positive, logits, 0).sum(axis)
  )


def reduce_logits(
  pairs: Float[Array, "I J"],
  words: Float[Array, "I J U"],
  negative: Bool[Array, "I J"],
  positive: Bool[Array, "I J"],
) -> tuple[PartialSums, PartialSums, PartialSums]:
  """Reduces logits to sums by image [I], by report [J] and by word [J, U]."""
  return (
    _reduce(pairs, negative, positive, 1),
    _reduce(pairs, negative, positive, 0),
    _reduce(words, negative[..., None], positive[..., None], 0),
  )


def merge(a: PartialSums, b: PartialSums) -> PartialSums:
  """Adds sums over different negatives."""
  highest = jnp.maximum(a.highest, b.highest)
  total = a.total * jnp.exp(a.highest - highest) + b.total * jnp.exp(b.highest - highest)
  return PartialSums(highest, total, a.positive + b.positive)


def empty(like: PartialSums) -> PartialSums:
  """Returns sums over nothing, of the same shapes."""
  zeros = jnp.zeros(like.total.shape, like.total.dtype)
  return PartialSums(zeros + NO_LOGIT, zeros, zeros)


def terms(image: PartialSums, report: PartialSums, word: PartialSums) -> ContrastTerms:
  """Puts the sums by image, report and word together."""
  return ContrastTerms(
    image.positive,
    word.positive,
    image.log_partition(),
    report.log_partition(),
    word.log_partition(),
    image.highest,
    report.highest,
  )


def tile_bytes(
  arrays: int, regions: int, images: int, reports: int, pixels: int, words: int, channels: int
) -> int:
  """Adds up the float32 bytes of a tile.

  It holds so many `arrays` [J, W, I, P] and `regions` [J, W, I, D], and the features three times.
  """
  features = images * pixels * channels + reports * words * channels
  held = arrays * pixels + regions * channels  # for each word and image
  return 4 * (images * reports * words * held + 3 * features)
