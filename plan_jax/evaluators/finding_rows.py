"""Figures of findings that images are scored for: ranked, at a threshold, by view, beside floors."""

from collections.abc import Sequence

import numpy as np

from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row

RANKED = ("AUC", "average precision")
VIEW_IMAGES = 50  # that a view needs
# Metric -> floor -> its figure, of the share of positives.
_FLOORS = {
  "AUC": {"chance": lambda share: 0.5},
  "average precision": {"chance": lambda share: share},
  "F1": {"constant": lambda share: 2 * share / (1 + share)},
  "accuracy": {"constant": lambda share: max(share, 1 - share)},
  "MCC": {"chance": lambda share: 0.0},
}


def finding_rows(
  head: tuple[str, str, str],
  units: ExampleScores,
  thresholds: dict[str, float],
  draws: dict[str, int],
  *,
  ranked: bool = True,
  suffix: str = "",
) -> list[Row]:
  """Rows of the findings and their macro mean, beside the floors.

  Args:
    head: task, protocol and data.
    units: with `units.SCORED` as metrics, grouped by finding.
    thresholds: finding -> threshold, a score from which on an image is positive.
    draws: resamples and seed.
    ranked: whether the figures of `RANKED` are wanted.
    suffix: of the names of `THRESHOLDED`.
  """
  metrics = (RANKED if ranked else ()) + tuple(
    f"{name}{suffix}" for name in THRESHOLDED if thresholds
  )
  score, present = units.values[:, 0], units.values[:, 1] == 1

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    some, kinds = score[places], present[places]
    parts = [np.zeros((len(weights), 0))]
    if ranked:
      parts.append(auc.auc(some, kinds, weights)[:, None])
      parts.append(classification.average_precision(some, kinds, weights)[:, None])
    if thresholds:
      # Nothing reaches the threshold of a finding that has none.
      threshold = thresholds.get(units.groups[places[0]], np.nan)
      found = classification.thresholded(some >= threshold, kinds, weights)
      parts.append(np.full_like(found, np.nan) if np.isnan(threshold) else found)
    return np.concatenate(parts, axis=1)

  who = units.groups, units.patients
  found = bootstrap.grouped_figures(measure, len(metrics), *who, **draws)
  shares = {
    name: float(present[places].mean()) for name, places in places_by_finding(units).items()
  }
  rows = []
  for group, figures in found.items():
    for m, (metric, s) in enumerate(zip(metrics, figures, strict=True)):
      if np.isnan(s.value):
        continue
      rows.append(Row(*head, group, metric, RUN, s.value, s.low, s.high, s.n))
      behind = [name for name in shares if not np.isnan(found[name][m].value)]
      behind = behind if group == MACRO else [group]
      for floor, figure in _FLOORS.get(metric.removesuffix(suffix), {}).items():
        value = float(np.mean([figure(shares[name]) for name in behind]))
        rows.append(Row(*head, group, metric, floor, value, np.nan, np.nan, s.n))
  return rows


def places_by_finding(units: ExampleScores) -> dict[str, np.ndarray]:
  """Finding -> the places of its units."""
  groups = np.array(units.groups)
  return {name: np.flatnonzero(groups == name) for name in dict.fromkeys(units.groups)}


def view_rows(
  head: tuple[str, str, str], units: ExampleScores, views: Sequence[str], draws: dict[str, int]
) -> list[Row]:
  """The macro AUC by view, over the findings that every view with enough images has both kinds of.

  None where fewer than two views have `VIEW_IMAGES`.

  Args:
    head, units, draws: as in `finding_rows`.
    views: [U], of the units.
  """
  views = np.array(views)
  images = {unit.partition("\t")[0]: view for unit, view in zip(units.ids, views, strict=True)}
  names, counts = np.unique([view for view in images.values() if view] or [""], return_counts=True)
  names = names[counts >= VIEW_IMAGES].tolist()
  if len(names) < 2:
    return []
  score, present, groups = units.values[:, 0], units.values[:, 1] == 1, np.array(units.groups)
  kinds = set(zip(views.tolist(), groups.tolist(), present.tolist(), strict=True))
  shared = [
    name
    for name in dict.fromkeys(units.groups)
    if all((view, name, kind) in kinds for view in names for kind in (True, False))
  ]
  rows = []
  for view in names if shared else ():
    i = np.flatnonzero((views == view) & np.isin(groups, shared))
    patients = [units.patients[j] for j in i]
    s = auc.grouped(score[i], present[i], groups[i].tolist(), patients, **draws)[MACRO]
    row = (*head, f"view {view}", "AUC")
    rows.append(Row(*row, RUN, s.value, s.low, s.high, s.n))
    rows.append(Row(*row, "chance", 0.5, np.nan, np.nan, s.n))
  return rows
