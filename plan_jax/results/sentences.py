"""Sentences: the metrics that a reader sees first, in words."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from plan_jax.results import tables
from plan_jax.results.rows import RUN, Row

MOST = 4
# (task, group, metric) -> a sentence with the value, and the examples that n counts; the first come
# first, as far as a run has them.
_SENTENCES = {
  ("grounding", "macro", "pointing"): (
    "Pointing: the maximum of a phrase's map lies in its true region with a frequency of {}",
    "phrases",
  ),
  ("grounding", "macro", "mIoU"): (
    "Grounding: the map of a phrase and its true region have an mIoU of {}",
    "phrases",
  ),
  ("retrieval", "all", "R@5 image-to-text"): (
    "Retrieval: among {gallery} reports the image's own is one of the first five (R@5) with a"
    " frequency of {}",
    "images",
  ),
  ("presence", "macro", "AUC"): (
    "Presence: a finding's map peaks higher where the finding is present, with an AUC of {}",
    "pairs of image and finding",
  ),
  ("zero-shot-ours", "macro", "AUC"): (
    "Zero-shot classification: the similarity to sentences tells images with a finding from others"
    " with an AUC of {}",
    "pairs of image and finding",
  ),
  ("retrieval", "all", "R@5 text-to-image"): (
    "Retrieval: among {gallery} images the report's own is one of the first five (R@5) with a"
    " frequency of {}",
    "reports",
  ),
}
_VERDICTS = {"better": "better than", "worse": "worse than", "level": "no different from"}


class Sentence(NamedTuple):
  """A metric in words, and how it stands to chance."""

  text: str  # with value, interval, n and data
  standing: str  # "better", "worse", "level", or "" where there is no verdict
  chance: str  # its best chance baseline, or why there is no verdict


def sentences(rows: Iterable[Row], patients: tables.Patients) -> Sequence[Sentence]:
  """Writes the first `MOST` metrics that the run has, each on the first data that has it.

  Published protocols of others are left out.
  """
  cells: dict[tuple[str, str, str], dict[str, Row]] = {}
  for (task, protocol, _), block in tables.grouped(rows).items():
    for (group, metric), models in tables.cells_of(block).items():
      run = models.get(RUN)
      if run and not math.isnan(run.value) and not protocol.startswith("compat-"):
        cells.setdefault((task, group, metric), models)
  chosen = [key for key in _SENTENCES if key in cells][:MOST]
  return [_sentence(*_SENTENCES[key], cells[key], patients) for key in chosen]


def _sentence(
  template: str, examples: str, cells: dict[str, Row], patients: tables.Patients
) -> Sentence:
  run, best = cells[RUN], tables.best_chance(cells)
  value = template.format(tables.with_interval(run), gallery=run.gallery)
  count = tables.patients_of(run, patients)
  standing = tables.standing(cells, count)
  text = f"{value} ({run.n:,} {examples} of {run.data})"
  if best is None:
    return Sentence(text, "", "there is no chance baseline to compare it with")
  chance = f"the best chance baseline, {best.model.replace('_', ' ')}: {tables.number(best.value)}"
  if standing:
    return Sentence(text, standing, f"{_VERDICTS[standing]} {chance}")
  if count < tables.LEAST_PATIENTS:
    return Sentence(text, "", f"{tables.few(count)}; {chance}")
  return Sentence(text, "", chance)
