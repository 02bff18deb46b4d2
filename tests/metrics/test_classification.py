"""Weighted figures of classification against plain loops over repeated units."""

import itertools
import math

import numpy as np
import pytest

from plan_jax.metrics import bootstrap, classification


def repeated(weights, *arrays):
  return [np.repeat(np.asarray(some), weights, axis=0).tolist() for some in arrays]


def naive_average_precision(scores, positive):
  if not any(positive) or all(positive):
    return math.nan
  total = last = 0.0
  for threshold in sorted(set(scores), reverse=True):
    taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
    recall = sum(taken) / sum(positive)
    total += (recall - last) * sum(taken) / len(taken)
    last = recall
  return total


def naive_thresholded(predicted, positive):
  if not any(positive) or all(positive):
    return [math.nan] * 5
  pairs = list(zip(predicted, positive, strict=True))
  tp, fp, fn, tn = (pairs.count(c) for c in ((1, 1), (1, 0), (0, 1), (0, 0)))
  precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn)
  f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
  # Pearson's correlation of two columns of 0 and 1.
  constant = len(set(predicted)) == 1
  mcc = 0.0 if constant else np.corrcoef(np.float64(predicted), np.float64(positive))[0, 1]
  return [f1, (tp + tn) / len(pairs), mcc, recall, tn / (tn + fp)]


@pytest.mark.parametrize("seed", range(6))
def test_two_kinds_agree_with_plain_loops(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 25))
  scores = rng.integers(-2, 3, n).astype(np.float32) if seed % 2 else rng.normal(size=n)
  positive = rng.random(n) < 0.4
  weights = rng.integers(0, 4, (15, n))
  weights[0], weights[1] = 1, 0
  predicted = scores >= 0
  precision = classification.average_precision(scores, positive, weights)
  figures = classification.thresholded(predicted, positive, weights)
  for r, row in enumerate(weights):
    s, p, guess = repeated(row, scores, positive, predicted)
    assert precision[r] == pytest.approx(naive_average_precision(s, p), nan_ok=True)
    assert figures[r] == pytest.approx(naive_thresholded(guess, p), nan_ok=True)
  assert np.isnan(precision[1]) and np.isnan(figures[1]).all()


def test_average_precision_by_hand():
  def of(scores, positive):
    n = len(scores)
    arrays = np.array(scores, float), np.array(positive, bool), np.ones((1, n))
    return classification.average_precision(*arrays)[0]

  assert of([3, 2, 1], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
  assert of([1, 1, 1, 1], [1, 0, 0, 0]) == 0.25  # all tied: the prevalence
  assert of([4, 3, 2, 1], [1, 1, 0, 0]) == 1
  assert (
    math.isnan(of([1, 2], [1, 1])) and math.isnan(of([1, 2], [0, 0])) and math.isnan(of([], []))
  )
  with pytest.raises(ValueError, match="NaN"):
    of([1, math.nan], [0, 1])


def naive_sensitivity_at(specificity, scores, positive):
  """Walks along the curve; `specificity` is a share of the negative examples."""
  if not any(positive) or all(positive):
    return math.nan
  points = [(0.0, 0.0)]
  for threshold in sorted(set(scores), reverse=True):
    taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
    negatives = len(positive) - sum(positive)
    points.append(((len(taken) - sum(taken)) / negatives, sum(taken) / sum(positive)))
  x = 1 - specificity
  if at := [y for fall, y in points if math.isclose(fall, x, abs_tol=1e-9)]:
    return max(at)
  left, right = next(p for p in itertools.pairwise(points) if p[0][0] < x < p[1][0])
  return left[1] + (x - left[0]) / (right[0] - left[0]) * (right[1] - left[1])


@pytest.mark.parametrize("seed", range(6))
def test_a_roc_curve_is_read_as_by_a_plain_walk(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 25))
  scores = rng.integers(-2, 3, n) / 7 if seed % 2 else rng.normal(size=n)
  positive, answers = rng.random(n) < 0.4, rng.random(n) < 0.5
  weights = rng.integers(0, 4, (25, n))
  weights[0], weights[1] = 1, 0
  points = classification.thresholded(answers, positive, weights)[:, 4]
  points[5:10] = rng.random(5)
  got = classification.sensitivity_at(points, scores, positive, weights)
  for r, row in enumerate(weights):
    walked = naive_sensitivity_at(points[r], *repeated(row, scores, positive))
    assert got[r] == pytest.approx(walked, abs=1e-7, nan_ok=True)
  assert np.isnan(got[1])


