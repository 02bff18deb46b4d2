import numpy as np
import pytest

from plan_jax.evaluators import class_retrieval, reranking, retrieval
from plan_jax.evaluators.retrieval import Embedded


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Model:
  """Local logits from a table."""

  has_local_scores, local_bytes = True, 1000

  def __init__(self, table, scale=2.0):
    self.table, self.scale = table, scale

  def local_logits(self, features, images, texts):
    assert features == "held"
    return self.table[images[:, :, None], texts[:, None, :]].astype(np.float32)

  def global_scale(self):
    return self.scale


def embedded(n=20, seed=0):
  rng = np.random.default_rng(seed)
  names = [f"i{i}" for i in range(n)]
  images, texts = (unit(rng.normal(size=(n, 5))) for _ in range(2))
  return Embedded(images, texts, np.arange(n) // 2, names, names, ["report"] * n, [{}] * n)


@pytest.mark.parametrize("top", [1, 6, 20, 50])
def test_ranks_by_hand(top):
  found = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  scores = reranking.scorer(model, found, lambda: "held", top=top)
  got = reranking.score_reranked(scores, found, block=7).example_scores
  similar = found.images @ found.texts.T
  for direction, near, local in (
    ("image-to-text", similar, model.table),
    ("text-to-image", similar.T, model.table.T),
  ):
    column = got.metrics.index(f"rank {direction}")
    for q in range(20):
      order = list(np.argsort(-near[q]))
      first = sorted(order[:top], key=lambda j, q=q: -(2 * near[q, j] + local[q, j]))
      order = [*first, *order[top:]]
      best = min(order.index(j) for j in range(20) if found.keys[j] == found.keys[q])
      assert got.values[q, column] == best + 1


def test_classes_by_hand():
  """Images without a class are no candidates; the own pair is one, or is not."""
  found = embedded()
  kinds = ["a", "b", "", "a", "b", "b", "", "a", "a", "b"] * 2
  found.labels[:] = [{kind: 1} if kind else {} for kind in kinds]
  model, top = Model(np.random.default_rng(1).normal(size=(20, 20))), 4
  scores = reranking.scorer(model, found, lambda: "held", top=top)
  got, _ = class_retrieval.score_classes(found, scores, block=7)
  chosen = [i for i, kind in enumerate(kinds) if kind]
  similar = found.images @ found.texts.T
  for direction, near, local in (
    ("image-to-text", similar, model.table),
    ("text-to-image", similar.T, model.table.T),
  ):
    for row, q in enumerate(chosen):
      order = sorted(chosen, key=lambda j, q=q: -near[q, j])
      first = sorted(order[:top], key=lambda j, q=q: -(2 * near[q, j] + local[q, j]))
      order = [*first, *order[top:]]
      for own in ("with own", "without own"):
        some = [j for j in order if own == "with own" or j != q]
        for k in (1, 2, 5, 10):
          column = got.metrics.index(f"P@{k} {direction} {own}")
          hits = [kinds[j] == kinds[q] for j in some[:k]]
          assert got.values[row, column] == pytest.approx(np.mean(hits))


def test_one_candidate_changes_nothing():
  found = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  one = reranking.score_reranked(
    reranking.scorer(model, found, lambda: "held", top=1), found
  ).example_scores
  plain = retrieval.score_retrieval(found)["all"].example_scores
  np.testing.assert_array_equal(one.values, plain.values)


def test_what_is_left_out(monkeypatch, capsys):
  model = Model(np.zeros((20, 20)))
  fail = lambda: pytest.fail("features were asked for")  # noqa: E731
  assert reranking.scorer(model, None, fail, top=5) is None
  assert reranking.scorer(model, embedded(), fail, top=0) is None
  monkeypatch.setattr(reranking, "MOST", 19)
  assert reranking.scorer(model, embedded(), fail, top=5) is None
  assert "gallery of 20 pairs is left out" in capsys.readouterr().out
  monkeypatch.setattr(reranking, "MOST", 20)
  monkeypatch.setattr(reranking, "MOST_BYTES", 19_999)
  assert reranking.scorer(model, embedded(), fail, top=5) is None
  assert "20 pairs is left out, 19 are the most" in capsys.readouterr().out
  model.has_local_scores = False
  assert reranking.scorer(model, embedded(), fail, top=5) is None
