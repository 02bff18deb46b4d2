"""Localization metrics against plain loops over pixels, and their edge cases."""

import math

import cv2
import numpy as np
import pytest

from plan_jax.metrics.localization import (
  METRICS,
  THRESHOLDS,
  Heatmap,
  TrueMask,
  localization_metrics,
)


def score(values, mask):
  return localization_metrics(Heatmap(values), TrueMask(mask))


def _brute(values, mask):
  """All metrics by loops over pixels."""
  inside, rest, everything = [], [], []
  for y in range(len(values)):
    for x in range(len(values[0])):
      (inside if mask[y][x] else rest).append(float(values[y][x]))
      everything.append((float(values[y][x]), bool(mask[y][x])))

  def mean(values):
    return sum(values) / len(values)

  def variance(values):
    return sum((v - mean(values)) ** 2 for v in values) / len(values)

  cnr = math.nan
  if inside and rest:
    cnr = (mean(inside) - mean(rest)) / math.sqrt(variance(inside) + variance(rest))
  ious, dices = [], []
  for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
    both = sum(1 for v, m in everything if v >= np.float32(threshold) and m)
    predicted = sum(1 for v, m in everything if v >= np.float32(threshold))
    ious.append(both / (predicted + len(inside) - both) if predicted else 0.0)
    dices.append(2 * both / (predicted + len(inside)) if predicted else 0.0)
  top = max(v for v, _ in everything)
  pointing = mean([float(m) for v, m in everything if v == top])
  box = _brute_box([[v >= 0.5 for v in row] for row in values], mask)
  return [cnr, abs(cnr), mean(ious), mean(dices), pointing, *ious, box]


def _brute_parts(predicted):
  """The connected parts as sets of pixels, by flooding, the one that is met first first."""
  left = {(y, x) for y, row in enumerate(predicted) for x, v in enumerate(row) if v}
  parts = []
  for start in sorted(left):
    if start not in left:
      continue
    part, edge = set(), [start]
    while edge:
      y, x = edge.pop()
      if (y, x) in left:
        left.remove((y, x))
        part.add((y, x))
        edge += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    parts.append(part)
  return parts


def _brute_box(predicted, mask):
  """Box accuracy; boxes as sets of pixels."""

  def filled(part):
    ys, xs = [y for y, _ in part], [x for _, x in part]
    return {(y, x) for y in range(min(ys), max(ys) + 1) for x in range(min(xs), max(xs) + 1)}

  parts, true = _brute_parts(predicted), _brute_parts(mask)
  if not parts or not true:
    return 0.0
  box = filled(max(parts, key=len))
  return float(max(len(box & filled(t)) / len(box | filled(t)) for t in true) >= 0.5)


@pytest.mark.parametrize("seed", range(12))
def test_metrics_agree_with_plain_loops(seed):
  rng = np.random.default_rng(seed)
  height, width = rng.integers(3, 14, 2)
  values = rng.random((height, width)).astype(np.float32)
  if seed % 3 == 0:
    values = np.round(values * 5).astype(np.float32) / 10  # ties, and values on the thresholds
  mask = rng.random((height, width)) < rng.uniform(0.1, 0.9)
  mask[0, 0], mask[-1, -1] = True, False
  assert score(values, mask) == pytest.approx(_brute(values.tolist(), mask.tolist()))


def test_boxes_agree_with_plain_flooding():
  """Blobs and boxes of all sizes, so that right and wrong boxes come."""
  rng, actual = np.random.default_rng(0), []
  for _ in range(60):
    values = cv2.resize(rng.random((3, 3), np.float32), (14, 11))
    mask = np.zeros((11, 14), bool)
    for _ in range(rng.integers(1, 4)):
      y, x = rng.integers(0, 9), rng.integers(0, 12)
      mask[y : y + rng.integers(2, 11), x : x + rng.integers(2, 13)] = True
    actual.append(score(values, mask)[-1])
    assert actual[-1] == _brute_box((values >= 0.5).tolist(), mask.tolist())
  assert 5 < sum(actual) < 55


