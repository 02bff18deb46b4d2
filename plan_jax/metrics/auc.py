"""Area under the ROC curve, with cluster bootstrap intervals.

It is the probability that a positive example scores higher than a negative one, ties counted half:
the Mann-Whitney statistic (Hanley and McNeil, "The meaning and use of the area under a receiver
operating characteristic (ROC) curve", Radiology 1982).
"""

import numpy as np
from jaxtyping import Bool, Float64, Num

from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import Names, Summary


def auc(
  scores: Num[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Num[np.ndarray, "R N"]
) -> Float64[np.ndarray, " R"]:
  """Computes the area for each of R weightings of N examples, exactly.

  NaN where the positive or the negative examples have no weight. Raises ValueError where a score is
  NaN.
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
  return bootstrap.ratio(won, pairs)


def grouped(
  scores: Num[np.ndarray, " U"],
  positive: Bool[np.ndarray, " U"],
  groups: Names,
  clusters: Names,
  *,
  minus: Num[np.ndarray, " U"] | None = None,
  **draws: int,
) -> dict[str, Summary]:
  """Computes areas by group and their macro mean, with intervals, as `bootstrap.grouped_metrics`.

  With `minus` it is the areas by `scores` minus those by `minus`, on the same draws. Raises
  ValueError where lengths differ, a score is NaN, or a group is called "macro".
  """
  sides = (scores,) if minus is None else (scores, minus)
  if {len(values) for values in (*sides, positive, groups, clusters)} != {len(positive)}:
    raise ValueError(
      f"{' and '.join(str(len(values)) for values in sides)} scores, {len(positive)} kinds,"
      f" {len(groups)} groups and {len(clusters)} clusters do not fit"
    )

  def areas(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    first, *rest = (auc(values[places], positive[places], weights) for values in sides)
    return (first - rest[0] if rest else first)[:, None]

  summaries = bootstrap.grouped_metrics(areas, 1, groups, clusters, **draws)
  return {group: summary[0] for group, summary in summaries.items()}
