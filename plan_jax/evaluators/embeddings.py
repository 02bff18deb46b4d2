"""Global embeddings of a data set: images and texts, each embedded once for all evaluators.

A model that scores pairs (`Predictor.has_pair_scores`) has scores in their place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from input_pipeline import records
from input_pipeline.example import Example
from input_pipeline.images import EncodedImage, decode_batches
from input_pipeline.text import reports
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.labelled_images import ImageEmbedder, ImageEmbeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics.mutual_ranks import mutual_ranks
from plan_jax.metrics.ranking import Ranks, rank
from plan_jax.runtime.logging import log

DIRECTIONS = ("image-to-text", "text-to-image")
MOST_SCORED = 20_000  # pairs of a gallery whose scores are held: 1.6 GB


@dataclass(frozen=True)
class Pairs:
  """Embedded images with their texts."""

  images: np.ndarray  # float32 [N, D], unit norm; D is 0 where there are `scores`
  texts: np.ndarray  # float32 [N, D], unit norm
  keys: np.ndarray  # int [N], equal for texts of the same words
  ids: list[str]  # [N], as all that follow
  patients: list[str]
  kinds: list[str]  # of text
  labels: list[dict[str, int]]
  scores: np.ndarray | None = None  # float32 [N, N], of images and texts, of a model that has them

  def sides(self, direction: str, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picks queries and candidates [len(pairs), D] of one of `DIRECTIONS`, those of these pairs."""
    images, texts = self.images[pairs], self.texts[pairs]
    return (images, texts) if direction == DIRECTIONS[0] else (texts, images)

  def similarities(self, direction: str, pairs: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Makes a function of start and stop: scores [stop - start, len(pairs)] of those queries."""
    if self.scores is None:
      queries, candidates = self.sides(direction, pairs)
      return lambda start, stop: queries[start:stop] @ candidates.T
    scores = self.scores if direction == DIRECTIONS[0] else self.scores.T
    return lambda start, stop: scores[np.ix_(pairs[start:stop], pairs)]

  def ranks(self, pairs: np.ndarray, keys: np.ndarray) -> tuple[Ranks, Ranks]:
    """Ranks the candidates of both `DIRECTIONS` among these pairs; those of equal keys are hits."""
    if self.scores is None:
      return mutual_ranks(self.images[pairs], self.texts[pairs], keys)
    first, second = (rank(self.similarities(each, pairs), keys) for each in DIRECTIONS)
    return first, second


class Embeddings:
  """Embeddings of one data set, made when an evaluator first asks for them.

  With `offered`, when an evaluator decodes an image that is labelled, if that is earlier.
  """

  def __init__(self, model: Predictor, dataset: EvaluationSet, *, offered: bool = False):
    self._model, self._dataset = model, dataset
    self._images = ImageEmbeddings(model)
    self._offered = offered and not model.has_pair_scores

  def offer(self, example: Example, image: np.ndarray | EncodedImage) -> None:
    """Takes an image with a label of 1 or 0 that was decoded, so that it is not decoded again."""
    if self._offered:
      self._images.add(example, image)

  @cached_property
  def pairs(self) -> Pairs | None:
    """Embeds the images with text, and their texts; None where there is none."""
    if self._model.has_pair_scores:
      return score_pairs(self._model, lambda what: self._dataset.examples("text", what))
    examples = self._dataset.examples("text", "retrieval")
    return embed_pairs(self._model, examples, embeddings=self._images)

  @cached_property
  def labelled(self) -> labelled_images.Images | None:
    """Embeds the images with a label of 1 or 0; None where there is none."""
    return self._labelled(self._model, self._images)

  @cached_property
  def validation(self) -> labelled_images.Images | None:
    """Embeds those of the validation split, for thresholds; None where it is the scored one."""
    return self._validation(self._model)

  def labels(self) -> list[str]:
    """Lists the labels of the images, whatever their value."""
    return sorted({label for example in self._dataset.examples() for label in example.labels})

  def labelled_by(
    self, embedder: ImageEmbedder
  ) -> tuple[labelled_images.Images | None, labelled_images.Images | None]:
    """Embeds what `labelled` and `validation` hold with another model, anew at each call."""
    images = self._labelled(embedder)
    return images, None if images is None else self._validation(embedder)

  def _labelled(self, embedder: ImageEmbedder, embeddings: ImageEmbeddings | None = None):
    examples = self._dataset.examples(what="zero-shot")
    return labelled_images.embed(embedder, examples, "zero-shot", embeddings=embeddings)

  def _validation(self, embedder: ImageEmbedder):
    if self._dataset.split == "validation":
      return None
    if not records.splits(self._dataset.folder).get("validation"):
      return None
    what = "zero-shot, validation split"
    examples = self._dataset.examples(what=what, split="validation")
    return labelled_images.embed(embedder, examples, what)


def embed_pairs(
  model: Predictor,
  examples: Iterable[Example],
  *,
  batch: int = 64,
  embeddings: ImageEmbeddings | None = None,
) -> Pairs | None:
  """Embeds the examples with text; None where there is none. How many have no text is logged.

  `batch` images or texts are embedded at a time, images are not kept; `embeddings` are known.
  Raises ValueError, naming it, where an image is unreadable.
  """
  embeddings = embeddings or ImageEmbeddings(model, batch)
  texts, *columns = _with_text(examples, embeddings.add)
  if not texts:
    return None
  embedded = [
    np.asarray(model.embed_texts(texts[start : start + batch]), np.float32)
    for start in range(0, len(texts), batch)
  ]
  return Pairs(embeddings.of(columns[1]), np.concatenate(embedded), *columns)


def score_pairs(
  model: Predictor, examples: Callable[[str], Iterable[Example]], *, batch: int = 64
) -> Pairs | None:
  """Scores each image with text with each of their texts, by a model that scores pairs.

  `examples` gives the images with text each time anew, under a name for its progress; they are
  decoded once, `batch` at a time. None where there is none, or where they are more than
  MOST_SCORED, which is logged. Raises ValueError, naming it, where an image is unreadable.
  """
  texts, *columns = _with_text(examples(""), lambda example: None)
  if not texts:
    return None
  if len(texts) > MOST_SCORED:
    log.info(
      f"retrieval: the gallery of {len(texts)} pairs is left out, {MOST_SCORED} are the most that a"
      " model which scores each image with each text is asked for"
    )
    return None
  compare = model.pair_scores(texts)
  scores, start = np.empty((len(texts), len(texts)), np.float32), 0
  wanted = (each for each in examples("retrieval") if _words(each))
  for part, images in decode_batches(wanted, batch):
    scores[start : start + len(part)] = compare(images)
    start += len(part)
  none = np.zeros((len(texts), 0), np.float32)
  return Pairs(none, none, *columns, scores)


def _words(example: Example) -> str:
  return reports.normalise(" ".join(example.sentences))


def _with_text(examples: Iterable[Example], each: Callable[[Example], None]) -> tuple:
  """Collects the texts of the examples that have one, and the columns of `Pairs` behind `texts`.

  `each` takes those examples. How many have no text is logged.
  """
  known: dict[str, int] = {}
  rows, total = [], 0
  for example in examples:
    total += 1
    if words := _words(example):
      each(example)
      key = known.setdefault(words, len(known))
      about = example.image_id, example.patient_id, example.text_kind, example.labels
      rows.append((example.sentences, key, *about))
  if without := total - len(rows):
    log.info(f"retrieval: {without} of {total} images have no text and are left out")
  texts, keys, *others = map(list, zip(*rows, strict=True)) if rows else [[]] * 6
  return texts, np.array(keys, int), *others