def test_the_box_is_that_of_the_largest_part():
  mask = np.zeros((20, 20), bool)
  mask[2:8, 2:8] = mask[12:18, 10:20] = True
  values = np.zeros((20, 20), np.float32)
  values[2:8, 2:8] = 0.5
  values[7, 8] = values[6, 9] = 0.7  # over corners it is one part
  assert score(values, mask)[-1] == 1  # either true box will do; 36 of 48 pixels
  values[12:20, 0:5] = 1  # 40 pixels: the larger part, in the wrong place
  assert score(values, mask)[-1] == 0
  values[12:20, 0:5], values[12:18, 10:16] = 0, 1  # 36 each and 2 over corners: the upper one
  values[7, 8] = values[6, 9] = 0
  values[2, 2:8] = 0  # leaves 30 above, 36 below
  assert score(values, mask)[-1] == 1
  values[12:18, 10:16], values[14:20, 0:5] = 0, 1  # 30 each: the first from the top
  assert score(values, mask)[-1] == 1
  values[:] = 0.49
  assert score(values, mask)[-1] == 0  # nothing is predicted


def test_a_good_map_scores_high_and_its_reverse_low():
  mask = np.zeros((20, 30), bool)
  mask[4:9, 20:28] = True
  noise = 0.05 * np.random.default_rng(0).random(mask.shape)
  good = dict(zip(METRICS, score(0.9 * mask + noise, mask), strict=True))
  bad = dict(zip(METRICS, score(0.9 * ~mask + noise, mask), strict=True))
  assert good["signed CNR"] > 10 and good["mIoU"] == 1 and good["mean Dice"] == 1
  assert good["pointing"] == 1
  assert bad["signed CNR"] < -10 and bad["absolute CNR"] > 10
  assert bad["mIoU"] == 0 and bad["pointing"] == 0


def test_empty_prediction_scores_zero_but_has_a_contrast():
  mask = np.zeros((10, 10), bool)
  mask[:5] = True
  values = np.where(mask, 0.05, 0.01).astype(np.float32)
  values[0, 0] = 0.06
  signed, _, miou, dice, pointing, *rest = score(values, mask)
  assert signed > 0 and (miou, dice, pointing) == (0, 0, 1) and rest == [0] * 6


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_map_has_no_contrast_and_points_by_area(level):
  mask = np.zeros((7, 9), bool)
  mask[2:4, 3:8] = True
  values = np.full((7, 9), level, np.float32)
  signed, absolute, miou, _, pointing, *each, box = score(values, mask)
  assert signed == 0 and absolute == 0
  assert pointing == pytest.approx(mask.mean())
  predicted = sum(level >= t for t in THRESHOLDS) / 5
  assert miou == pytest.approx(predicted * mask.mean()) and np.mean(each) == pytest.approx(miou)
  assert box == 0  # the box is the whole image, or none


def test_masks_of_everything_or_nothing_have_no_contrast():
  values = np.random.default_rng(0).random((6, 8)).astype(np.float32)
  full = score(values, np.ones((6, 8), bool))
  assert np.isnan(full[:2]).all() and full[4] == 1 and full[2] > 0.4
  empty = score(values, np.zeros((6, 8), bool))
  assert np.isnan(empty[:2]).all() and (empty[2:] == 0).all()
  mask = np.zeros((6, 8), bool)
  mask[2:4] = True
  assert np.isnan(score(mask.astype(np.float32), mask)[0])  # infinite contrast


def test_pointing_shares_out_ties():
  mask = np.zeros((4, 4), bool)
  mask[0, :3] = True
  values = np.zeros((4, 4), np.float32)
  values[0] = 1
  assert score(values, mask)[4] == 0.75


@pytest.mark.parametrize("bad", [1.5, -0.1, np.inf])
def test_values_outside_the_unit_range_are_refused(bad):
  values = np.zeros((3, 3), np.float32)
  values[1, 1] = bad
  with pytest.raises(ValueError, match=r"\[0, 1\]"):
    score(values, np.eye(3, dtype=bool))
  with pytest.raises(ValueError, match="mask"):
    score(np.zeros((3, 3), np.float32), np.ones((3, 4), bool))
