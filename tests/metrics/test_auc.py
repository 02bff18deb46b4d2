"""Areas under the ROC curve against plain loops, and their intervals."""

import math

import numpy as np
import pytest

from plan_jax.metrics import auc, bootstrap


def _brute(scores, positive, weights):
  """Over all pairs of a positive and a negative unit."""
  won = pairs = 0.0
  for a, high, w in zip(scores, positive, weights, strict=True):
    for b, other, u in zip(scores, positive, weights, strict=True):
      if high and not other:
        pairs += w * u
        won += w * u * (1.0 if a > b else 0.5 if a == b else 0.0)
  return won / pairs if pairs else math.nan


@pytest.mark.parametrize("seed", range(8))
def test_areas_agree_with_all_pairs(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(1, 30))
  scores = rng.integers(-2, 3, n).astype(np.float32) if seed % 2 else rng.normal(size=n)
  positive = rng.random(n) < 0.4
  weights = rng.integers(0, 4, (12, n))
  weights[0], weights[1] = 1, 0
  expected = [_brute(scores.tolist(), positive.tolist(), row.tolist()) for row in weights]
  got = auc.auc(scores, positive, weights)
  assert got.dtype == np.float64 and got == pytest.approx(expected, nan_ok=True)
  assert math.isnan(got[1])


def test_areas_by_hand():
  def area(scores, positive):
    return auc.auc(np.array(scores), np.array(positive, bool), np.ones((1, len(scores))))[0]

  assert area([1, 2, 3, 4], [0, 0, 1, 1]) == 1 and area([1, 2, 3, 4], [1, 1, 0, 0]) == 0
  assert area([5, 5, 5], [0, 1, 1]) == 0.5
  assert area([1, 2, 2, 3], [0, 1, 0, 1]) == pytest.approx(3.5 / 4)
  assert area([-math.inf, 0, math.inf], [0, 0, 1]) == 1
  assert math.isnan(area([1, 2], [1, 1])) and math.isnan(area([], []))
  with pytest.raises(ValueError, match="NaN"):
    area([1, math.nan], [0, 1])


def test_groups_and_intervals_agree_with_plain_loops(monkeypatch):
  rng = np.random.default_rng(1)
  n = 50
  scores = rng.integers(0, 6, n).astype(float)
  positive = rng.random(n) < 0.5
  groups = rng.choice(["a", "b", "c"], n, p=[0.5, 0.4, 0.1])
  positive[groups == "c"] = True  # of one kind only
  clusters = [f"p{i}" for i in rng.integers(0, 10, n)]
  got = auc.grouped(scores, positive, groups.tolist(), clusters, resamples=150, seed=5)
  assert list(got) == ["macro", "a", "b", "c"]

  draws = np.concatenate(list(bootstrap.example_weights(clusters, resamples=150, seed=5)))

  def area(name, weights):
    some = groups == name
    return _brute(scores[some].tolist(), positive[some].tolist(), weights[some].tolist())

  by_draw = {name: [area(name, draw) for draw in draws] for name in "abc"}
  for name in "ab":
    assert got[name].value == pytest.approx(area(name, np.ones(n)))
    assert got[name].n == (groups == name).sum()
    ends = np.nanpercentile(by_draw[name], [2.5, 97.5])
    assert (got[name].low, got[name].high) == pytest.approx(tuple(ends))
  macro = np.nanmean([by_draw["a"], by_draw["b"]], axis=0)
  assert got["macro"].value == pytest.approx((got["a"].value + got["b"].value) / 2)
  assert got["macro"].low == pytest.approx(np.percentile(macro, 2.5))
  assert got["macro"].n == got["a"].n + got["b"].n
  assert math.isnan(got["c"].value) and math.isnan(got["c"].low)

  monkeypatch.setattr(bootstrap, "_BLOCK", 120)  # two draws at a time
  again = auc.grouped(scores, positive, groups.tolist(), clusters, resamples=150, seed=5)
  assert repr(again) == repr(got)


def test_one_patient_or_no_draws_give_no_interval():
  arguments = (np.arange(4.0), np.array([False, True, False, True]), ["g"] * 4)
  for clusters, resamples in ((["p"] * 4, 50), (list("pqrs"), 0)):
    got = auc.grouped(*arguments, clusters, resamples=resamples)
    assert got["g"].value == 0.75
    assert all(math.isnan(x) for s in got.values() for x in (s.low, s.high))


def test_bad_or_empty_input():
  got = auc.grouped(np.zeros(0), np.zeros(0, bool), [], [])
  assert list(got) == ["macro"] and math.isnan(got["macro"].value) and got["macro"].n == 0
  with pytest.raises(ValueError, match="3 scores, 3 kinds, 2 groups"):
    auc.grouped(np.zeros(3), np.zeros(3, bool), ["g"] * 2, ["p"] * 3)
  with pytest.raises(ValueError, match="called 'macro'"):
    auc.grouped(np.zeros(1), np.zeros(1, bool), ["macro"], ["p"])
