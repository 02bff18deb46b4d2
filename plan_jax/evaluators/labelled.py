"""Films with labels, embedded: what zero-shot classification and linear probes score."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline import images
from input_pipeline.study import Study
from plan_jax.evaluators.retrieval import ImageEmbedder
from plan_jax.reporting import say


@dataclass(frozen=True)
class Films:
  """N embedded films, each with a label of 1 or 0.

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
    """Places int [K] of the films labelled 1 or 0, and bool [K], which are labelled 1."""
    values = np.array([labels.get(finding, -1) for labels in self.labels])
    places = np.flatnonzero(values >= 0)
    return places, values[places] == 1

  def findings(self) -> tuple[list[str], list[str]]:
    """Those that some films have and some have not, and those of one kind only; sorted."""
    kinds = {(name, value) for labels in self.labels for name, value in labels.items()}
    names = sorted({name for name, value in kinds if value != -1})
    both = [name for name in names if {(name, 0), (name, 1)} <= kinds]
    return both, [name for name in names if name not in both]


def embed(
  model: ImageEmbedder,
  studies: Iterable[Study],
  what: str,
  *,
  batch: int = 64,
  tell: Callable[[str], None] = say,
) -> Films | None:
  """The films with a label of 1 or 0, `batch` at a time; None where there is none.

  What is left out goes to `tell`, after `what`. Raises ValueError, naming the image, where a film
  is unreadable.
  """
  vectors, films = [], []
  ids, patients, views, labels = [], [], [], []
  without = 0

  def flush() -> None:
    if films:
      vectors.append(np.asarray(model.embed_images(list(films)), np.float32))
      films.clear()

  for study in studies:
    if not any(value in (0, 1) for value in study.labels.values()):
      without += 1
      continue
    try:
      films.append(images.decode(study.image))
    except ValueError as error:
      raise ValueError(f"{study.image_id}: {error}") from error
    ids.append(study.image_id)
    patients.append(study.patient_id)
    views.append(study.view)
    labels.append(study.labels)
    if len(films) == batch:
      flush()
  flush()
  if without:
    tell(
      f"{what}: {without} of {without + len(ids)} films have no label of 1 or 0 and are left out"
    )
  if not ids:
    return None
  found = Films(np.concatenate(vectors), ids, patients, views, labels)
  if uncertain := sum(value == -1 for each in labels for value in each.values()):
    tell(f"{what}: {uncertain} uncertain pairs of film and finding are left out")
  if alone := found.findings()[1]:
    tell(
      f"{what}: {len(alone)} findings are only present or only absent and left out:"
      f" {', '.join(alone)}"
    )
  return found
