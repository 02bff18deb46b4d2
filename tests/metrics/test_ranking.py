"""Ranks and precision against plain loops: ties, duplicates, chance, blocks."""

import itertools

import numpy as np
import pytest

from plan_jax.metrics.ranking import chance_ranks, precision_at, rank

AT = (1, 5, 10)


def _brute_recall(scores, keys, i, k):
  """The mean over all orders of the tied of: is a hit among the first k? Tiny galleries only."""
  n, wins, orders = len(keys), 0, 0
  for order in itertools.permutations(range(n)):
    ranked = sorted(range(n), key=lambda j: (-scores[i][j], order[j]))
    wins += any(keys[j] == keys[i] for j in ranked[:k])
    orders += 1
  return wins / orders


def _brute_rank(scores, keys, i):
  n, total, orders = len(keys), 0, 0
  for order in itertools.permutations(range(n)):
    ranked = sorted(range(n), key=lambda j: (-scores[i][j], order[j]))
    total += next(r for r, j in enumerate(ranked, 1) if keys[j] == keys[i])
    orders += 1
  return total / orders


@pytest.mark.parametrize("seed", range(6))
def test_ranks_with_ties_agree_with_all_orders(seed):
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 3, (6, 6)).astype(np.float32)
  keys = rng.integers(0, 4, 6)
  ranks = rank(lambda a, b: scores[a:b], keys)
  for i in range(6):
    assert ranks.expected()[i] == pytest.approx(_brute_rank(scores, keys, i))
    for k in (1, 2, 5):
      assert ranks.recall(k)[i] == pytest.approx(_brute_recall(scores, keys, i, k))


def test_ranks_without_ties_agree_with_sorting():
  rng = np.random.default_rng(0)
  scores, keys = rng.normal(size=(150, 150)), rng.integers(0, 120, 150)
  ranks = rank(lambda a, b: scores[a:b], keys)
  for i in range(150):
    order = np.argsort(-scores[i])
    assert ranks.expected()[i] == 1 + next(r for r, j in enumerate(order) if keys[j] == keys[i])
  recall = ranks.recall(5)
  assert set(recall.tolist()) <= {0.0, 1.0} and recall.mean() == (ranks.expected() <= 5).mean()


def test_a_block_is_all_that_is_asked_for():
  blocks = []

  def scores(start, stop):
    blocks.append((start, stop))
    return np.zeros((stop - start, 10))

  rank(scores, np.arange(10), block=4)
  assert blocks == [(0, 4), (4, 8), (8, 10)]


def test_constant_scores_are_chance():
  keys = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  ranks = rank(lambda a, b: np.full((b - a, 12), 0.7), keys)
  recalls, _ = chance_ranks(keys, AT)
  for k in AT:
    assert ranks.recall(k).mean() == pytest.approx(recalls[k])
  assert ranks.expected()[5] == 6.5 and ranks.expected()[0] == pytest.approx(13 / 4)


def test_chance_agrees_with_simulation():
  rng = np.random.default_rng(0)
  keys = np.array([0] * 5 + [1] * 3 + list(range(2, 34)))
  recalls, median = chance_ranks(keys, AT)
  expected = []
  for _ in range(400):
    scores = rng.random((40, 40))
    expected.append(rank(lambda a, b, s=scores: s[a:b], keys, tolerance=0.0).expected())
  expected = np.concatenate(expected)
  for k in AT:
    assert recalls[k] == pytest.approx((expected <= k).mean(), abs=0.01)
  assert median == pytest.approx(np.median(expected), abs=1)
  for n in (4, 5, 500):
    recalls, median = chance_ranks(np.arange(n), AT)
    assert recalls[1] == pytest.approx(1 / n) and median == (n + 1) / 2
  assert chance_ranks(np.zeros(7), AT) == ({1: 1.0, 5: 1.0, 10: 1.0}, 1.0)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="NaN"):
    rank(lambda a, b: np.full((b - a, 3), np.nan), np.arange(3))
  with pytest.raises(ValueError, match="scores are"):
    rank(lambda a, b: np.zeros((b - a, 4)), np.arange(3))


def test_precision_is_that_of_sorted_candidates():
  rng = np.random.default_rng(0)
  scores, hit = rng.normal(size=(7, 12)), rng.random((7, 12)) < 0.4
  got = precision_at(scores, hit, (1, 2, 5, 10))
  for q in range(7):
    order = np.argsort(-scores[q])
    for i, k in enumerate((1, 2, 5, 10)):
      assert got[q, i] == pytest.approx(hit[q, order[:k]].mean())


def test_ties_are_shared_as_all_orders_would():
  scores = np.array([[0.5, 0.2, 0.5, 0.5, 0.9, -np.inf]])
  hit = np.array([[True, True, False, False, True, True]])
  got = precision_at(scores, hit, (1, 2, 3, 4, 5))[0]
  orders = [
    order
    for order in itertools.permutations(range(5))
    if all(scores[0, a] >= scores[0, b] for a, b in itertools.pairwise(order))
  ]
  for i, k in enumerate((1, 2, 3, 4, 5)):
    assert got[i] == pytest.approx(np.mean([hit[0, list(order[:k])].mean() for order in orders]))
