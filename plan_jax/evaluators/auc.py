"""Area under the ROC curve, with cluster bootstrap intervals.

It is the probability that a positive unit scores higher than a negative one, ties counted half:
the Mann-Whitney statistic (Hanley and McNeil, "The meaning and use of the area under a receiver
operating characteristic (ROC) curve", Radiology 1982).
"""

import math
from collections.abc import Sequence

import numpy as np

from plan_jax.evaluators import bootstrap
from plan_jax.evaluators.bootstrap import MACRO, Summary

_BLOCK = 2_000_000  # weights held at a time


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
  if MACRO in groups:
    raise ValueError(f"a group is called {MACRO!r}, the name of the mean over groups")
  names, group = np.unique(np.asarray(groups, str), return_inverse=True)
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  chosen = [np.flatnonzero(group == g) for g in range(len(names))]

  def areas(counts: np.ndarray) -> np.ndarray:
    """Times drawn [r, patients] -> [r, groups]."""
    found = np.zeros((len(counts), len(chosen)))
    for g, i in enumerate(chosen):
      first, *rest = (auc(some[i], positive[i], counts[:, cluster[i]]) for some in scores)
      found[:, g] = first - rest[0] if rest else first
    return found

  value = areas(np.ones((1, len(members))))[0]
  rows = max(1, _BLOCK // max(len(positive), 1))
  drawn = [np.zeros((0, len(names)))]
  if len(members):
    for counts in bootstrap.unit_weights(members.tolist(), resamples=resamples, seed=seed):
      drawn += [areas(counts[start : start + rows]) for start in range(0, len(counts), rows)]
  drawn = np.concatenate(drawn)

  def summary(figure: float, draws: np.ndarray, units: np.ndarray) -> Summary:
    several = len(np.unique(cluster[units])) > 1
    low, high = bootstrap.interval(draws) if several else (math.nan, math.nan)
    return Summary(float(figure), low, high, len(units))

  both = np.flatnonzero(~np.isnan(value))
  macro_units = np.concatenate([chosen[g] for g in both]) if len(both) else np.zeros(0, int)
  macro = value[both].mean() if len(both) else math.nan
  out = {MACRO: summary(macro, _mean(drawn), macro_units)}
  for g, name in enumerate(names.tolist()):
    out[name] = summary(value[g], drawn[:, g], chosen[g])
  return out


def _mean(drawn: np.ndarray) -> np.ndarray:
  """[R, G] -> [R], the mean of what is not NaN; NaN where all is."""
  known = ~np.isnan(drawn)
  total, count = np.where(known, drawn, 0).sum(1), known.sum(1)
  return np.divide(total, count, out=np.full(len(drawn), np.nan), where=count > 0)
