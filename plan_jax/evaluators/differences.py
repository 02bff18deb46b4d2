"""Paired differences of two models on the same examples: b minus a, with intervals.

The draws of patients are the same for both models, see `bootstrap`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO, Summary
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.metrics.detection import METRICS, Image, detection_metrics
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.word_contrasts import contrasts

Change = tuple[str, str, float, float, Summary]  # group, metric, value of a, of b, b minus a
Draws = Mapping[str, int]  # "resamples" and "seed"
Detections = tuple[Sequence[Image], Sequence[str]]  # images, findings


def mean_changes(a: ExampleScores, b: ExampleScores, draws: Draws) -> Iterator[Change]:
  """Compares means over examples, and the medians of ranks."""
  # An example without the value on one side has no difference.
  known = np.where(np.isnan(a.values) | np.isnan(b.values), np.nan, 1.0)
  sides = [
    bootstrap.grouped_means(side.values * known, a.groups, a.patients, resamples=0)
    for side in (a, b)
  ]
  change = bootstrap.grouped_means((b.values - a.values) * known, a.groups, a.patients, **draws)
  for group in change:
    if group == MACRO and set(a.groups) == {"all"}:
      continue
    for m, metric in enumerate(a.metrics):
      if not metric.startswith("rank "):
        yield group, metric, *(side[group][m].value for side in sides), change[group][m]
        continue
      before, after = a.values[:, m], b.values[:, m]  # of one group: a gallery
      middle = bootstrap.median(after, a.patients, minus=before, **draws)
      yield group, f"median {metric}", float(np.median(before)), float(np.median(after)), middle


def ranked_changes(
  a: ExampleScores,
  b: ExampleScores,
  thresholds: tuple[Mapping[str, float], Mapping[str, float]],
  draws: Draws,
) -> Iterator[Change]:
  """Compares scores of `example_scores.SCORED`; `thresholds` are those of each side by finding."""
  sides, positive = (a, b), a.values[:, 1] == 1
  shared = thresholds[0].keys() & thresholds[1].keys() & set(a.groups)
  metrics = ("AUC", "average precision", *(THRESHOLDED if shared else ()))

  def measure(side: int, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    scores, kinds, group = sides[side].values[places, 0], positive[places], a.groups[places[0]]
    values = np.full((len(weights), len(metrics)), np.nan)
    values[:, 0] = auc.auc(scores, kinds, weights)
    values[:, 1] = classification.average_precision(scores, kinds, weights)
    if group in shared:
      predicted = scores >= thresholds[side][group]
      values[:, 2:] = classification.thresholded(predicted, kinds, weights)
    return values

  def summarize(metric: Callable[..., np.ndarray], **draws: int) -> dict[str, list[Summary]]:
    return bootstrap.grouped_metrics(metric, len(metrics), a.groups, a.patients, **draws)

  alone = [summarize(partial(measure, side), resamples=0) for side in (0, 1)]
  change = summarize(lambda *drawn: measure(1, *drawn) - measure(0, *drawn), **draws)
  for group, summaries in change.items():
    for m, (metric, summary) in enumerate(zip(metrics, summaries, strict=True)):
      if m < 2 or not np.isnan(summary.value):
        yield group, metric, *(side[group][m].value for side in alone), summary


def word_changes(a: ExampleScores, b: ExampleScores, draws: Draws) -> Iterator[Change]:
  """Compares the words of reports by what their significance tells apart."""
  first, second = a.values[:, 0], b.values[:, 0]
  for metric, places, high, patients in contrasts(a):
    rest = high, ["all"] * len(places), patients
    sides = [auc.grouped(side[places], *rest, resamples=0)["all"] for side in (first, second)]
    change = auc.grouped(second[places], *rest, minus=first[places], **draws)["all"]
    yield "all", metric, *(side.value for side in sides), change


def detector_changes(a: Detections, b: Detections, draws: Draws) -> Iterator[Change]:
  """Compares two detectors; all metrics are taken anew in every draw."""
  images, names = a
  patients = [image.patient_id for image in images]
  # A finding that one of them learned besides has no true box, for the examples are the same.
  findings = [name for name in names if name in b[1]]

  def measure(weights: np.ndarray) -> list[np.ndarray]:
    return [
      detection_metrics(images, len(names), weights)[:, [names.index(name) for name in findings]]
      for images, names in (a, b)
    ]

  sides = [values[0] for values in measure(np.ones((1, len(patients))))]
  drawn = [np.zeros((0, *sides[0].shape))]
  for weights in bootstrap.example_weights(patients, **draws):
    before, after = measure(weights)
    drawn.append(after - before)
  drawn = np.concatenate(drawn)
  if len(set(patients)) == 1:
    drawn[:] = np.nan
  known = [k for k in range(len(findings)) if not np.isnan(sides[0][k]).any()]
  labels = np.concatenate([image.truth_labels for image in images])
  counts = [int((labels == names.index(findings[k])).sum()) for k in known]
  groups = [(MACRO, known, sum(counts))]
  groups += [(findings[k], [k], n) for k, n in zip(known, counts, strict=True)]
  for group, places, n in groups:
    changes = bootstrap.nanmean(drawn[:, places].swapaxes(1, 2))
    for m, metric in enumerate(METRICS):
      before, after = (float(side[places, m].mean()) for side in sides)
      change = Summary(after - before, *bootstrap.interval(changes[:, m]), n)
      yield group, metric, before, after, change
