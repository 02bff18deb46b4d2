"""Classification of images by scores: rows that are ranked, at a threshold, by view, beside chance.

Scores that were learned, of a linear probe or a fine-tuned encoder, are scored as in
"zero-shot-v1": AUC, average precision, and with the threshold of the highest F1 on the validation
split (.5 without one) F1, accuracy, MCC, sensitivity, specificity; by finding, macro and view;
chance baselines `chance` and `constant`; 95 % bootstrap intervals of patients. An example is an
image and a finding labelled 1 or 0; uncertain (-1) ones are left out, and so is a finding that all
images have or none has.
"""

import math
from collections.abc import Sequence

import numpy as np

from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

RANKED = ("AUC", "average precision")
VIEW_IMAGES = 50  # that a view needs
_ACCURACY = THRESHOLDED.index("accuracy")
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
  published: bool = False,
  suffix: str = "",
) -> list[Row]:
  """Makes rows of the findings and their macro mean, beside the chance baselines.

  Args:
    head: task, protocol and data.
    scores: with `example_scores.SCORED` as metrics, grouped by finding.
    thresholds: finding -> threshold, a score from which on an image is positive.
    draws: resamples and seed.
    published: counts as "compat-test-threshold-v2" (see `zero_shot`), without those of `RANKED`.
    suffix: of the names of `THRESHOLDED`.
  """
  metrics = [*(() if published else RANKED), *(f"{m}{suffix}" for m in THRESHOLDED if thresholds)]
  score, present = scores.values[:, 0], scores.values[:, 1] == 1

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values, kinds = score[places], present[places]
    parts = [np.zeros((len(weights), 0))]
    if not published:
      parts.append(auc.auc(values, kinds, weights)[:, None])
      parts.append(classification.average_precision(values, kinds, weights)[:, None])
    if thresholds:
      # Nothing reaches the threshold of a finding that has none.
      threshold = thresholds.get(scores.groups[places[0]], np.nan)
      binary = classification.thresholded(values >= threshold, kinds, weights)
      if published:
        above = classification.thresholded(values > threshold, kinds, weights)
        binary[:, _ACCURACY] = above[:, _ACCURACY]
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


def scored(
  scores: np.ndarray, images: Images, findings: list[str]
) -> tuple[ExampleScores | None, list[str]]:
  """Collects scores [N, K], of N images and K findings, as `finding_scores` does, and the views.

  Of findings that are both present and absent.
  """
  both = images.findings()[0]
  columns = {name: scores[:, k] for k, name in enumerate(findings) if name in both}
  return finding_scores(columns, images)


def macro_auc(scores: ExampleScores | None) -> float:
  """Averages the area under the curve over findings; NaN without examples."""
  if scores is None:
    return math.nan
  score, present = scores.values.T
  return auc.grouped(score, present == 1, scores.groups, scores.patients, resamples=0)[MACRO].value


def classified_rows(
  head: tuple[str, str, str],
  scores: ExampleScores,
  views: list[str],
  *,
  validation: ExampleScores | None,
  **draws: int,
) -> list[Row]:
  """Makes rows of all metrics; `head` is task, protocol and data, scores and views are of `scored`.

  Thresholds are of the highest F1 on `validation`, images of other patients; .5 for None.
  """
  thresholds, suffix, behind = dict.fromkeys(scores.groups, 0.5), " at .5", []
  if validation is not None:
    thresholds, suffix = {}, ""
    for name, places in example_places(validation).items():
      score, present = validation.values[places].T
      thresholds[name] = classification.best_threshold(score, present == 1)
      behind.append((name, len(score)))
  if without := sorted(set(scores.groups) - set(thresholds)):
    log.info(
      f"{head[0]}: of one kind in the validation split, so no threshold: {', '.join(without)}"
    )
  rows = finding_rows(head, scores, thresholds, draws, suffix=suffix)
  rows += [
    Row(*head, name, "threshold", RUN, thresholds[name], np.nan, np.nan, n)
    for name, n in behind
    if name in scores.groups
  ]
  return rows + view_rows(head, scores, views, draws)
