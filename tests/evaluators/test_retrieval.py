"""Retrieval against plain loops, ties, duplicates, chance, blocks."""

import itertools
import math

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example
from plan_jax.evaluators import retrieval


def _unit(values):
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


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
  ranks = retrieval.rank(lambda a, b: scores[a:b], keys)
  for i in range(6):
    assert ranks.expected()[i] == pytest.approx(_brute_rank(scores, keys, i))
    for k in (1, 2, 5):
      assert ranks.recall(k)[i] == pytest.approx(_brute_recall(scores, keys, i, k))


def test_ranks_without_ties_agree_with_sorting_and_blocks_do_not_matter():
  rng = np.random.default_rng(0)
  v, t = _unit(rng.normal(size=(150, 8))), _unit(rng.normal(size=(150, 8)))
  keys = rng.integers(0, 120, 150)
  ranks = retrieval.rank_embeddings(v, t, keys, block=1000)
  scores = v.astype(np.float64) @ t.T.astype(np.float64)
  for i in range(150):
    order = np.argsort(-scores[i])
    assert ranks.expected()[i] == 1 + next(r for r, j in enumerate(order) if keys[j] == keys[i])
  for block in (1, 7, 64):
    other = retrieval.rank_embeddings(v, t, keys, block=block)
    for name in ("above", "tied_hits", "tied_misses"):
      assert (getattr(other, name) == getattr(ranks, name)).all()
  recall = ranks.recall(5)
  assert set(recall.tolist()) <= {0.0, 1.0} and recall.mean() == (ranks.expected() <= 5).mean()


def test_a_block_is_all_that_is_asked_for():
  asked = []

  def scores(start, stop):
    asked.append((start, stop))
    return np.zeros((stop - start, 10))

  retrieval.rank(scores, np.arange(10), block=4)
  assert asked == [(0, 4), (4, 8), (8, 10)]


def test_constant_scores_are_chance():
  keys = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  ranks = retrieval.rank(lambda a, b: np.full((b - a, 12), 0.7), keys)
  recalls, _ = retrieval.chance(keys)
  for k in retrieval.AT:
    assert ranks.recall(k).mean() == pytest.approx(recalls[k])
  assert ranks.expected()[5] == 6.5 and ranks.expected()[0] == pytest.approx(13 / 4)
  # So is a model that maps everything to one point, whatever rounding does to its products.
  same = _unit(np.random.default_rng(0).normal(size=(1, 64))).repeat(333, 0)
  collapsed = retrieval.rank_embeddings(same, same, np.arange(333), block=50)
  assert (collapsed.expected() == 167).all()
  assert collapsed.recall(10) == pytest.approx(np.full(333, 10 / 333))


def test_chance_agrees_with_simulation():
  rng = np.random.default_rng(0)
  keys = np.array([0] * 5 + [1] * 3 + list(range(2, 34)))
  recalls, median = retrieval.chance(keys)
  found = []
  for _ in range(400):
    scores = rng.random((40, 40))
    found.append(retrieval.rank(lambda a, b, s=scores: s[a:b], keys, tolerance=0).expected())
  found = np.concatenate(found)
  for k in retrieval.AT:
    assert recalls[k] == pytest.approx((found <= k).mean(), abs=0.01)
  assert median == pytest.approx(np.median(found), abs=1)
  for n in (4, 5, 500):
    recalls, median = retrieval.chance(np.arange(n))
    assert recalls[1] == pytest.approx(1 / n) and median == (n + 1) / 2
  assert retrieval.chance(np.zeros(7)) == ({1: 1.0, 5: 1.0, 10: 1.0}, 1.0)


def test_bad_input_is_named():
  one = np.eye(3, dtype=np.float32)
  with pytest.raises(ValueError, match="do not fit"):
    retrieval.rank_embeddings(one, one[:2], np.arange(3))
  with pytest.raises(ValueError, match="candidate is not of unit norm"):
    retrieval.rank_embeddings(one, 2 * one, np.arange(3))
  with pytest.raises(ValueError, match="query is not of unit norm"):
    retrieval.rank_embeddings(np.full((3, 3), np.nan, np.float32), one, np.arange(3))
  with pytest.raises(ValueError, match="NaN"):
    retrieval.rank(lambda a, b: np.full((b - a, 3), np.nan), np.arange(3))
  with pytest.raises(ValueError, match="scores are"):
    retrieval.rank(lambda a, b: np.zeros((b - a, 4)), np.arange(3))


class _Model:
  """Embeds an image by its brightness and a report by the number in it."""

  def __init__(self):
    self.asked = []

  def embed_images(self, images):
    self.asked.append(len(images))
    return self._circle([image.mean() for image in images])

  def embed_texts(self, texts):
    return self._circle([float(text[0].lower().split("level ")[1].strip(". ")) for text in texts])

  @staticmethod
  def _circle(levels):
    angle = np.array(levels) / 80
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def _example(i, level, text, kind="report"):
  image = cv2.imencode(".png", np.full((8, 10), level, np.uint8))[1].tobytes()
  return Example(
    image=image,
    width=10,
    height=8,
    image_id=f"i{i}",
    study_id=f"s{i}",
    patient_id=f"p{i // 2}",
    sentences=text,
    text_kind=kind,
  )


def _examples():
  for i in range(40):
    yield _example(i, 5 * i, (f"Level {5 * i}.",))
  yield _example(40, 0, ("level 0",))  # the same words as the first: a hit for either
  yield _example(41, 7, ())
  yield _example(42, 9, ("...",))


def test_evaluator_from_end_to_end():
  model = _Model()
  rows = retrieval.evaluate_retrieval(model, _examples(), data="toy/test", batch=16, resamples=50)
  assert model.asked == [16, 16, 9]
  assert len(rows) == 16 and {(r.group, r.n, r.gallery) for r in rows} == {("all", 41, 41)}
  cells = {(r.metric, r.model): r for r in rows}
  for direction in ("image-to-text", "text-to-image"):
    assert cells[f"R@1 {direction}", "run"].value == 1
    assert cells[f"median rank {direction}", "run"].value == 1
    expected = (39 / 41 + 2 * 2 / 41) / 41
    assert cells[f"R@1 {direction}", "chance"].value == pytest.approx(expected)
    assert math.isnan(cells[f"R@1 {direction}", "chance"].low)
    assert 19 <= cells[f"median rank {direction}", "chance"].value <= 21
  assert retrieval.evaluate_retrieval(model, [_example(0, 1, ())], data="toy") == []


def test_kinds_of_text_get_galleries_of_their_own():
  examples = list(_examples())[:40]
  examples += [_example(100 + i, 5 * i + 1, (f"level {5 * i + 1}",), "labels") for i in range(10)]
  rows = retrieval.evaluate_retrieval(_Model(), examples, data="toy", resamples=20)
  assert {(r.group, r.gallery) for r in rows} == {("all", 50), ("labels", 10), ("report", 40)}
