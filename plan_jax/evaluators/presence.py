"""Presence: the peak of a finding's map in images with the finding and in images without it.

Grounding asks where a phrase lies in an image that is known to hold it, of a map scaled to maximum
1. Here the map is not scaled: a phrase whose map peaks alike in every image scores .5.

Protocol "presence-v1":

- An example is an image and a finding that is labelled 1 (present) or 0 (absent) in it. Pairs that
  are labelled uncertain (-1) are left out, and so are those without a label, over all images of the
  split and all findings that any of them labels; both are counted.
- The phrase is the finding's name as the label has it. The score is the peak of its map before any
  scaling: the maximum over the pixels of the mean similarity of its words, each word by its weight
  in the model. Its scale is the model's own: AUCs of two models can be compared, their peaks
  cannot.
- AUC is the probability that the peak of an image with the finding exceeds that of one without,
  ties counted half (see `auc`). Mean peak present and mean peak absent are the plain means of
  either.
- A finding scores by its own examples, `macro` is the plain mean of the findings. A finding with
  examples of one kind only is left out and named. Intervals are 95 % percentile intervals of 1,000
  bootstrap draws of patients.
- Chance baseline `chance`: an AUC of .5, without an interval. Peaks have none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from input_pipeline.images import decode_example
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import auc, bootstrap
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "presence-v1"
METRICS = ("AUC", "mean peak present", "mean peak absent")


@dataclass(frozen=True, kw_only=True)
class Presence(Evaluator):
  """Evaluator of "presence-v1"."""

  protocols: tuple[str, ...] = (PROTOCOL,)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> ExampleScores | None:
    """Scores every image and finding."""
    return score_presence(model, dataset.examples(what="presence"))

  def rows(self, scores: ExampleScores | None, **common) -> list[Row]:
    """Makes the rows."""
    return presence_rows(scores, **common)

  def example_scores(self, scores: ExampleScores | None) -> dict[str, ExampleScores]:
    """Picks the peaks."""
    return {"presence": scores} if scores else {}


@dataclass(frozen=True)
class _Pair:
  """An image and a finding, `present` by its label."""

  image_id: str
  patient_id: str
  finding: str
  present: bool


def score_presence(
  model: Predictor, examples: Iterable[Example], *, batch: int = 64
) -> ExampleScores | None:
  """Takes the peak of every image and finding; None where no finding has both kinds.

  Args:
    model: gives peaks.
    examples: the images; those without a label of 1 or 0 are not decoded.
    batch: phrases at a time; those of an image follow each other.

  Returns:
    `example_scores.SCORED` are the metrics. What is left out is logged.

  Raises:
    ValueError: an image is unreadable (the message names it), or a peak is no number.
  """
  counts = _Counts()
  pairs, peaks = [], []
  for images, part in _batches(examples, batch, counts):
    values = np.asarray(model.peaks(images, [pair.finding for pair in part]), np.float64)
    if values.shape != (len(part),):
      raise ValueError(f"the model gave peaks {values.shape} for {len(part)} phrases")
    pairs += part
    peaks.append(values)
  for text in counts.left_out():
    log.info(f"presence: {text}")
  present = {pair.finding for pair in pairs if pair.present}
  absent = {pair.finding for pair in pairs if not pair.present}
  if alone := sorted(present ^ absent):
    log.info(
      f"presence: {len(alone)} of {len(present | absent)} findings are only present or only absent"
      f" and left out: {', '.join(alone)}"
    )
  both = present & absent
  kept = [i for i, pair in enumerate(pairs) if pair.finding in both]
  if not kept:
    return None
  pairs, peaks = [pairs[i] for i in kept], np.concatenate(peaks)[kept]
  if np.isnan(peaks).any():
    raise ValueError("a peak is NaN")
  return ExampleScores(
    [example_id(pair.image_id, pair.finding) for pair in pairs],
    [pair.finding for pair in pairs],
    [pair.patient_id for pair in pairs],
    SCORED,
    np.stack([peaks, [pair.present for pair in pairs]], axis=1),
  )


def presence_rows(
  scores: ExampleScores | None, *, data: str, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> list[Row]:
  """Makes rows by group ("macro" first), metric and model; none of no scores."""
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
  """Counts of what the protocol leaves out of a split."""

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
    """Makes a line for each reason that left anything out."""
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
) -> Iterator[tuple[list[np.ndarray], list[_Pair]]]:
  """Yields at most `batch` pairs at a time, and the image of each."""
  images: list[np.ndarray] = []
  pairs: list[_Pair] = []
  for example in examples:
    counts.add(example)
    known = {name: value == 1 for name, value in example.labels.items() if value != -1}
    if not known:
      continue
    image = decode_example(example)
    for finding, present in known.items():
      images.append(image)
      pairs.append(_Pair(example.image_id, example.patient_id, finding, present))
      if len(pairs) == batch:
        yield images, pairs
        images, pairs = [], []
  if pairs:
    yield images, pairs
