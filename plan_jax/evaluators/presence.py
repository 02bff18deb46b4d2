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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from input_pipeline import terminal
from input_pipeline.example import Example
from input_pipeline.images import EncodedImage, model_input
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


_Pair = tuple[str, str, str, bool]  # example id, finding, patient, the finding is present
Offer = Callable[[Example, np.ndarray | EncodedImage], None]  # takes an image once it is decoded


def score_presence(
  model: Predictor, examples: Iterable[Example], *, batch: int = 64, offer: Offer | None = None
) -> ExampleScores | None:
  """Takes the peak of every image and finding; None where no finding has both kinds.

  `example_scores.SCORED` are the metrics. `batch` phrases are read at a time, those of an image
  follow each other. Images without a label of 1 or 0 are not decoded, and `offer` takes the others.
  What is left out is logged. Raises ValueError where an image is unreadable (the message names it),
  or a peak is no number.
  """
  labels: list[dict[str, int]] = []
  pairs, peaks = [], []
  for images, part in _batches(examples, batch, labels, offer):
    values = np.asarray(model.peaks(images, [finding for _, finding, *_ in part]), np.float64)
    if values.shape != (len(part),):
      raise ValueError(f"the model gave peaks {values.shape} for {len(part)} phrases")
    pairs += part
    peaks.append(values)
  _log_left_out(labels)
  present, absent = (
    {name for _, name, _, is_present in pairs if is_present == side} for side in (True, False)
  )
  if alone := sorted(present ^ absent):
    log.info(
      f"presence: {len(alone)} of {len(present | absent)} findings are only present or only absent"
      f" and left out: {terminal.join(alone)}"
    )
  both = present & absent
  kept = [i for i, (_, finding, *_) in enumerate(pairs) if finding in both]
  if not kept:
    return None
  peaks = np.concatenate(peaks)[kept]
  if np.isnan(peaks).any():
    raise ValueError("a peak is NaN")
  *columns, truth = (list(column) for column in zip(*(pairs[i] for i in kept), strict=True))
  return ExampleScores(*columns, SCORED, np.stack([peaks, truth], axis=1))


def presence_rows(scores: ExampleScores | None, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by group ("macro" first), metric and model; none of no scores."""
  if scores is None:
    return []
  peaks, present = scores.values[:, 0], scores.values[:, 1] == 1
  who = scores.groups, scores.patients
  areas = auc.grouped(peaks, present, *who, **draws)
  either = np.where(np.stack([present, ~present], axis=1), peaks[:, None], np.nan)
  means = bootstrap.grouped_means(either, *who, **draws)
  rows = []
  for group, area in areas.items():
    for metric, s in zip(METRICS, (area, *means[group]), strict=True):
      head = ("presence", PROTOCOL, data, group, metric)
      rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
      if metric == "AUC":
        rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
  return rows


@dataclass(frozen=True, kw_only=True)
class Presence(Evaluator):
  """Evaluator of "presence-v1"."""

  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(presence_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> ExampleScores | None:
    """Scores every image and finding."""
    return score_presence(model, dataset.examples(what="presence"), offer=embeddings.offer)

  def example_scores(self, scores: ExampleScores | None) -> dict[str, ExampleScores]:
    """Picks the peaks."""
    return {"presence": scores} if scores else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> ExampleScores | None:
    """Takes the peaks back."""
    return kept.get("presence")


def _log_left_out(labels: list[dict[str, int]]) -> None:
  """Logs how many pairs of the images with these labels the protocol leaves out, and why."""
  findings = set().union(*labels)
  pairs = len(labels) * len(findings)
  if uncertain := sum(value == -1 for each in labels for value in each.values()):
    log.info(
      f"presence: {uncertain} of {pairs} pairs of image and finding are uncertain and left out"
    )
  if unlabelled := pairs - sum(map(len, labels)):
    log.info(f"presence: {unlabelled} of {pairs} pairs of image and finding have no label")
  if labels and not findings:
    log.info(f"presence: none of {len(labels)} images has labels")


def _batches(
  examples: Iterable[Example],
  batch: int,
  labels: list[dict[str, int]],
  offer: Offer | None,
) -> Iterator[tuple[list[np.ndarray | EncodedImage], list[_Pair]]]:
  """Yields at most `batch` pairs at a time, and the image of each, adding all images."""
  images: list[np.ndarray | EncodedImage] = []
  pairs: list[_Pair] = []
  for example in examples:
    labels.append(example.labels)
    known = {name: value == 1 for name, value in example.labels.items() if value != -1}
    if not known:
      continue
    image = model_input(example)
    if offer:
      offer(example, image)
    for finding, present in known.items():
      images.append(image)
      name = example_id(example.image_id, finding)
      pairs.append((name, finding, example.patient_id, present))
      if len(pairs) == batch:
        yield images, pairs
        images, pairs = [], []
  if pairs:
    yield images, pairs
