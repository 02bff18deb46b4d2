"""Cluster bootstrap: how much a figure would move with other patients.

Images of one patient are alike, so patients, not images, are drawn with replacement (as many as
there are), and the figure is taken anew from the images of those drawn. The interval is the 2.5th
to the 97.5th percentile over the draws (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). The same seed draws the same patients, so figures of several models on the same
units move together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

MACRO = "macro"
RESAMPLES = 1000
_LEVELS = (2.5, 97.5)
_BLOCK = 2_000_000  # weights held at a time


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
  return seeded_means(
    np.asarray(values, np.float64)[None], groups, clusters, resamples=resamples, seed=seed
  )


def seeded_means(
  values: np.ndarray,
  groups: Sequence[str],
  clusters: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """`grouped_means` of several trainings on the same units: means over seeds, with intervals.

  The interval tells how much the figure would move with other seeds and other patients: the
  bootstrap interval over patients, the same draws for every training, and Student's t interval over
  the seeds, joined side by side as the root of the sum of squares (Zou and Donner, Statistics in
  Medicine 27, 2008, on sums of independent parts). Few seeds are too few to be drawn from
  themselves: of 3, a bootstrap's 95 % cover about 76 %. With one seed it is that over patients.

  Args:
    values: [S, U, M] float, M figures of each of U units after each of S trainings; for a paired
      difference, those of one method minus those of another. NaN where there is no such figure.
    groups: as in `grouped_means`.
    clusters: as in `grouped_means`.
    resamples: as in `grouped_means`.
    seed: of the draws.

  Returns:
    As `grouped_means`; every figure is taken for each training, then averaged over those that have
    it. `n` counts the units that have a figure after any training.

  Raises:
    ValueError: as `grouped_means`, or there are no trainings.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 3 or not values.shape[1] == len(groups) == len(clusters):
    raise ValueError(
      f"values {values.shape}, {len(groups)} groups and {len(clusters)} clusters do not fit"
    )
  if not values.shape[0] or not values.shape[1]:
    raise ValueError("there are no units to average")
  if MACRO in groups:
    raise ValueError(f"a group is called {MACRO!r}, the name of the mean over groups")
  names, group = np.unique(np.asarray(groups, str), return_inverse=True)
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  seeds, _, figures = values.shape
  shape = (len(members), len(names), seeds, figures)

  # Sums and counts of each (cluster, group, seed, figure): a draw is then a weighted sum over
  # clusters.
  cell = cluster * len(names) + group
  sums, counts = np.zeros((2, *shape))
  for s, m in np.ndindex(seeds, figures):
    known = np.isfinite(values[s, :, m])
    size = shape[0] * shape[1]
    sums[..., s, m] = np.bincount(cell[known], values[s, known, m], size).reshape(shape[:2])
    counts[..., s, m] = np.bincount(cell[known], minlength=size).reshape(shape[:2])

  each = _with_macro(_ratio(sums.sum(0), counts.sum(0))[None])[0]  # [1 + G, S, M]
  value = nanmean(each.swapaxes(1, 2))
  drawn = []
  for weights in _draws(len(members), resamples, seed):
    weights = weights.astype(np.float64)
    total = (weights @ sums.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    count = (weights @ counts.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    drawn.append(nanmean(_with_macro(_ratio(total, count)).swapaxes(2, 3)))
  drawn = np.concatenate(drawn) if drawn else np.zeros((0, *value.shape))  # [resamples, 1 + G, M]
  behind = (counts > 0).any(2)  # [C, G, M]
  behind = np.concatenate([behind.any(1, keepdims=True), behind], 1).sum(0)  # clusters, [1 + G, M]
  units = np.zeros((len(names), figures), np.int64)
  np.add.at(units, group, np.isfinite(values).any(0))
  units = np.concatenate([units.sum(0, keepdims=True), units])

  out = {}
  for g, name in enumerate([MACRO, *names.tolist()]):
    out[name] = []
    for m in range(figures):
      low, high = interval(drawn[:, g, m]) if behind[g, m] > 1 else (math.nan, math.nan)
      spread = seed_half_width(each[g, :, m])
      if not math.isnan(spread):
        low = value[g, m] - math.hypot(value[g, m] - low, spread)
        high = value[g, m] + math.hypot(high - value[g, m], spread)
      out[name].append(Summary(float(value[g, m]), float(low), float(high), int(units[g, m])))
  return out


def seed_half_width(values: np.ndarray) -> float:
  """Half of Student's 95 % interval of the mean of values [S], NaNs left out; NaN for one value."""
  values = values[~np.isnan(values)]
  n = len(values)
  if n < 2:
    return math.nan
  return float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n))


