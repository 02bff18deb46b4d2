"""Cluster bootstrap: how much a figure would move with other patients.

Films of one patient are alike, so patients, not films, are drawn with replacement (as many as
there are), and the figure is taken anew from the films of those drawn. The interval is the 2.5th
to the 97.5th percentile over the draws (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). The same seed draws the same patients, so figures of several models on the same
units move together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MACRO = "macro"
RESAMPLES = 1000
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Summary:
  """A figure, the ends of its 95 % interval (NaN where there is none) and the units behind it."""

  value: float
  low: float
  high: float
  n: int


def grouped_means(
  values: np.ndarray,
  groups: Sequence[str],
  clusters: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """Means by group and their macro mean, with intervals.

  Args:
    values: [U, M] float, M figures of each of U units; NaN where a unit has no such figure.
    groups: [U], the group of each unit; no group may be called "macro".
    clusters: [U], the patient of each unit.
    resamples: how many draws; 0 for no intervals.
    seed: of the draws.

  Returns:
    Group -> M summaries: first "macro", the plain mean of the groups' means, then the groups by
    name. `n` counts the units that are not NaN. A group that is missing from a draw is left out of
    that draw's macro mean. No interval is given to a group that rests on one patient.

  Raises:
    ValueError: lengths differ, there are no units, or a group is called "macro".
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not len(values) == len(groups) == len(clusters):
    raise ValueError(
      f"values {values.shape}, {len(groups)} groups and {len(clusters)} clusters do not fit"
    )
  if not len(values):
    raise ValueError("there are no units to average")
  if MACRO in groups:
    raise ValueError(f"a group is called {MACRO!r}, the name of the mean over groups")
  names, group = np.unique(np.asarray(groups, str), return_inverse=True)
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  shape = (len(members), len(names), values.shape[1])

  # Sums and counts of each (cluster, group, figure): a draw is then a weighted sum over clusters.
  cell = cluster * len(names) + group
  sums, counts = np.zeros((2, *shape))
  for m in range(shape[2]):
    known = np.isfinite(values[:, m])
    size = shape[0] * shape[1]
    sums[..., m] = np.bincount(cell[known], values[known, m], size).reshape(shape[:2])
    counts[..., m] = np.bincount(cell[known], minlength=size).reshape(shape[:2])

  value = _ratio(sums.sum(0), counts.sum(0))
  drawn = []
  for weights in _draws(len(members), resamples, seed):
    weights = weights.astype(np.float64)
    total = (weights @ sums.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    count = (weights @ counts.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    drawn.append(_ratio(total, count))
  drawn = np.concatenate(drawn) if drawn else np.zeros((0, *shape[1:]))  # [resamples, G, M]
  supported = (counts > 0).sum(0)  # [G, M]: the clusters behind each figure

  out = {MACRO: []}
  for m in range(shape[2]):
    clusters_behind = (counts[..., m].sum(1) > 0).sum()
    low, high = interval(_nanmean(drawn[:, :, m])) if clusters_behind > 1 else (math.nan,) * 2
    macro = float(_nanmean(value[None, :, m])[0])
    out[MACRO].append(Summary(macro, low, high, int(counts[..., m].sum())))
  for g, name in enumerate(names.tolist()):
    out[name] = []
    for m in range(shape[2]):
      low, high = interval(drawn[:, g, m]) if supported[g, m] > 1 else (math.nan,) * 2
      out[name].append(Summary(float(value[g, m]), low, high, int(counts[:, g, m].sum())))
  return out


def median(
  values: np.ndarray, clusters: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Summary:
  """The median of values [U] float with its interval; clusters [U] as in `grouped_means`.

  Raises:
    ValueError: lengths differ, there are no values, or one is NaN.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or len(values) != len(clusters) or not len(values):
    raise ValueError(f"values {values.shape} and {len(clusters)} clusters do not fit")
  if np.isnan(values).any():
    raise ValueError("a value is NaN")
  order = np.argsort(values, kind="stable")
  ordered = values[order]
  drawn = []
  for weights in unit_weights(clusters, resamples=resamples, seed=seed):
    reached = np.cumsum(weights[:, order], axis=1)  # [r, U]: drawn units up to each value
    total = reached[:, -1:]
    lower = (reached <= (total - 1) // 2).sum(1)
    upper = (reached <= total // 2).sum(1)
    drawn.append((ordered[lower] + ordered[upper]) / 2)
  several = len(set(clusters)) > 1
  low, high = interval(np.concatenate(drawn)) if several and drawn else (math.nan, math.nan)
  return Summary(float(np.median(values)), low, high, len(values))


def unit_weights(
  clusters: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
  """How often each unit is drawn: blocks [r, U] int64 of all the draws, for any other figure."""
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  for counts in _draws(len(members), resamples, seed):
    yield counts[:, cluster]


def interval(drawn: np.ndarray) -> tuple[float, float]:
  """Ends of the 95 % percentile interval of the drawn figures [R]; NaNs do not count."""
  drawn = drawn[~np.isnan(drawn)]
  if not len(drawn):
    return math.nan, math.nan
  low, high = np.percentile(drawn, _LEVELS)
  return float(low), float(high)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """Blocks [r, C] int64: how often each cluster is drawn; a block stays near 2 million numbers."""
  rng = np.random.default_rng(seed)
  block = max(1, 2_000_000 // clusters)
  for start in range(0, resamples, block):
    rows = min(block, resamples - start)
    picked = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
    yield np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
  return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is not NaN; NaN, and no warning, where all is."""
  known = ~np.isnan(values)
  return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
