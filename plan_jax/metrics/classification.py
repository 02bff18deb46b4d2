"""Figures of classification for many weightings of the same units at once, as a bootstrap asks.

Of two kinds: average precision, and with a threshold F1, accuracy, Matthews' correlation (MCC;
Biochimica et Biophysica Acta 405, 1975), sensitivity and specificity. Of k classes: accuracy and
the F1 of each class. Weights are how often a unit counts; a weighting without one of two kinds has
no figure, nor has a class without units an F1.
"""

import numpy as np

from plan_jax.evaluators.retrieval import TOLERANCE

THRESHOLDED = ("F1", "accuracy", "MCC", "sensitivity", "specificity")


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The sum over distinct scores, from the highest, of gained recall x precision down to there.

  ExampleScores of equal scores come together. It is scikit-learn's `average_precision_score`.

  Args:
    scores: [N] float.
    positive: [N] bool.
    weights: [R, N] >= 0.

  Returns:
    float64 [R]; NaN where the positive or the negative units have no weight.

  Raises:
    ValueError: a score is NaN.
  """
  tp, fp = _cumulated(scores, positive, weights)
  if not tp.shape[1]:
    return np.full(len(weights), np.nan)
  precision = _ratio(tp, tp + fp, 0.0)
  found = (np.diff(tp, axis=1, prepend=0) * precision).sum(1)
  return np.where(fp[:, -1] > 0, _ratio(found, tp[:, -1]), np.nan)


def thresholded(predicted: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """The figures of `THRESHOLDED` for R weightings.

  Args:
    predicted: [N] bool.
    positive: [N] bool.
    weights: [R, N] >= 0.

  Returns:
    float64 [R, 5]; NaN where the positive or the negative units have no weight. MCC is 0 where all
    predictions are alike.
  """
  cells = np.stack(
    [predicted & positive, predicted & ~positive, ~predicted & positive, ~predicted & ~positive],
    axis=1,
  )
  tp, fp, fn, tn = (np.asarray(weights, np.float64) @ cells.astype(np.float64)).T
  margins = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  figures = np.stack(
    [
      _ratio(2 * tp, 2 * tp + fp + fn),
      _ratio(tp + tn, tp + fp + fn + tn),
      _ratio(tp * tn - fp * fn, margins, 0.0),
      _ratio(tp, tp + fn),
      _ratio(tn, tn + fp),
    ],
    axis=1,
  )
  return np.where(((tp + fn > 0) & (tn + fp > 0))[:, None], figures, np.nan)


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
  """What `scores >= threshold` has the highest F1, the highest such; between two scores midway.

  Args:
    scores: [N] float.
    positive: [N] bool, of both kinds.

  Raises:
    ValueError: a score is NaN, or the units are of one kind.
  """
  if positive.all() or not positive.any():
    raise ValueError("units of one kind have no threshold")
  tp, fp = (some[0] for some in _cumulated(scores, positive, np.ones((1, len(scores)))))
  best = int(np.argmax(2 * tp / (tp + fp + tp[-1])))
  distinct = np.unique(np.asarray(scores, np.float64))[::-1]
  if best + 1 == len(distinct):
    return float(distinct[best])
  middle = (distinct[best] + distinct[best + 1]) / 2
  return float(middle if middle > distinct[best + 1] else distinct[best])


def top(scores: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
  """Which class each unit is given: scores [N, k] -> [N, k], 1 for the highest.

  Classes within `tolerance` of the highest share it, so that a model that tells nothing gets
  chance. Raises ValueError where a score is NaN.
  """
  if np.isnan(scores).any():
    raise ValueError("a score is NaN")
  first = scores >= scores.max(1, keepdims=True) - tolerance
  return first / first.sum(1, keepdims=True)


def class_figures(given: np.ndarray, of: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Accuracy, macro F1 and the F1 of each class, for R weightings.

  Args:
    given: [N, k] float, the share of each unit that is given to a class, rows of sum 1.
    of: int [N], the true classes.
    weights: [R, N] >= 0.

  Returns:
    float64 [R, 2 + k]. The F1 of a class whose units have no weight is NaN, and no part of the
    macro F1.
  """
  weights = np.asarray(weights, np.float64)
  truth = of[:, None] == np.arange(given.shape[1])
  hits, guesses, size = weights @ (given * truth), weights @ given, weights @ truth
  f1 = np.where(size > 0, _ratio(2 * hits, guesses + size), np.nan)
  known = ~np.isnan(f1)
  macro = _ratio(np.where(known, f1, 0).sum(1), known.sum(1))
  accuracy = _ratio(hits.sum(1), weights.sum(1))
  return np.concatenate([accuracy[:, None], macro[:, None], f1], axis=1)


def _cumulated(
  scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Positive and negative weight [R, S] at or above each distinct score, from the highest."""
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


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
  return np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=whole > 0)