def test_ends_of_a_roc_curve():
  scores, positive = np.array([3.0, 2.0, 1.0]), np.array([True, False, True])
  weights = np.ones((4, 3))
  got = classification.sensitivity_at(np.array([1, 0.5, 0, np.nan]), scores, positive, weights)
  np.testing.assert_allclose(got, [0.5, 0.5, 1, np.nan], atol=1e-7)
  # A threshold that all share is a line from end to end.
  got = classification.sensitivity_at(np.array([0.75]), np.zeros(3), positive, weights[:1])
  np.testing.assert_allclose(got, [0.25], atol=1e-7)
  with pytest.raises(ValueError, match="NaN"):
    classification.sensitivity_at(np.ones(4), scores * np.nan, positive, weights)


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_is_better_than_the_best(seed):
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 6, 20) / 7 if seed % 2 else rng.random(20)
  positive = rng.random(20) < 0.3
  positive[0], positive[1] = True, False

  def f1(threshold):
    return classification.thresholded(scores >= threshold, positive, np.ones((1, 20)))[0, 0]

  found = classification.best_threshold(scores, positive)
  every = {s: f1(s) for s in scores}
  highest = max(s for s, value in every.items() if value == max(every.values()))
  assert f1(found) == max(every.values())
  assert (scores >= found).sum() == (scores >= highest).sum()
  least = min(s for s, value in every.items() if value == max(every.values()))
  assert classification.least_best_threshold(scores, positive) == least
  lower = scores[scores < highest]
  assert found == pytest.approx((highest + lower.max()) / 2 if len(lower) else highest)


def test_thresholds_of_degenerate_scores():
  kinds = np.array([True, False])
  assert classification.best_threshold(np.array([0.5, 0.5]), kinds) == 0.5
  near = np.array([np.nextafter(0.5, 1), 0.5])  # no number lies between
  assert classification.best_threshold(near, kinds) == near[0]
  with pytest.raises(ValueError, match="one kind"):
    classification.best_threshold(np.zeros(2), np.ones(2, bool))
  with pytest.raises(ValueError, match="NaN"):
    classification.best_threshold(np.array([0, np.nan]), kinds)


def naive_classes(given, of, k):
  accuracy = np.mean([g == t for g, t in zip(given, of, strict=True)]) if of else math.nan
  each = []
  for c in range(k):
    tp = sum(g == c == t for g, t in zip(given, of, strict=True))
    each.append(2 * tp / (given.count(c) + of.count(c)) if c in of else math.nan)
  known = [value for value in each if not math.isnan(value)]
  return [accuracy, np.mean(known) if known else math.nan, *each]


def test_classes_agree_with_plain_loops():
  rng = np.random.default_rng(0)
  scores, of = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)  # nothing is of the last class
  weights = rng.integers(0, 3, (12, 30))
  weights[0], weights[1] = 1, 0
  weights[2] *= of != 1
  got = classification.class_metrics(classification.top(scores), of, weights)
  for r, row in enumerate(weights):
    given, truth = repeated(row, scores.argmax(1), of)
    assert got[r] == pytest.approx(naive_classes(given, truth, 4), nan_ok=True)


def test_tied_classes_are_shared():
  given = classification.top(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]]))
  np.testing.assert_allclose(given, [[0.5, 0.5, 0], [1 / 3] * 3, [0, 0, 1]])
  of = np.array([0, 1, 2])
  assert classification.class_metrics(given, of, np.ones((1, 3)))[0, 0] == pytest.approx(11 / 18)
  with pytest.raises(ValueError, match="NaN"):
    classification.top(np.array([[np.nan, 1]]))


def test_intervals_of_figures_agree_with_draws_one_by_one():
  rng = np.random.default_rng(3)
  n = 40
  scores, positive = rng.integers(0, 9, n) / 9, rng.random(n) < 0.5
  groups = rng.choice(["a", "b"], n).tolist()
  clusters = [f"p{i}" for i in rng.integers(0, 9, n)]

  def measure(units, weights):
    return np.stack(
      [
        classification.average_precision(scores[units], positive[units], weights),
        classification.thresholded(scores[units] > 0.4, positive[units], weights)[:, 2],
      ],
      axis=1,
    )

  got = bootstrap.grouped_metrics(measure, 2, groups, clusters, resamples=60, seed=4)
  draws = np.concatenate(list(bootstrap.example_weights(clusters, resamples=60, seed=4)))
  naive = {}
  for name in "ab":
    of = np.array(groups) == name
    for draw in [np.ones(n, int), *draws]:
      s, p = repeated(draw[of], scores[of], positive[of])
      figures = (
        naive_average_precision(s, p),
        naive_thresholded([value > 0.4 for value in s], p)[2],
      )
      naive.setdefault(name, []).append(figures)
  naive["macro"] = np.mean([naive["a"], naive["b"]], axis=0)
  assert list(got) == ["macro", "a", "b"]
  for name, summaries in got.items():
    for m, s in enumerate(summaries):
      whole, *drawn = np.array(naive[name])[:, m]
      ends = np.nanpercentile(drawn, [2.5, 97.5])
      assert (s.value, s.low, s.high) == pytest.approx((whole, *ends))
      assert s.n == (n if name == "macro" else groups.count(name))


def test_figures_by_group_of_nothing():
  got = bootstrap.grouped_metrics(None, 2, [], [])
  assert list(got) == ["macro"] and [s.n for s in got["macro"]] == [0, 0]
  assert all(math.isnan(s.value) and math.isnan(s.low) for s in got["macro"])
  with pytest.raises(ValueError, match="1 groups and 2 clusters"):
    bootstrap.grouped_metrics(None, 1, ["a"], ["p", "q"])
  with pytest.raises(ValueError, match="called 'macro'"):
    bootstrap.grouped_metrics(None, 1, ["macro"], ["p"])
