"""Cluster bootstrap: intervals of a metric over patients.

Images of one patient are alike, so patients, not images, are drawn with replacement (as many as
there are), and the metric is taken anew from the images of those drawn. The interval is the 2.5th
to the 97.5th percentile over the draws (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). The same seed draws the same patients, so metrics of several models on the same
examples move together.

Shapes: U examples, M metrics, R draws, S trainings.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import special

MACRO = "macro"
RESAMPLES = 1000
_LEVELS = (2.5, 97.5)
_BLOCK = 2_000_000  # weights held at a time

Names = Sequence[str] | np.ndarray


@dataclass(frozen=True)
class Summary:
  """Value of a metric, the ends of its 95 % interval (NaN for none), the examples behind it."""

  value: float
  low: float
  high: float
  n: int


def grouped_means(
  values: Float[np.ndarray, "U M"],
  groups: Names,
  clusters: Names,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """Averages by group, with the macro mean and intervals.

  Args:
    values: NaN where an example has no such metric.
    groups: [U], the group of each example; no group may be called "macro".
    clusters: [U], the patient of each example.
    resamples: how many draws; 0 for no intervals.
    seed: of the draws.

  Returns:
    Group -> M summaries: first "macro", the plain mean of the groups' means, then the groups by
    name. `n` counts the examples that are not NaN. A group that is missing from a draw is left out
    of that draw's macro mean. No interval is given to a group that rests on one patient.

  Raises:
    ValueError: lengths differ, there are no examples, or a group is called "macro".
  """
  return seeded_means(
    np.asarray(values, np.float64)[None], groups, clusters, resamples=resamples, seed=seed
  )


def seeded_means(
  values: Float[np.ndarray, "..."],
  groups: Names,
  clusters: Names,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """Averages as `grouped_means` over several trainings on the same examples.

  The interval tells how much the metric would move with other seeds and other patients: the
  bootstrap interval over patients, the same draws for every training, and Student's t interval over
  the seeds, joined side by side as the root of the sum of squares (Zou and Donner, Statistics in
  Medicine 27, 2008, on sums of independent parts). Few seeds are too few to be drawn from
  themselves: of 3, a bootstrap's 95 % cover about 76 %. With one seed it is that over patients.

  Of a paired difference, `values` [S, U, M] are those of one method minus those of another. Every
  metric is taken for each training, then averaged over those that have it; `n` counts the examples
  that have a value after any. Raises ValueError as `grouped_means`, or where there is no training.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 3 or not values.shape[1] == len(groups) == len(clusters):
    raise ValueError(
      f"values {values.shape}, {len(groups)} groups and {len(clusters)} clusters do not fit"
    )
  if not values.shape[0] or not values.shape[1]:
    raise ValueError("there are no examples to average")
  if MACRO in groups:
    raise ValueError(f"a group is called {MACRO!r}, the name of the mean over groups")
  names, group = np.unique(np.asarray(groups, str), return_inverse=True)
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  seeds, _, metrics = values.shape
  shape = (len(members), len(names), seeds, metrics)
  # A draw is a weighted sum over clusters.
  sums, counts = _cells(values, cluster * len(names) + group, shape)

  each = _with_macro(ratio(sums.sum(0), counts.sum(0))[None])[0]  # [1 + G, S, M]
  value = nanmean(each.swapaxes(1, 2))
  drawn = []
  for weights in _draws(len(members), resamples, seed):
    weights = weights.astype(np.float64)
    total = (weights @ sums.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    count = (weights @ counts.reshape(shape[0], -1)).reshape(-1, *shape[1:])
    drawn.append(nanmean(_with_macro(ratio(total, count)).swapaxes(2, 3)))
  drawn = np.concatenate(drawn) if drawn else np.zeros((0, *value.shape))  # [resamples, 1 + G, M]
  behind = (counts > 0).any(2)  # [C, G, M]
  behind = np.concatenate([behind.any(1, keepdims=True), behind], 1).sum(0)  # clusters, [1 + G, M]
  examples = np.zeros((len(names), metrics), np.int64)
  np.add.at(examples, group, np.isfinite(values).any(0))
  examples = np.concatenate([examples.sum(0, keepdims=True), examples])

  out = {}
  for g, name in enumerate([MACRO, *names.tolist()]):
    out[name] = []
    for m in range(metrics):
      low, high = interval(drawn[:, g, m]) if behind[g, m] > 1 else (math.nan, math.nan)
      spread = seed_half_width(each[g, :, m])
      if not math.isnan(spread):
        low = value[g, m] - math.hypot(value[g, m] - low, spread)
        high = value[g, m] + math.hypot(high - value[g, m], spread)
      out[name].append(Summary(float(value[g, m]), float(low), float(high), int(examples[g, m])))
  return out


def _cells(
  values: np.ndarray, cell: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Sums and counts of the values [S, U, M] by cluster and group: [C, G, S, M] each."""
  sums, counts = np.zeros((2, *shape))
  for s, m in np.ndindex(shape[2:]):
    known = np.isfinite(values[s, :, m])
    size = shape[0] * shape[1]
    sums[..., s, m] = np.bincount(cell[known], values[s, known, m], size).reshape(shape[:2])
    counts[..., s, m] = np.bincount(cell[known], minlength=size).reshape(shape[:2])
  return sums, counts


def seed_half_width(values: Float[np.ndarray, " S"]) -> float:
  """Half of Student's 95 % interval of the mean of the values that are not NaN; NaN for one."""
  values = values[~np.isnan(values)]
  n = len(values)
  if n < 2:
    return math.nan
  return float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n))


