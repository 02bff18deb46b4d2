import numpy as np
import pytest

from input_pipeline.readers.raw.box_fusion import FUSIONS, IOU, every, largest, weighted


def boxes(*rows):
  return np.array(rows, float).reshape(-1, 4)


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


def overlap(a, b):
  """Intersection over union, of plain numbers."""
  sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
  common = sides[0] * sides[1] if min(sides) > 0 else 0.0
  return common / (area(a) + area(b) - common)


def area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def scattered(seed):
  """Up to 12 boxes about 3 places, of 3 readers, in no order."""
  rng = np.random.default_rng(seed)
  count = rng.integers(1, 13)
  centre = rng.integers(0, 3, count)[:, None] * [6.0, 3.0]
  low = centre + rng.normal(0, 0.8, (count, 2))
  return np.hstack([low, low + rng.uniform(7, 9, (count, 2))]), rng.integers(0, 3, count)


def test_weighted_against_its_steps_one_by_one():
  merged = 0
  for seed in range(200):
    given, readers = scattered(seed)
    clusters = []  # of [sum of corners, members, readers]
    for box, reader in zip(given.tolist(), readers.tolist(), strict=True):
      best, most = None, 0.0
      for cluster in clusters:
        mean = [corner / cluster[1] for corner in cluster[0]]
        common = overlap(box, mean)
        if reader not in cluster[2] and common >= IOU and common > most:
          best, most = cluster, common
      if best is None:
        clusters.append([list(box), 1, {reader}])
      else:
        best[0] = [a + b for a, b in zip(best[0], box, strict=True)]
        best[1] += 1
        best[2].add(reader)
    expected = [[corner / count for corner in corners] for corners, count, _ in clusters]
    np.testing.assert_allclose(weighted(given, readers), expected, rtol=1e-12)
    merged += len(given) - len(clusters)
  assert merged > 200


def test_largest_is_the_one_set_that_suppression_allows():
  dropped = 0
  for seed in range(200):
    given, readers = scattered(seed)
    kept = largest(given, readers)
    np.testing.assert_array_equal(kept, [box for box in given if (box == kept).all(1).any()])
    for box in given:  # a box stays just where no larger one that stays means the same
      rivals = [other for other in kept if area(other) > area(box) and overlap(box, other) >= IOU]
      assert (box == kept).all(1).any() == (not rivals)
    dropped += len(given) - len(kept)
    shuffled = np.random.default_rng(seed).permutation(len(given))
    again = largest(given[shuffled], readers[shuffled])
    assert sorted(map(tuple, again)) == sorted(map(tuple, kept))
  assert dropped > 200


@pytest.mark.parametrize("fuse", [weighted, largest])
def test_equal_nested_and_touching_boxes(fuse):
  twin = boxes((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10))
  np.testing.assert_array_equal(fuse(twin, np.arange(3)), twin[:1])
  nested = boxes((0, 0, 10, 10), (2, 2, 5, 5))  # an IoU of .09: a part is no other reading
  np.testing.assert_array_equal(fuse(nested, np.arange(2)), nested)
  touching = boxes((0, 0, 10, 10), (10, 0, 20, 10))
  np.testing.assert_array_equal(fuse(touching, np.arange(2)), touching)


@pytest.mark.parametrize("fuse", FUSIONS.values())
def test_no_box_and_one(fuse):
  assert fuse(boxes(), np.array([])).shape == (0, 4)
  np.testing.assert_array_equal(fuse(boxes((1, 2, 3, 4)), np.array(["a"])), [[1, 2, 3, 4]])
