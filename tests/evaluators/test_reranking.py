import numpy as np
import pytest

from plan_jax.evaluators import class_retrieval, reranking, retrieval
from plan_jax.evaluators.embeddings import Pairs


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
  return Pairs(images, texts, np.arange(n) // 2, names, names, ["report"] * n, [{}] * n)


@pytest.mark.parametrize("top", [1, 6, 20, 50])
def test_ranks_by_hand(top):
  pairs = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  scores = reranking.pair_scores(model, pairs, lambda: "held", top=top)
  got = reranking.score_reranked(scores, pairs, block=7).example_scores
  similar = pairs.images @ pairs.texts.T
  for direction, near, local in (
    ("image-to-text", similar, model.table),
    ("text-to-image", similar.T, model.table.T),
  ):
    column = got.metrics.index(f"rank {direction}")
    for q in range(20):
      order = list(np.argsort(-near[q]))
      first = sorted(order[:top], key=lambda j, q=q: -(2 * near[q, j] + local[q, j]))
      order = [*first, *order[top:]]
      best = min(order.index(j) for j in range(20) if pairs.keys[j] == pairs.keys[q])
      assert got.values[q, column] == best + 1


def test_classes_by_hand():
  """Images without a class are no candidates; the own pair is one, or is not."""
  pairs = embedded()
  kinds = ["a", "b", "", "a", "b", "b", "", "a", "a", "b"] * 2
  pairs.labels[:] = [{kind: 1} if kind else {} for kind in kinds]
  model, top = Model(np.random.default_rng(1).normal(size=(20, 20))), 4
  scores = reranking.pair_scores(model, pairs, lambda: "held", top=top)
  got, _ = class_retrieval.score_classes(pairs, scores, block=7)
  chosen = [i for i, kind in enumerate(kinds) if kind]
  similar = pairs.images @ pairs.texts.T
  for direction, near, local in (
    ("image-to-text", similar, model.table),
    ("text-to-image", similar.T, model.table.T),
  ):
    for row, q in enumerate(chosen):
      order = sorted(chosen, key=lambda j, q=q: -near[q, j])
      first = sorted(order[:top], key=lambda j, q=q: -(2 * near[q, j] + local[q, j]))
      order = [*first, *order[top:]]
      for own in ("with own", "without own"):
        ranked = [j for j in order if own == "with own" or j != q]
        for k in (1, 2, 5, 10):
          column = got.metrics.index(f"P@{k} {direction} {own}")
          hits = [kinds[j] == kinds[q] for j in ranked[:k]]
          assert got.values[row, column] == pytest.approx(np.mean(hits))


def test_one_candidate_changes_nothing():
  pairs = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  single = reranking.score_reranked(
    reranking.pair_scores(model, pairs, lambda: "held", top=1), pairs
  ).example_scores
  plain = retrieval.score_retrieval(pairs)["all"].example_scores
  np.testing.assert_array_equal(single.values, plain.values)


def test_what_is_left_out(monkeypatch, capsys):
  model = Model(np.zeros((20, 20)))
  fail = lambda: pytest.fail("features were asked for")  # noqa: E731
  assert reranking.pair_scores(model, None, fail, top=5) is None
  assert reranking.pair_scores(model, embedded(), fail, top=0) is None
  monkeypatch.setattr(reranking, "MOST", 19)
  assert reranking.pair_scores(model, embedded(), fail, top=5) is None
  assert "gallery of 20 pairs is left out" in capsys.readouterr().out
  monkeypatch.setattr(reranking, "MOST", 20)
  monkeypatch.setattr(reranking, "MOST_BYTES", 19_999)
  assert reranking.pair_scores(model, embedded(), fail, top=5) is None
  assert "20 pairs is left out, 19 are the most" in capsys.readouterr().out
  model.has_local_scores = False
  assert reranking.pair_scores(model, embedded(), fail, top=5) is None
