"""Presence: does a finding's name light up only in films that have the finding?

Grounding asks where a phrase lies in a film that is known to hold it, of a map scaled to maximum 1.
Here the map is not scaled: a phrase that lights up alike in every film scores .5.

Protocol "presence-v1":

- The unit is a film and a finding that the film's study labels 1 (present) or 0 (absent). Pairs
  that are labelled uncertain (-1) are left out, and so are those without a label, over all films of
  the split and all findings that any of them labels; both are counted.
- The phrase is the finding's name as the label has it. The score is the peak of its map before any
  scaling: the maximum over the pixels of the mean similarity of its words, each word by its say in
  the model. Its scale is the model's own: AUCs of two models can be compared, their peaks cannot.
- AUC is the probability that the peak of a film with the finding exceeds that of one without, ties
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
from input_pipeline.study import Study
from plan_jax.evaluators import auc, bootstrap
from plan_jax.evaluators.results import RUN, Row
from plan_jax.evaluators.units import SCORED, Units, unit_id
from plan_jax.reporting import say

PROTOCOL = "presence-v1"
METRICS = ("AUC", "mean peak present", "mean peak absent")


class Grounder(Protocol):
  """What presence needs of a model."""

  def peaks(self, images: list[np.ndarray], phrases: list[str]) -> np.ndarray:
    """Peak of the unscaled map of phrase i on film i, uint8 [H, W]: float32 [N]."""


@dataclass(frozen=True)
class Unit:
  """A film and a finding; `present` as the study labels it."""

  image_id: str
  patient_id: str
  finding: str
  present: bool


def evaluate_presence(
  grounder: Grounder,
  studies: Iterable[Study],
  *,
  data: str,
  batch: int = 64,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model under protocol "presence-v1" (see the top of this file).

  Args:
    grounder: the model.
    studies: the films; those without a label of 1 or 0 are not decoded.
    data: name of data set and split, for the rows.
    batch: how many phrases the grounder is given at a time; those of a film follow each other.
    resamples: bootstrap draws.
    seed: of the draws.

  Returns:
    As `presence_rows`. What was left out is said.

  Raises:
    ValueError: a film is unreadable (the message names the image), or a peak is no number.
  """
  scores = score_presence(grounder, studies, batch=batch)
  return presence_rows(scores, data=data, resamples=resamples, seed=seed)


def score_presence(
  grounder: Grounder, studies: Iterable[Study], *, batch: int = 64
) -> Units | None:
  """The peak of every unit, with `units.SCORED` as metrics; None where no finding has both kinds.

  Arguments and errors are those of `evaluate_presence`.
  """
  counts = _Counts()
  units, peaks = [], []
  for films, some in _batches(studies, batch, counts):
    found = np.asarray(grounder.peaks(films, [unit.finding for unit in some]), np.float64)
    if found.shape != (len(some),):
      raise ValueError(f"the grounder gave peaks {found.shape} for {len(some)} phrases")
    units += some
    peaks.append(found)
  for text in counts.left_out():
    say(f"presence: {text}")
  present = {unit.finding for unit in units if unit.present}
  absent = {unit.finding for unit in units if not unit.present}
  if alone := sorted(present ^ absent):
    say(
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
  return Units(
    [unit_id(unit.image_id, unit.finding) for unit in units],
    [unit.finding for unit in units],
    [unit.patient_id for unit in units],
    SCORED,
    np.stack([peaks, [unit.present for unit in units]], axis=1),
  )


def presence_rows(
  scores: Units | None, *, data: str, resamples: int = bootstrap.RESAMPLES, seed: int = 0
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
    self.films, self.labels, self.uncertain = 0, 0, 0
    self.findings: set[str] = set()

  def add(self, study: Study) -> None:
    """Counts a film."""
    self.films += 1
    self.labels += len(study.labels)
    self.uncertain += sum(value == -1 for value in study.labels.values())
    self.findings.update(study.labels)

  def left_out(self) -> list[str]:
    """A line for each reason that left anything out."""
    pairs = self.films * len(self.findings)
    lines = []
    if self.uncertain:
      lines.append(
        f"{self.uncertain} of {pairs} pairs of film and finding are uncertain and left out"
      )
    if unlabelled := pairs - self.labels:
      lines.append(f"{unlabelled} of {pairs} pairs of film and finding have no label")
    if self.films and not self.findings:
      lines.append(f"none of {self.films} films has labels")
    return lines


def _batches(
  studies: Iterable[Study], batch: int, counts: _Counts
) -> Iterator[tuple[list[np.ndarray], list[Unit]]]:
  """Lists of at most `batch` units, and the film of each."""
  films, units = [], []
  for study in studies:
    counts.add(study)
    known = {name: value == 1 for name, value in study.labels.items() if value != -1}
    if not known:
      continue
    try:
      film = images.decode(study.image)
    except ValueError as error:
      raise ValueError(f"{study.image_id}: {error}") from error
    for finding, present in known.items():
      films.append(film)
      units.append(Unit(study.image_id, study.patient_id, finding, present))
      if len(units) == batch:
        yield films, units
        films, units = [], []
  if units:
    yield films, units
