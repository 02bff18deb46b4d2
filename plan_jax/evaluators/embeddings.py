"""Global embeddings of a data set: images and texts, each embedded once for all evaluators."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from input_pipeline import records
from input_pipeline.example import Example
from input_pipeline.text import reports
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.labelled_images import ImageEmbeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.runtime.logging import log

DIRECTIONS = ("image-to-text", "text-to-image")


@dataclass(frozen=True)
class Pairs:
  """Embedded images with their texts."""

  images: np.ndarray  # float32 [N, D], unit norm
  texts: np.ndarray  # float32 [N, D], unit norm
  keys: np.ndarray  # int [N], equal for texts of the same words
  ids: list[str]  # [N], as all that follow
  patients: list[str]
  kinds: list[str]  # of text
  labels: list[dict[str, int]]

  def sides(self, direction: str, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picks queries and candidates [len(pairs), D] of one of `DIRECTIONS`, those of these pairs."""
    images, texts = self.images[pairs], self.texts[pairs]
    return (images, texts) if direction == DIRECTIONS[0] else (texts, images)


class Embeddings:
  """Embeddings of one data set, made when an evaluator first asks for them."""

  def __init__(self, model: Predictor, dataset: EvaluationSet):
    self._model, self._dataset = model, dataset
    self._images = ImageEmbeddings(model)

  @cached_property
  def pairs(self) -> Pairs | None:
    """Embeds the images with text, and their texts; None where there is none."""
    examples = self._dataset.examples("text", "retrieval")
    return embed_pairs(self._model, examples, embeddings=self._images)

  @cached_property
  def labelled(self) -> labelled_images.Images | None:
    """Embeds the images with a label of 1 or 0; None where there is none."""
    examples = self._dataset.examples(what="zero-shot")
    return labelled_images.embed(self._model, examples, "zero-shot", embeddings=self._images)

  @cached_property
  def validation(self) -> labelled_images.Images | None:
    """Embeds those of the validation split, for thresholds; None where it is the scored one."""
    if self._dataset.split == "validation":
      return None
    if not records.splits(self._dataset.folder).get("validation"):
      return None
    what = "zero-shot, validation split"
    examples = self._dataset.examples(what=what, split="validation")
    return labelled_images.embed(self._model, examples, what)


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
  known: dict[str, int] = {}
  texts, keys, columns, without = [], [], [], 0
  for example in examples:
    words = reports.normalise(" ".join(example.sentences))
    if not words:
      without += 1
      continue
    embeddings.add(example)
    texts.append(example.sentences)
    keys.append(known.setdefault(words, len(known)))
    columns.append((example.image_id, example.patient_id, example.text_kind, example.labels))
  if without:
    total = without + len(keys)
    log.info(f"retrieval: {without} of {total} images have no text and are left out")
  if not keys:
    return None
  embedded = [
    np.asarray(model.embed_texts(texts[start : start + batch]), np.float32)
    for start in range(0, len(texts), batch)
  ]
  ids, *others = map(list, zip(*columns, strict=True))
  return Pairs(embeddings.of(ids), np.concatenate(embedded), np.array(keys), ids, *others)
