"""Images with labels, embedded: examples of zero-shot classification and of linear probes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from input_pipeline import terminal
from input_pipeline.example import Example
from input_pipeline.images import EncodedImage, model_input
from plan_jax.runtime.logging import log


class ImageEmbedder(Protocol):
  """A model that embeds images: a `Predictor`, or an encoder alone."""

  def embed_images(self, images: list[np.ndarray | EncodedImage]) -> np.ndarray:
    """Embeds images, uint8 [H, W], of any size: float32 [N, D]."""


@dataclass(frozen=True)
class Images:
  """N embedded images, each with a label of 1 or 0."""

  embeddings: np.ndarray  # float32 [N, D], of the model
  ids: list[str]  # [N], as all that follow
  studies: list[str]
  patients: list[str]
  views: list[str]
  labels: list[dict[str, int]]

  def labelled(self, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """Finds the places int [K] of the images labelled 1 or 0, and bool [K], labelled 1."""
    values = np.array([labels.get(finding, -1) for labels in self.labels])
    places = np.flatnonzero(values >= 0)
    return places, values[places] == 1

  def findings(self) -> tuple[list[str], list[str]]:
    """Lists findings that are both present and absent, and those of one kind only; sorted."""
    kinds = {(name, value) for labels in self.labels for name, value in labels.items()}
    names = sorted({name for name, value in kinds if value != -1})
    both = [name for name in names if {(name, 0), (name, 1)} <= kinds]
    return both, [name for name in names if name not in both]


class ImageEmbeddings:
  """Embeddings of images by id, each made once; images are decoded `batch` at a time."""

  def __init__(self, model: ImageEmbedder, batch: int = 64):
    self._model, self._batch = model, batch
    self._known: dict[str, np.ndarray] = {}
    self._waiting: dict[str, np.ndarray | EncodedImage] = {}

  def add(self, example: Example, image: np.ndarray | EncodedImage | None = None) -> None:
    """Adds an image, which is decoded unless it is given.

    Raises ValueError, naming it, where it is unreadable.
    """
    if example.image_id in self._known or example.image_id in self._waiting:
      return
    self._waiting[example.image_id] = model_input(example) if image is None else image
    if len(self._waiting) == self._batch:
      self._embed()

  def of(self, ids: Sequence[str]) -> np.ndarray:
    """Looks up images that were added: float32 [N, D]."""
    self._embed()
    return np.stack([self._known[name] for name in ids])

  def _embed(self) -> None:
    if self._waiting:
      embeddings = np.asarray(self._model.embed_images(list(self._waiting.values())), np.float32)
      self._known |= zip(self._waiting, embeddings, strict=True)
      self._waiting.clear()


def embed(
  model: ImageEmbedder,
  examples: Iterable[Example],
  what: str,
  *,
  batch: int = 64,
  notify: Callable[[str], None] = log.info,
  embeddings: ImageEmbeddings | None = None,
) -> Images | None:
  """Embeds the images with a label of 1 or 0, `batch` at a time; None where there is none.

  `what` begins the messages on what is left out, which `notify` takes; `embeddings` are known.
  Raises ValueError, naming it, where an image is unreadable.
  """
  embeddings = embeddings or ImageEmbeddings(model, batch)
  columns, without = [], 0
  for example in examples:
    if not any(value in (0, 1) for value in example.labels.values()):
      without += 1
      continue
    embeddings.add(example)
    about = example.image_id, example.study_id, example.patient_id, example.view
    columns.append((*about, example.labels))
  if without:
    total = without + len(columns)
    notify(f"{what}: {without} of {total} images have no label of 1 or 0 and are left out")
  if not columns:
    return None
  ids, studies, patients, views, labels = map(list, zip(*columns, strict=True))
  embedded = Images(embeddings.of(ids), ids, studies, patients, views, labels)
  if uncertain := sum(value == -1 for each in labels for value in each.values()):
    notify(f"{what}: {uncertain} uncertain pairs of image and finding are left out")
  if alone := embedded.findings()[1]:
    notify(
      f"{what}: {len(alone)} findings are only present or only absent and left out:"
      f" {terminal.join(alone)}"
    )
  return embedded
