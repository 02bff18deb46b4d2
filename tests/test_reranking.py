import numpy as np
import pytest

from plan_jax.evaluators import reranking, retrieval
from plan_jax.evaluators.retrieval import Embedded


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Model:
  """Local logits from a table."""

  has_local_scores, local_bytes = True, 1000

  def __init__(self, table, scale=2.0):
    self.table, self.scale = table, scale

  def local_logits(self, features, films, texts):
    assert features == "held"
    return self.table[films[:, :, None], texts[:, None, :]].astype(np.float32)

  def global_scale(self):
    return self.scale


def embedded(n=20, seed=0):
  rng = np.random.default_rng(seed)
  names = [f"i{i}" for i in range(n)]
  films, texts = (unit(rng.normal(size=(n, 5))) for _ in range(2))
  return Embedded(films, texts, np.arange(n) // 2, names, names, ["report"] * n, [{}] * n)


@pytest.mark.parametrize("top", [1, 6, 20, 50])
def test_ranks_by_hand(top):
  found = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  got = reranking.score_reranked(model, found, lambda: "held", top=top, block=7).units
  similar = found.films @ found.texts.T
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


def test_one_candidate_changes_nothing():
  found = embedded()
  model = Model(np.random.default_rng(1).normal(size=(20, 20)))
  one = reranking.score_reranked(model, found, lambda: "held", top=1).units
  plain = retrieval.score_retrieval(found)["all"].units
  np.testing.assert_array_equal(one.values, plain.values)


def test_what_is_left_out(monkeypatch, capsys):
  model = Model(np.zeros((20, 20)))
  fail = lambda: pytest.fail("features were asked for")  # noqa: E731
  assert reranking.score_reranked(model, None, fail, top=5) is None
  assert reranking.score_reranked(model, embedded(), fail, top=0) is None
  monkeypatch.setattr(reranking, "MOST", 19)
  assert reranking.score_reranked(model, embedded(), fail, top=5) is None
  assert "gallery of 20 pairs is left out" in capsys.readouterr().out
  monkeypatch.setattr(reranking, "MOST", 20)
  monkeypatch.setattr(reranking, "MOST_BYTES", 19_999)
  assert reranking.score_reranked(model, embedded(), fail, top=5) is None
  assert "20 pairs is left out, 19 are the most" in capsys.readouterr().out
  model.has_local_scores = False
  assert reranking.score_reranked(model, embedded(), fail, top=5) is None
