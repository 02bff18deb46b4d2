"""Area under the ROC curve, with cluster bootstrap intervals.

It is the probability that a positive unit scores higher than a negative one, ties counted half:
the Mann-Whitney statistic (Hanley and McNeil, "The meaning and use of the area under a receiver
operating characteristic (ROC) curve", Radiology 1982).
"""

from collections.abc import Sequence

import numpy as np

from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import Summary


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The area for each of R weightings of N units, exact.

  Args:
    scores: [N] float.
    positive: [N] bool.
    weights: [R, N] >= 0, how often each unit counts.

  Returns:
    float64 [R]; NaN where the positive or the negative units have no weight.

  Raises:
    ValueError: a score is NaN.
  """
  if np.isnan(scores).any():
    raise ValueError("a score is NaN")
  if not len(scores):
    return np.full(len(weights), np.nan)
  order = np.argsort(scores, kind="stable")
  ordered = scores[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each run of equal scores
  weights = np.asarray(weights, np.float64)[:, order]
  positives = np.add.reduceat(weights * positive[order], starts, axis=1)
  negatives = np.add.reduceat(weights * ~positive[order], starts, axis=1)
  below = np.cumsum(negatives, axis=1) - negatives
  won = (positives * (below + negatives / 2)).sum(1)
  pairs = positives.sum(1) * negatives.sum(1)
  return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def grouped(
  scores: np.ndarray,
  positive: np.ndarray,
  groups: Sequence[str],
  clusters: Sequence[str],
  *,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> dict[str, Summary]:
  """Areas by group and their macro mean, with intervals.

  Args:
    scores: [U] float.
    positive: [U] bool.
    groups: [U], the group of each unit; no group may be called "macro".
    clusters: [U], the patient of each unit.
    resamples: how many draws of patients; 0 for no intervals.
    seed: of the draws.

  Returns:
    Group -> summary: first "macro", the plain mean of the groups' areas, then the groups by name.
    A group without both kinds of units is NaN and no part of the mean, in a draw as in the whole.
    There is no interval where all units of a figure are of one patient.

  Raises:
    ValueError: lengths differ, a score is NaN, or a group is called "macro".
  """
  return _grouped((np.asarray(scores),), positive, groups, clusters, resamples, seed)


def grouped_difference(
  scores: np.ndarray,
  minus: np.ndarray,
  positive: np.ndarray,
  groups: Sequence[str],
  clusters: Sequence[str],
  *,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> dict[str, Summary]:
  """Areas by `scores` minus those by `minus`, on the same units and draws; else as `grouped`."""
  both = np.asarray(scores), np.asarray(minus)
  return _grouped(both, positive, groups, clusters, resamples, seed)


def _grouped(
  scores: tuple[np.ndarray, ...],
  positive: np.ndarray,
  groups: Sequence[str],
  clusters: Sequence[str],
  resamples: int,
  seed: int,
) -> dict[str, Summary]:
  """Of one array of scores its areas, of two the first's minus the second's."""
  positive = np.asarray(positive, bool)
  if {len(some) for some in (*scores, positive, groups, clusters)} != {len(positive)}:
    raise ValueError(
      f"{' and '.join(str(len(some)) for some in scores)} scores, {len(positive)} kinds,"
      f" {len(groups)} groups and {len(clusters)} clusters do not fit"
    )

  def area(units: np.ndarray, weights: np.ndarray) -> np.ndarray:
    first, *rest = (auc(some[units], positive[units], weights) for some in scores)
    return (first - rest[0] if rest else first)[:, None]

  found = bootstrap.grouped_figures(area, 1, groups, clusters, resamples=resamples, seed=seed)
  return {group: figures[0] for group, figures in found.items()}
