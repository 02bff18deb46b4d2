import itertools

import numpy as np
import pytest

from input_pipeline.box_fusion import FUSIONS, IOU, every, iou, largest, weighted


def pixels(box):
  return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))


def boxes(*rows):
  return np.array(rows, float).reshape(-1, 4)


def test_iou_counts_pixels():
  rng = np.random.default_rng(0)
  low = rng.integers(0, 12, (6, 2))
  some = np.concatenate([low, low + rng.integers(1, 9, (6, 2))], axis=1)
  found = iou(some.astype(float), some[:4].astype(float))
  for i, j in itertools.product(range(6), range(4)):
    a, b = pixels(some[i]), pixels(some[j])
    assert found[i, j] == pytest.approx(len(a & b) / len(a | b))
  assert iou(boxes((1, 1, 1, 1)), boxes((1, 1, 1, 1)))[0, 0] == 0


def test_weighted_takes_the_mean_of_what_readers_agree_on():
  given = boxes((0, 0, 10, 10), (50, 50, 60, 60), (2, 0, 12, 10), (1, 1, 11, 11))
  fused = weighted(given, np.array(["a", "a", "b", "c"]))
  np.testing.assert_allclose(fused, [given[[0, 2, 3]].mean(0), given[1]])


def test_two_boxes_of_one_reader_stay_two():
  given = boxes((0, 0, 10, 10), (1, 0, 11, 10), (1, 0, 11, 10))
  fused = weighted(given, np.array(["a", "a", "b"]))
  # The third joins the one it overlaps most.
  np.testing.assert_allclose(fused, [given[0], given[1]])


def test_below_the_bound_nothing_is_fused():
  shift = 10 * (1 - IOU) / (1 + IOU)  # of a box of 10, to an IoU of just the bound
  for moved, count in ((shift - 0.01, 1), (shift + 0.01, 2)):
    given = boxes((0, 0, 10, 10), (moved, 0, 10 + moved, 10))
    for fuse in (weighted, largest):
      assert len(fuse(given, np.array(["a", "b"]))) == count


def test_the_larger_of_two_stays_in_its_place():
  given = boxes((0, 0, 8, 10), (30, 0, 35, 5), (0, 0, 10, 10), (31, 0, 36, 5))
  np.testing.assert_array_equal(largest(given, np.arange(4)), given[[1, 2]])
  np.testing.assert_array_equal(every(given, np.arange(4)), given)


@pytest.mark.parametrize("fuse", FUSIONS.values())
def test_no_box_and_one(fuse):
  assert fuse(boxes(), np.array([])).shape == (0, 4)
  np.testing.assert_array_equal(fuse(boxes((1, 2, 3, 4)), np.array(["a"])), [[1, 2, 3, 4]])
