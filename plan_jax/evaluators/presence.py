"""Presence: does a finding's name light up only in images that have the finding?

Grounding asks where a phrase lies in an image that is known to hold it, of a map scaled to maximum 1.
Here the map is not scaled: a phrase that lights up alike in every image scores .5.

Protocol "presence-v1":

- The unit is an image and a finding that the image's study labels 1 (present) or 0 (absent). Pairs
  that are labelled uncertain (-1) are left out, and so are those without a label, over all images of
  the split and all findings that any of them labels; both are counted.
- The phrase is the finding's name as the label has it. The score is the peak of its map before any
  scaling: the maximum over the pixels of the mean similarity of its words, each word by its say in
  the model. Its scale is the model's own: AUCs of two models can be compared, their peaks cannot.
- AUC is the probability that the peak of an image with the finding exceeds that of one without, ties
  counted half (see `auc`). Mean peak present and mean peak absent are the plain means of either.
- A finding scores by its own units, `macro` is the plain mean of the findings. A finding with units
  of one kind only is left out and named. Intervals are 95 % percentile intervals of 1,000 bootstrap
  draws of patients.
- Floor `chance`: an AUC of .5, without an interval. Peaks have no floor.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from plan_jax.metrics import auc, bootstrap
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "presence-v1"
METRICS = ("AUC", "mean peak present", "mean peak absent")


class Grounder(Protocol):
  """What presence needs of a model."""

  def peaks(self, images: list[np.ndarray], phrases: list[str]) -> np.ndarray:
    """Peak of the unscaled map of phrase i on image i, uint8 [H, W]: float32 [N]."""


@dataclass(frozen=True)
class Unit:
  """An image and a finding; `present` as the study labels it."""

  image_id: str
  patient_id: str
  finding: str
  present: bool


def evaluate_presence(
  grounder: Grounder,
  examples: Iterable[Example],
  *,
  data: str,
  batch: int = 64,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model under protocol "presence-v1" (see the top of this file).

  Args:
    grounder: the model.
    studies: the images; those without a label of 1 or 0 are not decoded.
    data: name of data set and split, for the rows.
    batch: how many phrases the grounder is given at a time; those of an image follow each other.
    resamples: bootstrap draws.
    seed: of the draws.

  Returns:
    As `presence_rows`. What was left out is said.

  Raises:
    ValueError: an image is unreadable (the message names the image), or a peak is no number.
  """
  scores = score_presence(grounder, examples, batch=batch)
  return presence_rows(scores, data=data, resamples=resamples, seed=seed)


def score_presence(
  grounder: Grounder, examples: Iterable[Example], *, batch: int = 64
) -> ExampleScores | None:
  """The peak of every unit, with `units.SCORED` as metrics; None where no finding has both kinds.

  Arguments and errors are those of `evaluate_presence`.
  """
  counts = _Counts()
  units, peaks = [], []
  for decoded, some in _batches(examples, batch, counts):
    found = np.asarray(grounder.peaks(decoded, [unit.finding for unit in some]), np.float64)
    if found.shape != (len(some),):
      raise ValueError(f"the grounder gave peaks {found.shape} for {len(some)} phrases")
    units += some
    peaks.append(found)
  for text in counts.left_out():
    log.info(f"presence: {text}")
  present = {unit.finding for unit in units if unit.present}
  absent = {unit.finding for unit in units if not unit.present}
  if alone := sorted(present ^ absent):
    log.info(
      f"presence: {len(alone)} of {len(present | absent)} findings are only present or only absent"
      f" and left out: {', '.join(alone)}"
    )
  both = present & absent
  kept = [i for i, unit in enumerate(units) if unit.finding in both]
  if not kept:
    return None
  units, peaks = [units[i] for i in kept], np.concatenate(peaks)[kept]
  if np.isnan(peaks).any():
    raise ValueError("a peak is NaN")
  return ExampleScores(
    [example_id(unit.image_id, unit.finding) for unit in units],
    [unit.finding for unit in units],
    [unit.patient_id for unit in units],
    SCORED,
    np.stack([peaks, [unit.present for unit in units]], axis=1),
  )


def presence_rows(
  scores: ExampleScores | None, *, data: str, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> list[Row]:
  """Rows of `score_presence` by group ("macro" first), metric and model; none of no scores."""
  if scores is None:
    return []
  peaks, present = scores.values[:, 0], scores.values[:, 1] == 1
  who = scores.groups, scores.patients
  areas = auc.grouped(peaks, present, *who, resamples=resamples, seed=seed)
  either = np.where(np.stack([present, ~present], axis=1), peaks[:, None], np.nan)
  means = bootstrap.grouped_means(either, *who, resamples=resamples, seed=seed)
  rows = []
  for group, area in areas.items():
    for metric, s in zip(METRICS, (area, *means[group]), strict=True):
      head = ("presence", PROTOCOL, data, group, metric)
      rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
      if metric == "AUC":
        rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
  return rows


class _Counts:
  """What the protocol leaves out of a split."""

  def __init__(self):
    self.images, self.labels, self.uncertain = 0, 0, 0
    self.findings: set[str] = set()

  def add(self, example: Example) -> None:
    """Counts an image."""
    self.images += 1
    self.labels += len(example.labels)
    self.uncertain += sum(value == -1 for value in example.labels.values())
    self.findings.update(example.labels)

  def left_out(self) -> list[str]:
    """A line for each reason that left anything out."""
    pairs = self.images * len(self.findings)
    lines = []
    if self.uncertain:
      lines.append(
        f"{self.uncertain} of {pairs} pairs of image and finding are uncertain and left out"
      )
    if unlabelled := pairs - self.labels:
      lines.append(f"{unlabelled} of {pairs} pairs of image and finding have no label")
    if self.images and not self.findings:
      lines.append(f"none of {self.images} images has labels")
    return lines


def _batches(
  examples: Iterable[Example], batch: int, counts: _Counts
) -> Iterator[tuple[list[np.ndarray], list[Unit]]]:
  """Lists of at most `batch` units, and the image of each."""
  decoded, units = [], []
  for example in examples:
    counts.add(example)
    known = {name: value == 1 for name, value in example.labels.items() if value != -1}
    if not known:
      continue
    try:
      image = images.decode(example.image)
    except ValueError as error:
      raise ValueError(f"{example.image_id}: {error}") from error
    for finding, present in known.items():
      decoded.append(image)
      units.append(Unit(example.image_id, example.patient_id, finding, present))
      if len(units) == batch:
        yield decoded, units
        decoded, units = [], []
  if units:
    yield decoded, units
