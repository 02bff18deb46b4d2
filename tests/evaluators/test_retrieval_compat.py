import numpy as np
import pytest

from plan_jax.evaluators.embeddings import Pairs
from plan_jax.evaluators.retrieval_compat import compat_rows, score_compat


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embedded(n, seed=0):
  rng = np.random.default_rng(seed)
  images = unit(rng.normal(size=(n, 6)))
  texts = unit(images + 0.7 * unit(rng.normal(size=(n, 6))))
  names = [f"i{i}" for i in range(n)]
  return Pairs(images, texts, np.zeros(n, int), names, names, ["report"] * n, [{}] * n)


def cells(pairs, **more):
  rows = compat_rows(score_compat(pairs, **more), data="toy/test", resamples=20)
  return {(r.protocol, r.metric, r.model): r for r in rows}


def own_ranks(queries, candidates):
  """Zero-based, of each query's own pair among all, though all texts say the same."""
  scores = queries @ candidates.T
  return [int((row > row[i] + 1e-6).sum()) for i, row in enumerate(scores)]


@pytest.mark.parametrize("direction", ["image-to-text", "text-to-image"])
def test_by_hand(direction):
  pairs = embedded(47)
  got = cells(pairs, chunk=20)
  sides = (pairs.images, pairs.texts)[:: 1 if direction == "image-to-text" else -1]
  whole = own_ranks(*sides)
  for k in (1, 5, 10):
    row = got["compat-instance", f"R@{k} {direction}", "run"]
    assert row.value == pytest.approx(np.mean([r < k for r in whole])) and row.gallery == 47
  assert got["compat-instance", f"median rank {direction}", "run"].value == np.median(whole) + 1
  # The last gallery has seven pairs; each counts by its pairs.
  parts = [own_ranks(*(side[i : i + 20] for side in sides)) for i in (0, 20, 40)]
  for k in (1, 5, 10):
    row = got["compat-limitr-v2", f"R@{k} {direction}", "run"]
    assert row.value == pytest.approx(np.mean([r < k for p in parts for r in p]))
    assert (row.gallery, row.n) == (20, 47)
    chance = (40 * k / 20 + 7 * min(1, k / 7)) / 47
    assert got["compat-limitr-v2", f"R@{k} {direction}", "chance"].value == pytest.approx(chance)
  medians = [np.floor(np.median(p)) + 1 for p in parts]
  median = got["compat-limitr-v2", f"median rank {direction}", "run"]
  assert median.value == pytest.approx(np.average(medians, weights=[20, 20, 7]))


def test_small_and_empty_galleries():
  few = cells(embedded(5))
  for (protocol, metric, model), row in few.items():  # one gallery
    assert row.gallery == 5
    if protocol == "compat-instance" and "R@" in metric:
      assert few["compat-limitr-v2", metric, model].value == row.value
  assert len(few) == 2 * 14
  assert compat_rows(score_compat(None), data="x") == []
  same = embedded(8)
  images = np.repeat(same.images[:1], 8, axis=0)
  tied = Pairs(images, images, same.keys, same.ids, same.patients, same.kinds, same.labels)
  got = cells(tied)
  assert got["compat-instance", "R@5 image-to-text", "run"].value == pytest.approx(5 / 8)
