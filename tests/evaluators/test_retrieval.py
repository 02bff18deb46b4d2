"""Retrieval against plain loops, ties, duplicates, chance, blocks; results files and tables."""

import itertools
import json
import math

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example
from plan_jax.evaluators import retrieval
from plan_jax.results import rows as results
from plan_jax.results.rows import Evaluation, Row


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


def _rows():
  grounding = ("grounding", "grounding-v1", "toy/test")
  retrieval_all = ("retrieval", "retrieval-v1", "toy/test", "all", "R@5 image-to-text")
  nan = math.nan
  return [
    Row(*grounding, "effusion", "mIoU", "run", 0.25, 0.2, 0.31, 40),
    Row(*grounding, "effusion", "mIoU", "centre", 0.125, 0.1, 0.15, 40),
    Row(*grounding, "macro", "mIoU", "run", 0.5, 0.45, 0.55, 90),
    Row(*grounding, "macro", "mIoU", "centre", 0.111, 0.1, 0.12, 90),
    Row(*grounding, "macro", "signed CNR", "run", nan, nan, nan, 0),
    Row(*retrieval_all, "run", 0.4, 0.3, 0.5, 500, 500),
    Row(*retrieval_all, "chance", 0.01, nan, nan, 500, 500),
  ]


def test_results_come_back_as_written(tmp_path):
  path = tmp_path / "deep" / "evaluation.json"
  results.write(path, Evaluation(1200, _rows(), {"toy/test": "ab"}))
  raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
  assert raw["step"] == 1200 and raw["rows"][4]["value"] is None
  assert set(raw["rows"][0]) == {
    "task", "protocol", "data", "group", "metric", "model", "value", "low", "high", "n"
  }  # fmt: skip
  assert raw["rows"][5]["gallery"] == 500
  found = results.read(path)
  assert found.step == 1200 and repr(found.rows) == repr(_rows())
  assert found.data == {"toy/test": "ab"}
  assert list(path.parent.iterdir()) == [path]
  with pytest.raises(ValueError, match="infinite"):
    row = Row("t", "p", "d", "g", "m", "run", math.inf, 0, 0, 1)
    results.write(path, Evaluation(1, [row], {}))
  assert results.read(path).step == 1200  # a failed write leaves the old file


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.pop("step"), "'step'"),
    (lambda c: c.update(rows={}), "no list of 'rows'"),
    (lambda c: c.pop("data"), "'data' is None"),
    (lambda c: c.update(data={"toy/test": 1}), "'data'"),
    (lambda c: c["rows"].append(3), "row 7 is not an object"),
    (lambda c: c["rows"][2].pop("value"), "row 2: 'value' is 'missing'"),
    (lambda c: c["rows"][2].update(low="0"), "row 2: 'low'"),
    (lambda c: c["rows"][1].update(n=1.5), "row 1: 'n'"),
    (lambda c: c["rows"][1].update(model=None), "row 1: 'model'"),
  ],
)
def test_broken_results_are_named(tmp_path, change, message):
  path = tmp_path / "evaluation.json"
  results.write(path, Evaluation(1, _rows(), {}))
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f"evaluation.json.*{message}"):
    results.read(path)
  path.write_text("{")
  with pytest.raises(ValueError, match="not JSON"):
    results.read(path)


def test_table_shows_the_run_beside_its_floors():
  lines = results.table(_rows()).splitlines()
  assert lines[0] == "grounding on toy/test (grounding-v1)"
  assert lines[1].split() == ["group", "metric", "run", "[95", "%", "interval]", "centre", "n"]
  assert lines[2].split() == ["macro", "mIoU", "0.500", "[0.450,", "0.550]", "0.111", "90"]
  assert lines[3].split() == ["signed", "CNR", "-", "-", "0"]
  assert lines[4].split()[0] == "effusion"
  assert lines[7].split()[-2:] == ["n", "gallery"]
  assert lines[8].split()[-3:] == ["0.010", "500", "500"]
  assert results.table([]) == ""


def test_headline_is_short_and_has_floors():
  lines = results.headline(_rows()).splitlines()
  assert len(lines) == 3
  assert lines[0].split()[2:] == ["macro", "signed", "CNR", "-", "(n", "0)"]
  assert "macro mIoU" in lines[1] and "0.500 [0.450, 0.550]" in lines[1]
  assert "centre 0.111" in lines[1] and "n 90" in lines[1]
  assert "R@5 image-to-text" in lines[2] and "gallery 500" in lines[2]
  assert lines[2].endswith("chance 0.010")
  assert results.headline([]) == ""


@pytest.mark.parametrize(
  ("metric", "low", "high", "expected"),
  [
    ("mIoU", 0.3, 0.4, "better"),
    ("mIoU", 0.1, 0.3, "level"),
    ("mIoU", 0.0, 0.1, "worse"),
    ("median rank text-to-image", 0.0, 0.05, "better"),
    ("median rank text-to-image", 0.3, 0.4, "worse"),
    ("mIoU", math.nan, math.nan, ""),
  ],
)
def test_standing_to_the_best_floor(metric, low, high, expected):
  def row(model, value, low=math.nan, high=math.nan):
    return Row("t", "p", "d", "g", metric, model, value, low, high, 9)

  cells = {"run": row("run", (low + high) / 2, low, high)}
  assert results.standing(cells) == ""
  cells |= {"none": row("none", math.nan), "good": row("good", 0.2), "bad": row("bad", 0.15)}
  if "rank" in metric:
    assert results.best_floor(cells).model == "bad"
  else:
    assert results.best_floor(cells).model == "good"
  assert results.standing(cells) == expected