def median(
  values: np.ndarray, clusters: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Summary:
  """The median of values [U] float with its interval; clusters [U] as in `grouped_means`.

  Raises:
    ValueError: lengths differ, there are no values, or one is NaN.
  """
  return _median((values,), clusters, resamples, seed)


def median_difference(
  values: np.ndarray,
  minus: np.ndarray,
  clusters: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Summary:
  """The median of `values` minus that of `minus`, on the same units and draws; else as `median`."""
  return _median((values, minus), clusters, resamples, seed)


def _median(
  sides: tuple[np.ndarray, ...], clusters: Sequence[str], resamples: int, seed: int
) -> Summary:
  """Of one array its median, of two the first's minus the second's."""
  sides = tuple(np.asarray(values, np.float64) for values in sides)
  for values in sides:
    if values.ndim != 1 or len(values) != len(clusters) or not len(values):
      raise ValueError(f"values {values.shape} and {len(clusters)} clusters do not fit")
    if np.isnan(values).any():
      raise ValueError("a value is NaN")
  orders = [np.argsort(values, kind="stable") for values in sides]

  def weighted(values: np.ndarray, order: np.ndarray, weights: np.ndarray) -> np.ndarray:
    ordered = values[order]
    reached = np.cumsum(weights[:, order], axis=1)  # [r, U]: drawn units up to each value
    total = reached[:, -1:]
    lower = (reached <= (total - 1) // 2).sum(1)
    upper = (reached <= total // 2).sum(1)
    return (ordered[lower] + ordered[upper]) / 2

  def figure(weights: np.ndarray) -> np.ndarray:
    pairs = zip(sides, orders, strict=True)
    first, *rest = (weighted(values, order, weights) for values, order in pairs)
    return first - rest[0] if rest else first

  draws = unit_weights(clusters, resamples=resamples, seed=seed)
  drawn = [figure(weights) for weights in draws]
  several = len(set(clusters)) > 1
  low, high = interval(np.concatenate(drawn)) if several and drawn else (math.nan, math.nan)
  value = figure(np.ones((1, len(clusters)), np.int64))[0]
  return Summary(float(value), low, high, len(clusters))


def grouped_figures(
  measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
  count: int,
  groups: Sequence[str],
  clusters: Sequence[str],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """Figures that are no means of their units (areas, F1, ...) by group and their macro mean.

  Args:
    measure: (places int [K] of a group's units, weights int [R, K], how often each counts) ->
      float [R, M], NaN where the weights allow no such figure.
    count: M.
    groups: [U], the group of each unit; no group may be called "macro".
    clusters: [U], the patient of each unit.
    resamples: how many draws of patients; 0 for no intervals.
    seed: of the draws.

  Returns:
    Group -> M summaries: first "macro", the plain mean of the groups' figures, then the groups by
    name. A group without a figure is NaN and no part of the mean, in a draw as in the whole. There
    is no interval where all units of a figure are of one patient.

  Raises:
    ValueError: lengths differ, or a group is called "macro".
  """
  if len(groups) != len(clusters):
    raise ValueError(f"{len(groups)} groups and {len(clusters)} clusters do not fit")
  if MACRO in groups:
    raise ValueError(f"a group is called {MACRO!r}, the name of the mean over groups")
  names, group = np.unique(np.asarray(groups, str), return_inverse=True)
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  chosen = [np.flatnonzero(group == g) for g in range(len(names))]

  def figures(drawn: np.ndarray) -> np.ndarray:
    """Times drawn [r, clusters] -> [r, groups, M]."""
    found = np.zeros((len(drawn), len(chosen), count))
    for g, units in enumerate(chosen):
      found[:, g] = measure(units, drawn[:, cluster[units]])
    return found

  value = figures(np.ones((1, len(members)), np.int64))[0]
  rows = max(1, _BLOCK // max(map(len, chosen), default=1))
  drawn = [np.zeros((0, *value.shape))]
  for counts in _draws(len(members), resamples if len(members) else 0, seed):
    drawn += [figures(counts[start : start + rows]) for start in range(0, len(counts), rows)]
  drawn = np.concatenate(drawn)

  def summary(figure: float, draws: np.ndarray, units: np.ndarray) -> Summary:
    several = len(np.unique(cluster[units])) > 1
    low, high = interval(draws) if several else (math.nan, math.nan)
    return Summary(float(figure), low, high, len(units))

  out = {MACRO: []}
  averaged = nanmean(drawn.swapaxes(1, 2))
  for m in range(count):
    known = np.flatnonzero(~np.isnan(value[:, m]))
    units = np.concatenate([chosen[g] for g in known]) if len(known) else np.zeros(0, int)
    out[MACRO].append(summary(nanmean(value[:, m]), averaged[:, m], units))
  for g, name in enumerate(names.tolist()):
    out[name] = [summary(value[g, m], drawn[:, g, m], chosen[g]) for m in range(count)]
  return out


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


def _draws(clusters: int, resamples: int, seed: int | list[int]) -> Iterator[np.ndarray]:
  """Blocks [r, C] int64: how often each cluster is drawn; a block stays near 2 million numbers."""
  rng = np.random.default_rng(seed)
  block = max(1, _BLOCK // max(clusters, 1))
  for start in range(0, resamples, block):
    rows = min(block, resamples - start)
    picked = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
    yield np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def _with_macro(means: np.ndarray) -> np.ndarray:
  """Means of groups [R, G, S, M] -> macro and groups [R, 1 + G, S, M]."""
  return np.concatenate([nanmean(np.moveaxis(means, 1, -1))[:, None], means], axis=1)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
  return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def nanmean(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is not NaN; NaN, and no warning, where all is."""
  known = ~np.isnan(values)
  return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
