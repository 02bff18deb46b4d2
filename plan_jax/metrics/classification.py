"""Classification metrics for many weightings of the same examples at once, as a bootstrap asks.

Binary: average precision, and with a threshold F1, accuracy, Matthews' correlation (MCC;
Biochimica et Biophysica Acta 405, 1975), sensitivity and specificity. Of k classes: accuracy and
the F1 of each class. Weights are how often an example counts; a weighting without positive or
without negative examples has no metric, nor has a class without examples an F1. Of a ROC curve, the
sensitivity at a given specificity.

Shapes: N examples, R weightings, k classes.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num

from plan_jax.metrics.bootstrap import nanmean, ratio
from plan_jax.metrics.ranking import TOLERANCE

THRESHOLDED = ("F1", "accuracy", "MCC", "sensitivity", "specificity")


def average_precision(
  scores: Num[np.ndarray, " N"], positive: Bool[np.ndarray, " N"], weights: Num[np.ndarray, "R N"]
) -> Float64[np.ndarray, " R"]:
  """Sums gained recall x precision over distinct scores, from the highest.

  Examples of equal scores come together. It is scikit-learn's `average_precision_score`; NaN where
  the positive or the negative examples have no weight. Raises ValueError where a score is NaN.
  """
  tp, fp = _cumulated(scores, positive, weights)
  if not tp.shape[1]:
    return np.full(len(weights), np.nan)
  precision = ratio(tp, tp + fp, 0.0)
  gained = (np.diff(tp, axis=1, prepend=0) * precision).sum(1)
  return np.where(fp[:, -1] > 0, ratio(gained, tp[:, -1]), np.nan)


def thresholded(
  predicted: Bool[np.ndarray, " N"],
  positive: Bool[np.ndarray, " N"],
  weights: Num[np.ndarray, "R N"],
) -> Float64[np.ndarray, "R 5"]:
  """Computes the metrics of `THRESHOLDED`; MCC is 0 where all predictions are alike.

  NaN where the positive or the negative examples have no weight.
  """
  cells = [side & kind for side in (predicted, ~predicted) for kind in (positive, ~positive)]
  tp, fp, fn, tn = (np.asarray(weights, np.float64) @ np.stack(cells, 1).astype(np.float64)).T
  margins = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  f1, accuracy = ratio(2 * tp, 2 * tp + fp + fn), ratio(tp + tn, tp + fp + fn + tn)
  mcc = ratio(tp * tn - fp * fn, margins, 0.0)
  metrics = np.stack([f1, accuracy, mcc, ratio(tp, tp + fn), ratio(tn, tn + fp)], axis=1)
  return np.where(((tp + fn > 0) & (tn + fp > 0))[:, None], metrics, np.nan)


def sensitivity_at(
  specificity: Float64[np.ndarray, " R"],
  scores: Num[np.ndarray, " N"],
  positive: Bool[np.ndarray, " N"],
  weights: Num[np.ndarray, "R N"],
) -> Float64[np.ndarray, " R"]:
  """Reads the ROC curve of each weighting at a specificity, the highest where the curve rises.

  Between two thresholds it is a straight line: what a draw between both gives. Specificities within
  1e-9 are one. NaN where the positive or the negative examples have no weight, or the specificity
  is NaN. Raises ValueError where a score is NaN.
  """
  tp, fp = (np.pad(side, ((0, 0), (1, 0))) for side in _cumulated(scores, positive, weights))
  rise, fall = ratio(tp, tp[:, -1:]), ratio(fp, fp[:, -1:])
  # A little to the right, so that rounding does not miss the end of a rise.
  at = 1 - specificity + 1e-9
  read = [np.interp(x, *curve) for x, *curve in zip(at, fall, rise, strict=True)]
  return np.where((tp[:, -1] > 0) & (fp[:, -1] > 0), read, np.nan)


def best_threshold(scores: Num[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
  """Finds the highest threshold of the highest F1 of `scores >= threshold`, midway between scores.

  Raises ValueError where a score is NaN, or all examples are positive, or all negative.
  """
  distinct, f1 = _f1_by_threshold(scores, positive)
  best = int(np.argmax(f1))
  if best + 1 == len(distinct):
    return float(distinct[best])
  middle = (distinct[best] + distinct[best + 1]) / 2
  return float(middle if middle > distinct[best + 1] else distinct[best])


def least_best_threshold(scores: Num[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
  """Finds the least score that is a threshold of the highest F1 of `scores >= threshold`.

  Raises ValueError as `best_threshold`.
  """
  distinct, f1 = _f1_by_threshold(scores, positive)
  return float(distinct[::-1][np.argmax(f1[::-1])])


def top(scores: Float[np.ndarray, "N k"]) -> Float64[np.ndarray, "N k"]:
  """Assigns each example to the class of the highest score: 1 there, 0 elsewhere.

  Classes within `TOLERANCE` of the highest share it, so that a model that tells nothing gets
  chance. Raises ValueError where a score is NaN.
  """
  if np.isnan(scores).any():
    raise ValueError("a score is NaN")
  first = scores >= scores.max(1, keepdims=True) - TOLERANCE
  return first / first.sum(1, keepdims=True)


def class_metrics(
  given: Float[np.ndarray, "N k"], classes: Int[np.ndarray, " N"], weights: Num[np.ndarray, "R N"]
) -> Float64[np.ndarray, "R M"]:
  """Computes accuracy, macro F1 and the F1 of each of k classes.

  `given` are the shares of each example that are given to the classes, of sum 1; M is 2 + k. The F1
  of a class whose examples have no weight is NaN, and no part of the macro F1.
  """
  weights = np.asarray(weights, np.float64)
  truth = classes[:, None] == np.arange(given.shape[1])
  hits, guesses, size = weights @ (given * truth), weights @ given, weights @ truth
  f1 = np.where(size > 0, ratio(2 * hits, guesses + size), np.nan)
  accuracy = ratio(hits.sum(1), weights.sum(1))
  return np.concatenate([accuracy[:, None], nanmean(f1)[:, None], f1], axis=1)


def _f1_by_threshold(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Distinct scores [S], from the highest, and the F1 of each as threshold."""
  if positive.all() or not positive.any():
    raise ValueError("examples of one kind have no threshold")
  tp, fp = (counts[0] for counts in _cumulated(scores, positive, np.ones((1, len(scores)))))
  return np.unique(np.asarray(scores, np.float64))[::-1], 2 * tp / (tp + fp + tp[-1])


def _cumulated(
  scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Cumulates positive and negative weight [R, S] by distinct score, from the highest."""
  if np.isnan(scores).any():
    raise ValueError("a score is NaN")
  order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
  ordered = np.asarray(scores)[order]
  weights = np.asarray(weights, np.float64)[:, order]
  if not len(order):
    return weights, weights
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
  kinds = (positive[order], ~positive[order])
  return tuple(np.cumsum(np.add.reduceat(weights * kind, starts, axis=1), axis=1) for kind in kinds)