def median(
  values: Float[np.ndarray, "..."],
  clusters: Names,
  *,
  minus: Float[np.ndarray, "..."] | None = None,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Summary:
  """Takes the median of values [U] with its interval; clusters as in `grouped_means`.

  With `minus` it is that of `values` minus that of `minus`, on the same draws. Raises ValueError
  where lengths differ, there are no values, or one is NaN.
  """
  sides = [np.asarray(side, np.float64) for side in (values, minus) if side is not None]
  for values in sides:
    if values.ndim != 1 or len(values) != len(clusters) or not len(values):
      raise ValueError(f"values {values.shape} and {len(clusters)} clusters do not fit")
    if np.isnan(values).any():
      raise ValueError("a value is NaN")
  orders = [np.argsort(values, kind="stable") for values in sides]

  def medians(weights: np.ndarray) -> np.ndarray:
    first, *rest = (_weighted_medians(*side, weights) for side in zip(sides, orders, strict=True))
    return first - rest[0] if rest else first

  drawn = [medians(w) for w in example_weights(clusters, resamples=resamples, seed=seed)]
  several = len(set(clusters)) > 1
  low, high = interval(np.concatenate(drawn)) if several and drawn else (math.nan, math.nan)
  value = medians(np.ones((1, len(clusters)), np.int64))[0]
  return Summary(float(value), low, high, len(clusters))


def _weighted_medians(values: np.ndarray, order: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Medians [R] of values [U], sorted by `order`, each counted as often as weights [R, U] say."""
  ordered = values[order]
  reached = np.cumsum(weights[:, order], axis=1)  # drawn examples up to each value
  total = reached[:, -1:]
  lower = (reached <= (total - 1) // 2).sum(1)
  upper = (reached <= total // 2).sum(1)
  return (ordered[lower] + ordered[upper]) / 2


def grouped_metrics(
  measure: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
  count: int,
  groups: Names,
  clusters: Names,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict[str, list[Summary]]:
  """Measures what is no mean of its examples (areas, F1, ...) by group, with the macro mean.

  Args:
    measure: (places int [K] of a group's examples, weights int [R, K], how often each counts) ->
      float [R, M], NaN where the weights allow no such metric. None is enough without groups.
    count: M.
    groups, clusters, resamples, seed: as in `grouped_means`.

  Returns:
    Group -> M summaries: first "macro", the plain mean of the groups' values, then the groups by
    name. A group without a value is NaN and no part of the mean, in a draw as in the whole. There
    is no interval where all examples of a value are of one patient.

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

  def measured(drawn: np.ndarray) -> np.ndarray:
    """Measures all groups: times drawn [r, clusters] -> [r, groups, M]."""
    out = np.zeros((len(drawn), len(chosen), count))
    for g, places in enumerate(chosen):
      out[:, g] = measure(places, drawn[:, cluster[places]])
    return out

  value = measured(np.ones((1, len(members)), np.int64))[0]
  rows = max(1, _BLOCK // max(map(len, chosen), default=1))
  drawn = [np.zeros((0, *value.shape))]
  for counts in _draws(len(members), resamples if len(members) else 0, seed):
    drawn += [measured(counts[start : start + rows]) for start in range(0, len(counts), rows)]
  drawn = np.concatenate(drawn)

  def summary(mean: np.ndarray | np.number, draws: np.ndarray, places: np.ndarray) -> Summary:
    several = len(np.unique(cluster[places])) > 1
    low, high = interval(draws) if several else (math.nan, math.nan)
    return Summary(float(mean), low, high, len(places))

  out = {MACRO: []}
  averaged = nanmean(drawn.swapaxes(1, 2))
  for m in range(count):
    known = np.flatnonzero(~np.isnan(value[:, m]))
    places = np.concatenate([chosen[g] for g in known]) if len(known) else np.zeros(0, int)
    out[MACRO].append(summary(nanmean(value[:, m]), averaged[:, m], places))
  for g, name in enumerate(names.tolist()):
    out[name] = [summary(value[g, m], drawn[:, g, m], chosen[g]) for m in range(count)]
  return out


def example_weights(
  clusters: Names, *, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[Int[np.ndarray, "R U"]]:
  """Yields how often each example is drawn, in blocks of all the draws, for any other metric."""
  members, cluster = np.unique(np.asarray(clusters, str), return_inverse=True)
  for counts in _draws(len(members), resamples, seed):
    yield counts[:, cluster]


def interval(drawn: Float[np.ndarray, " R"]) -> tuple[float, float]:
  """Ends of the 95 % percentile interval of the drawn values; NaNs do not count."""
  drawn = drawn[~np.isnan(drawn)]
  if not len(drawn):
    return math.nan, math.nan
  low, high = np.percentile(drawn, _LEVELS)
  return float(low), float(high)


def _draws(clusters: int, resamples: int, seed: int | list[int]) -> Iterator[np.ndarray]:
  """Yields how often each cluster is drawn, [r, C] int64; a block is of about 2 million numbers."""
  rng = np.random.default_rng(seed)
  block = max(1, _BLOCK // max(clusters, 1))
  for start in range(0, resamples, block):
    rows = min(block, resamples - start)
    picked = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
    yield np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def _with_macro(means: np.ndarray) -> np.ndarray:
  """Puts the macro mean before the means of groups: [R, G, S, M] -> [R, 1 + G, S, M]."""
  return np.concatenate([nanmean(np.moveaxis(means, 1, -1))[:, None], means], axis=1)


def ratio(
  part: np.ndarray | np.number, whole: np.ndarray | np.number, otherwise: float = math.nan
) -> np.ndarray:
  """Divides; `otherwise` where the whole is not positive."""
  return np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=whole > 0)


def nanmean(values: Float[np.ndarray, "*S N"]) -> Float64[np.ndarray, "*S"]:
  """Averages what is not NaN over the last axis; NaN, and no warning, where all is."""
  known = ~np.isnan(values)
  return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
