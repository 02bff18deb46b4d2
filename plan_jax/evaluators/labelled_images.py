"""Images with labels, embedded: what zero-shot classification and linear probes score."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from plan_jax.evaluators.retrieval import ImageEmbedder
from plan_jax.runtime.logging import log


@dataclass(frozen=True)
class Images:
  """N embedded images, each with a label of 1 or 0.

  Attributes:
    vectors: float32 [N, D], of the model.
    ids, patients, views: [N].
    labels: [N], of the studies.
  """

  vectors: np.ndarray
  ids: list[str]
  patients: list[str]
  views: list[str]
  labels: list[dict[str, int]]

  def labelled(self, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """Places int [K] of the images labelled 1 or 0, and bool [K], which are labelled 1."""
    values = np.array([labels.get(finding, -1) for labels in self.labels])
    places = np.flatnonzero(values >= 0)
    return places, values[places] == 1

  def findings(self) -> tuple[list[str], list[str]]:
    """Those that some images have and some have not, and those of one kind only; sorted."""
    kinds = {(name, value) for labels in self.labels for name, value in labels.items()}
    names = sorted({name for name, value in kinds if value != -1})
    both = [name for name in names if {(name, 0), (name, 1)} <= kinds]
    return both, [name for name in names if name not in both]


def embed(
  model: ImageEmbedder,
  examples: Iterable[Example],
  what: str,
  *,
  batch: int = 64,
  tell: Callable[[str], None] = log.info,
) -> Images | None:
  """The decoded with a label of 1 or 0, `batch` at a time; None where there is none.

  What is left out goes to `tell`, after `what`. Raises ValueError, naming the image, where an image
  is unreadable.
  """
  vectors, decoded = [], []
  ids, patients, views, labels = [], [], [], []
  without = 0

  def flush() -> None:
    if decoded:
      vectors.append(np.asarray(model.embed_images(list(decoded)), np.float32))
      decoded.clear()

  for example in examples:
    if not any(value in (0, 1) for value in example.labels.values()):
      without += 1
      continue
    try:
      decoded.append(images.decode(example.image))
    except ValueError as error:
      raise ValueError(f"{example.image_id}: {error}") from error
    ids.append(example.image_id)
    patients.append(example.patient_id)
    views.append(example.view)
    labels.append(example.labels)
    if len(decoded) == batch:
      flush()
  flush()
  if without:
    tell(
      f"{what}: {without} of {without + len(ids)} decoded have no label of 1 or 0 and are left out"
    )
  if not ids:
    return None
  found = Images(np.concatenate(vectors), ids, patients, views, labels)
  if uncertain := sum(value == -1 for each in labels for value in each.values()):
    tell(f"{what}: {uncertain} uncertain pairs of image and finding are left out")
  if alone := found.findings()[1]:
    tell(
      f"{what}: {len(alone)} findings are only present or only absent and left out:"
      f" {', '.join(alone)}"
    )
  return found
