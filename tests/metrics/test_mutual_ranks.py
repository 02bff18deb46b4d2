"""Ranks of both directions against those of whole rows of scores."""

import numpy as np
import pytest

from plan_jax.metrics.mutual_ranks import mutual_ranks
from plan_jax.metrics.ranking import rank

NAMES = "above", "tied_hits", "tied_misses"


def _unit(values):
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def _assert_ranks(ranks, scores, keys):
  """Both ranks are those of the scores [N, N]."""
  for actual, of in zip(ranks, (scores, scores.T), strict=True):
    expected = rank(lambda a, b, of=of: of[a:b], keys)
    for name in NAMES:
      np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize("tile", [(512, 1024), (64, 32), (7, 50), (1, 1)])
@pytest.mark.parametrize("texts", [150, 40, 1])
def test_both_directions_are_those_of_all_scores(tile, texts):
  rng = np.random.default_rng(texts)
  keys = rng.integers(0, texts, 150)
  images, reports = (_unit(rng.normal(size=(150, 8))) for _ in range(2))
  scores = images.astype(np.float64) @ reports.T.astype(np.float64)
  _assert_ranks(mutual_ranks(images, reports, keys, tile=tile), scores, keys)


def test_equal_embeddings_are_ties():
  rng = np.random.default_rng(0)
  # Few different vectors, so that scores are equal but for rounding, hits and misses alike.
  images, reports = (_unit(rng.normal(size=(5, 64)))[rng.integers(0, 5, 90)] for _ in range(2))
  keys = rng.integers(0, 30, 90)
  scores = images.astype(np.float64) @ reports.T.astype(np.float64)
  ranks = mutual_ranks(images, reports, keys, tile=(16, 32))
  _assert_ranks(ranks, scores, keys)
  assert all(r.tied_misses.max() > 0 and r.tied_hits.max() > 1 for r in ranks)


def test_one_point_for_everything_is_chance():
  same = _unit(np.random.default_rng(0).normal(size=(1, 64))).repeat(333, 0)
  for ranks in mutual_ranks(same, same, np.arange(333), tile=(50, 100)):
    assert (ranks.expected() == 167).all()
    assert ranks.recall(10) == pytest.approx(np.full(333, 10 / 333))


def test_counts_of_a_whole_tile_are_exact():
  images = _unit(np.ones((1100, 4)))
  reports = images * np.where(np.arange(1100) % 2, -1, 1)[:, None].astype(np.float32)
  keys = np.arange(1100)
  _assert_ranks(mutual_ranks(images, reports, keys), images @ reports.T, keys)


def test_counts_of_the_largest_tile_are_exact():
  images = _unit(np.ones((4095, 2)))
  reports = images.copy()
  reports[0] *= -1
  by_image, _ = mutual_ranks(images, reports, np.arange(4095), tile=(4095, 4095))
  assert by_image.above[0] == 4094 and by_image.tied_misses[0] == 0
  assert (by_image.above[1:] == 0).all() and (by_image.tied_misses[1:] == 4093).all()


def test_no_pairs_have_no_ranks():
  none = np.zeros((0, 4), np.float32)
  assert [len(r.above) for r in mutual_ranks(none, none, np.arange(0))] == [0, 0]


def test_bad_embeddings_are_named():
  unit = np.eye(3, dtype=np.float32)
  with pytest.raises(ValueError, match="4,095"):
    mutual_ranks(unit, unit, np.arange(3), tile=(4096, 1))
  with pytest.raises(ValueError, match="do not fit"):
    mutual_ranks(unit, unit[:2], np.arange(3))
  with pytest.raises(ValueError, match="of texts is not of unit norm"):
    mutual_ranks(unit, 2 * unit, np.arange(3))
  with pytest.raises(ValueError, match="of images is not of unit norm"):
    mutual_ranks(np.full((3, 3), np.nan, np.float32), unit, np.arange(3))
