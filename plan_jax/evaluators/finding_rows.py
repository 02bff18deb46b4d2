"""Rows of findings that images are scored for: ranked, at a threshold, by view, beside chance."""

from collections.abc import Sequence

import numpy as np

from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import RUN, Row

RANKED = ("AUC", "average precision")
VIEW_IMAGES = 50  # that a view needs
# Metric -> chance baseline -> its value, of the share of positives.
_BASELINES = {
  "AUC": {"chance": lambda share: 0.5},
  "average precision": {"chance": lambda share: share},
  "F1": {"constant": lambda share: 2 * share / (1 + share)},
  "accuracy": {"constant": lambda share: max(share, 1 - share)},
  "MCC": {"chance": lambda share: 0.0},
}


def finding_rows(
  head: tuple[str, str, str],
  scores: ExampleScores,
  thresholds: dict[str, float],
  draws: dict[str, int],
  *,
  ranked: bool = True,
  suffix: str = "",
) -> list[Row]:
  """Makes rows of the findings and their macro mean, beside the chance baselines.

  Args:
    head: task, protocol and data.
    scores: with `example_scores.SCORED` as metrics, grouped by finding.
    thresholds: finding -> threshold, a score from which on an image is positive.
    draws: resamples and seed.
    ranked: adds the metrics of `RANKED`.
    suffix: of the names of `THRESHOLDED`.
  """
  metrics = [*(RANKED if ranked else ()), *(f"{m}{suffix}" for m in THRESHOLDED if thresholds)]
  score, present = scores.values[:, 0], scores.values[:, 1] == 1

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values, kinds = score[places], present[places]
    parts = [np.zeros((len(weights), 0))]
    if ranked:
      parts.append(auc.auc(values, kinds, weights)[:, None])
      parts.append(classification.average_precision(values, kinds, weights)[:, None])
    if thresholds:
      # Nothing reaches the threshold of a finding that has none.
      threshold = thresholds.get(scores.groups[places[0]], np.nan)
      binary = classification.thresholded(values >= threshold, kinds, weights)
      parts.append(np.full_like(binary, np.nan) if np.isnan(threshold) else binary)
    return np.concatenate(parts, axis=1)

  who = scores.groups, scores.patients
  summaries = bootstrap.grouped_metrics(measure, len(metrics), *who, **draws)
  shares = {name: float(present[places].mean()) for name, places in example_places(scores).items()}
  rows = []
  for group, by_metric in summaries.items():
    for m, (metric, s) in enumerate(zip(metrics, by_metric, strict=True)):
      if np.isnan(s.value):
        continue
      rows.append(Row(*head, group, metric, RUN, s.value, s.low, s.high, s.n))
      behind = [name for name in shares if not np.isnan(summaries[name][m].value)]
      behind = behind if group == MACRO else [group]
      for name, of_share in _BASELINES.get(metric.removesuffix(suffix), {}).items():
        value = float(np.mean([of_share(shares[finding]) for finding in behind]))
        rows.append(Row(*head, group, metric, name, value, np.nan, np.nan, s.n))
  return rows


def example_places(scores: ExampleScores) -> dict[str, np.ndarray]:
  """Finds the places of the examples of each finding."""
  groups = np.array(scores.groups)
  return {name: np.flatnonzero(groups == name) for name in dict.fromkeys(scores.groups)}


def finding_scores(
  columns: dict[str, np.ndarray], images: Images
) -> tuple[ExampleScores | None, list[str]]:
  """Collects scores of N labelled images, with `example_scores.SCORED` as metrics, and their views.

  `columns` are the scores [N] by finding; None without one.
  """
  ids, groups, patients, views, values = [], [], [], [], []
  for name, column in columns.items():
    places, present = images.labelled(name)
    ids += [example_id(images.ids[i], name) for i in places]
    groups += [name] * len(places)
    patients += [images.patients[i] for i in places]
    views += [images.views[i] for i in places]
    values.append(np.stack([column[places], present], axis=1))
  if not ids:
    return None, []
  return ExampleScores(ids, groups, patients, SCORED, np.concatenate(values)), views


def view_rows(
  head: tuple[str, str, str], scores: ExampleScores, views: Sequence[str], draws: dict[str, int]
) -> list[Row]:
  """Makes rows of the macro AUC by view, over the findings that all these views have both kinds of.

  None where fewer than two views have `VIEW_IMAGES`; `views` are of the examples, all else is as in
  `finding_rows`.
  """
  views = np.array(views)
  images = {name.partition("\t")[0]: view for name, view in zip(scores.ids, views, strict=True)}
  names, counts = np.unique([view for view in images.values() if view] or [""], return_counts=True)
  names = names[counts >= VIEW_IMAGES].tolist()
  if len(names) < 2:
    return []
  score, present, groups = scores.values[:, 0], scores.values[:, 1] == 1, np.array(scores.groups)
  kinds = set(zip(views.tolist(), groups.tolist(), present.tolist(), strict=True))
  shared = [
    name
    for name in dict.fromkeys(scores.groups)
    if all((view, name, kind) in kinds for view in names for kind in (True, False))
  ]
  rows = []
  for view in names if shared else ():
    i = np.flatnonzero((views == view) & np.isin(groups, shared))
    patients = [scores.patients[j] for j in i]
    s = auc.grouped(score[i], present[i], groups[i].tolist(), patients, **draws)[MACRO]
    row = (*head, f"view {view}", "AUC")
    rows.append(Row(*row, RUN, s.value, s.low, s.high, s.n))
    rows.append(Row(*row, "chance", 0.5, np.nan, np.nan, s.n))
  return rows
