import itertools

import numpy as np
import pytest

from plan_jax.evaluators import class_retrieval
from plan_jax.evaluators.class_retrieval import single_finding
from plan_jax.evaluators.embeddings import Pairs


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embedded(images, texts, classes):
  n = len(classes)
  labels = [{"No Finding": 0, name: 1} if name else {"x": 0} for name in classes]
  names = [f"i{i}" for i in range(n)]
  return Pairs(images, texts, np.arange(n), names, names, ["report"] * n, labels)


def test_a_class_is_the_one_finding_that_is_there():
  assert single_finding({"a": 1, "b": 0, "c": -1}) == "a"
  assert single_finding({"a": 1, "b": 1}) == single_finding({"a": 0}) == single_finding({}) == ""
  assert single_finding({"No Finding": 1}) == ""


@pytest.mark.parametrize("block", [3, 100])
def test_scores_by_hand(block):
  rng = np.random.default_rng(1)
  classes = ["a"] * 8 + ["b"] * 5 + [""] * 2 + ["alone"]
  pairs = embedded(unit(rng.normal(size=(16, 4))), unit(rng.normal(size=(16, 4))), classes)
  run, baseline = class_retrieval.score_classes(pairs, block=block)
  assert run.ids == [f"i{i}\t" for i in range(13)] and run.groups == classes[:13]
  similarity = (pairs.images @ pairs.texts.T)[:13, :13]
  for direction, table in (("image-to-text", similarity), ("text-to-image", similarity.T)):
    for own, k in itertools.product(class_retrieval.OWN, (1, 2, 5, 10)):
      column = run.metrics.index(f"P@{k} {direction} {own}")
      for q in range(13):
        order = [j for j in np.argsort(-table[q]) if own == "with own" or j != q][:k]
        expected = np.mean([classes[j] == classes[q] for j in order])
        assert run.values[q, column] == pytest.approx(expected)
        size = 8 if q < 8 else 5
        chance = size / 13 if own == "with own" else (size - 1) / 12
        assert baseline.values[q, column] == pytest.approx(chance)
  rows = class_retrieval.class_rows((run, baseline), data="toy/test", resamples=20)
  cells = {(r.group, r.metric, r.model): r for r in rows}
  macro = cells["macro", "P@5 image-to-text without own", "run"]
  per = [cells[g, "P@5 image-to-text without own", "run"].value for g in "ab"]
  assert macro.value == pytest.approx(np.mean(per)) and macro.gallery == 12 and macro.n == 13
  assert cells["macro", "P@5 image-to-text with own", "run"].gallery == 13


def test_a_model_that_knows_the_class_and_one_that_knows_nothing():
  classes = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
  directions = np.repeat(np.eye(3), 20, axis=0).astype(np.float32)
  run, _ = class_retrieval.score_classes(embedded(directions, directions, classes))
  np.testing.assert_allclose(run.values, 1)
  same = np.ones((60, 3), np.float32) / np.sqrt(3)
  run, baseline = class_retrieval.score_classes(embedded(same, same, classes))
  np.testing.assert_allclose(run.values, baseline.values)


def test_too_little_to_score():
  x = unit(np.ones((3, 2)))
  assert class_retrieval.score_classes(None) is None
  assert class_retrieval.score_classes(embedded(x, x, ["a", "a", "b"])) is None
  assert class_retrieval.class_rows(None, data="x") == []
  run, _ = class_retrieval.score_classes(
    embedded(unit(np.ones((4, 2))), unit(np.ones((4, 2))), [*"aabb"])
  )
  assert {m.split()[0] for m in run.metrics} == {"P@1", "P@2"}
