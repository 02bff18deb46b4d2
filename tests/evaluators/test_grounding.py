"""Grounding figures against plain loops, edge cases, floors, and the evaluator from end to end."""

import math

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example, Region
from plan_jax.evaluators import chance, grounding

NAMES = grounding.METRICS


def _png(pixels):
  return cv2.imencode(".png", pixels)[1].tobytes()


def _example(name, regions, height=24, width=36, patient=None):
  image = np.random.default_rng(len(name)).integers(0, 255, (height, width), np.uint8)
  return Example(
    image=_png(image),
    width=width,
    height=height,
    image_id=name,
    study_id=name,
    patient_id=patient or name,
    regions=tuple(regions),
  )


def _boxes(*boxes):
  return np.array(boxes, np.float32).reshape(-1, 4)


def _brute(heat, mask):
  """All figures by loops over pixels."""
  inside, rest, everything = [], [], []
  for y in range(len(heat)):
    for x in range(len(heat[0])):
      (inside if mask[y][x] else rest).append(float(heat[y][x]))
      everything.append((float(heat[y][x]), bool(mask[y][x])))

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
    lit = sum(1 for v, m in everything if v >= np.float32(threshold))
    ious.append(both / (lit + len(inside) - both) if lit else 0.0)
    dices.append(2 * both / (lit + len(inside)) if lit else 0.0)
  top = max(v for v, _ in everything)
  pointing = mean([float(m) for v, m in everything if v == top])
  box = _brute_box([[v >= 0.5 for v in row] for row in heat], mask)
  return [cnr, abs(cnr), mean(ious), mean(dices), pointing, *ious, box]


def _brute_parts(lit):
  """The connected parts as sets of pixels, by flooding, the one that is met first first."""
  left = {(y, x) for y, row in enumerate(lit) for x, v in enumerate(row) if v}
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


def _brute_box(lit, mask):
  """Box accuracy; boxes as sets of pixels."""

  def filled(part):
    ys, xs = [y for y, _ in part], [x for _, x in part]
    return {(y, x) for y in range(min(ys), max(ys) + 1) for x in range(min(xs), max(xs) + 1)}

  parts, true = _brute_parts(lit), _brute_parts(mask)
  if not parts or not true:
    return 0.0
  box = filled(max(parts, key=len))
  return float(max(len(box & filled(t)) / len(box | filled(t)) for t in true) >= 0.5)


@pytest.mark.parametrize("seed", range(12))
def test_figures_agree_with_plain_loops(seed):
  rng = np.random.default_rng(seed)
  height, width = rng.integers(3, 14, 2)
  heat = rng.random((height, width)).astype(np.float32)
  if seed % 3 == 0:
    heat = np.round(heat * 5).astype(np.float32) / 10  # ties, and values on the thresholds
  mask = rng.random((height, width)) < rng.uniform(0.1, 0.9)
  mask[0, 0], mask[-1, -1] = True, False
  assert grounding.score(heat, mask) == pytest.approx(_brute(heat.tolist(), mask.tolist()))


def test_boxes_agree_with_plain_flooding():
  """Blobs and boxes of all sizes, so that right and wrong boxes come."""
  rng, found = np.random.default_rng(0), []
  for _ in range(60):
    heat = cv2.resize(rng.random((3, 3), np.float32), (14, 11))
    mask = np.zeros((11, 14), bool)
    for _ in range(rng.integers(1, 4)):
      y, x = rng.integers(0, 9), rng.integers(0, 12)
      mask[y : y + rng.integers(2, 11), x : x + rng.integers(2, 13)] = True
    found.append(grounding.score(heat, mask)[-1])
    assert found[-1] == _brute_box((heat >= 0.5).tolist(), mask.tolist())
  assert 5 < sum(found) < 55


def test_the_box_is_that_of_the_largest_part():
  mask = np.zeros((20, 20), bool)
  mask[2:8, 2:8] = mask[12:18, 10:20] = True
  heat = np.zeros((20, 20), np.float32)
  heat[2:8, 2:8] = 0.5
  heat[7, 8] = heat[6, 9] = 0.7  # over corners it is one part
  assert grounding.score(heat, mask)[-1] == 1  # either true box will do; 36 of 48 pixels
  heat[12:20, 0:5] = 1  # 40 pixels: the larger part, in the wrong place
  assert grounding.score(heat, mask)[-1] == 0
  heat[12:20, 0:5], heat[12:18, 10:16] = 0, 1  # 36 each and 2 over corners: the upper one
  heat[7, 8] = heat[6, 9] = 0
  heat[2, 2:8] = 0  # leaves 30 above, 36 below
  assert grounding.score(heat, mask)[-1] == 1
  heat[12:18, 10:16], heat[14:20, 0:5] = 0, 1  # 30 each: the first from the top
  assert grounding.score(heat, mask)[-1] == 1
  heat[:] = 0.49
  assert grounding.score(heat, mask)[-1] == 0  # nothing is predicted


def test_pixels_that_were_not_seen_are_not_found(capsys):
  mask = np.zeros((12, 10), bool)
  mask[1:7, 2:9] = True
  heat = np.random.default_rng(0).random((12, 10)).astype(np.float32)
  heat[:3] = np.nan
  known = np.nan_to_num(heat)
  np.testing.assert_array_equal(grounding.score(heat, mask), grounding.score(known, mask))
  with pytest.raises(ValueError, match="ranges from nan to nan"):
    grounding.score(np.full((12, 10), np.nan, np.float32), mask)

  class Cropping(_Oracle):
    """Sees the right half alone."""

    def ground(self, images, phrases, of):
      maps = super().ground(images, phrases, of)
      for heat in maps:
        heat[:, : heat.shape[1] // 2] = np.nan
      return maps

  both = _example("both", [Region("left and right", "both", _boxes((10, 2, 30, 20)))])
  scores = grounding.score_grounding(Cropping(), [*_data(4), both], [], with_floors=False)
  assert capsys.readouterr().out == (
    "grounding: of 5 phrases, 1 have a region partly and 2 wholly outside of what the model saw;"
    " its pixels count as not found\n"
  )
  found = dict(zip(scores["run"].ids, scores["run"].values, strict=True))
  left, right = found["image1\tleft lung"], found["image0\tright lung"]
  assert left[2:].tolist() == [0] * 9 and left[0] < 0
  assert right[2:].tolist() == [1] * 9 and right[0] > 10
  grounding.score_grounding(_Oracle(), _data(4), [], with_floors=False)
  assert capsys.readouterr().out == ""


def test_a_good_map_scores_high_and_its_reverse_low():
  mask = np.zeros((20, 30), bool)
  mask[4:9, 20:28] = True
  noise = 0.05 * np.random.default_rng(0).random(mask.shape)
  good = dict(zip(NAMES, grounding.score(0.9 * mask + noise, mask), strict=True))
  bad = dict(zip(NAMES, grounding.score(0.9 * ~mask + noise, mask), strict=True))
  assert good["signed CNR"] > 10 and good["mIoU"] == 1 and good["mean Dice"] == 1
  assert good["pointing"] == 1
  assert bad["signed CNR"] < -10 and bad["absolute CNR"] > 10
  assert bad["mIoU"] == 0 and bad["pointing"] == 0


def test_empty_prediction_scores_zero_but_has_a_contrast():
  mask = np.zeros((10, 10), bool)
  mask[:5] = True
  heat = np.where(mask, 0.05, 0.01).astype(np.float32)
  heat[0, 0] = 0.06
  signed, _, miou, dice, pointing, *rest = grounding.score(heat, mask)
  assert signed > 0 and (miou, dice, pointing) == (0, 0, 1) and rest == [0] * 6


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_map_has_no_contrast_and_points_by_area(level):
  mask = np.zeros((7, 9), bool)
  mask[2:4, 3:8] = True
  heat = np.full((7, 9), level, np.float32)
  signed, absolute, miou, _, pointing, *each, box = grounding.score(heat, mask)
  assert signed == 0 and absolute == 0
  assert pointing == pytest.approx(mask.mean())
  lit = sum(level >= t for t in grounding.THRESHOLDS) / 5
  assert miou == pytest.approx(lit * mask.mean()) and np.mean(each) == pytest.approx(miou)
  assert box == 0  # the box is the whole image, or none


def test_masks_of_everything_or_nothing_have_no_contrast():
  heat = np.random.default_rng(0).random((6, 8)).astype(np.float32)
  full = grounding.score(heat, np.ones((6, 8), bool))
  assert np.isnan(full[:2]).all() and full[4] == 1 and full[2] > 0.4
  empty = grounding.score(heat, np.zeros((6, 8), bool))
  assert np.isnan(empty[:2]).all() and (empty[2:] == 0).all()
  mask = np.zeros((6, 8), bool)
  mask[2:4] = True
  assert np.isnan(grounding.score(mask.astype(np.float32), mask)[0])  # infinite contrast


def test_pointing_shares_out_ties():
  mask = np.zeros((4, 4), bool)
  mask[0, :3] = True
  heat = np.zeros((4, 4), np.float32)
  heat[0] = 1
  assert grounding.score(heat, mask)[4] == 0.75


@pytest.mark.parametrize("bad", [1.5, -0.1, np.inf])
def test_values_outside_the_unit_range_are_refused(bad):
  heat = np.zeros((3, 3), np.float32)
  heat[1, 1] = bad
  with pytest.raises(ValueError, match=r"\[0, 1\]"):
    grounding.score(heat, np.eye(3, dtype=bool))
  with pytest.raises(ValueError, match="mask"):
    grounding.score(np.zeros((3, 3), np.float32), np.ones((3, 4), bool))


def test_regions_of_one_phrase_are_one_unit():
  mask = np.zeros((24, 36), np.uint8)
  mask[20:, 30:] = 255
  example = _example(
    "one",
    [
      Region("Small left effusion", "effusion", _boxes((0, 0, 4, 3))),
      Region("nodule", "nodule", _boxes((10, 10, 11.5, 11.2), (11.7, 10, 13.1, 12))),
      Region("small LEFT effusion.", "other", _boxes((0, 0, 36, 24)), _png(mask)),
    ],
  )
  first, second = grounding.units(example)
  assert (first.phrase, first.label, first.patient_id) == ("Small left effusion", "effusion", "one")
  expected = mask > 0
  expected[:3, :4] = True
  assert (first.mask == expected).all()  # the mask stands in for the box beside it
  expected = np.zeros((24, 36), bool)
  expected[10:12, 10:14] = True
  assert (second.mask == expected).all()


def test_a_wrong_mask_is_named():
  small = Region("x", "nodule", _boxes(), _png(np.ones((3, 3), np.uint8)))
  with pytest.raises(ValueError, match="nodule.*image7 is 3 x 3, its image 36 x 24"):
    grounding.units(_example("image7", [small]))
  with pytest.raises(ValueError, match="image8"):
    grounding.units(_example("image8", [Region("x", "nodule", _boxes(), b"no png")]))


def test_centre_is_round_and_central_on_any_image():
  heat = chance.centre(40, 80)
  assert heat.shape == (40, 80) and heat.dtype == np.float32 and heat.max() == 1
  assert heat[19, 39] == heat[20, 40] == 1
  assert heat[19, 49] == pytest.approx(heat[29, 39], abs=1e-6)  # 10 px along x and along y
  assert heat[20, 50] == pytest.approx(math.exp(-(10.5**2 + 0.5) / 200 + 0.5 / 200), abs=2e-3)


def test_random_is_fixed_by_image_and_phrase():
  def draw(image="a", phrase="p", seed=0):
    return chance.random((4, 5), image_id=image, phrase=phrase, seed=seed)

  assert (draw() == draw()).all() and draw().max() == 1 and draw().shape == (4, 5)
  for other in (draw(image="b"), draw(phrase="q"), draw(seed=1)):
    assert (other != draw()).any()


def test_the_prior_knows_where_findings_sit():
  train = [
    _example(
      "a",
      [Region("l", "left", _boxes((0, 0, 18, 24))), Region("r", "right", _boxes((18, 0, 36, 24)))],
    ),
    _example("b", [Region("l", "left", _boxes((0, 0, 50, 100)))], height=100, width=100),
  ]
  prior = grounding.box_prior(train, grid=16)
  assert prior.counts == {"left": 2, "right": 1}
  left = prior.mean_box_per_finding("left", 40, 60)
  assert left.shape == (40, 60) and left.dtype == np.float32
  assert left[:, :28].min() == 1 and left[:, 32:].max() == 0
  mean = prior.mean_box(40, 60)
  assert mean[20, 5] == 1 and mean[20, 55] == pytest.approx(0.5)
  assert (prior.mean_box_per_finding("unseen", 40, 60) == mean).all()
  with pytest.raises(ValueError, match="no regions"):
    chance.BoxPrior().mean_box(4, 4)


class _Oracle:
  """Knows where each phrase lies: "left" or "right"; records what it was asked."""

  grid = (4, 6)

  def __init__(self, blur=0.01):
    self.blur, self.asked = blur, []

  def ground(self, images, phrases, of):
    self.asked.append(len(phrases))
    maps = []
    for image, phrase in zip(images, phrases, strict=True):
      assert image.dtype == np.uint8
      heat = np.full(image.shape, self.blur, np.float32)
      half = image.shape[1] // 2
      heat[:, :half] += (1 - self.blur) * ("left" in phrase)
      heat[:, half:] += (1 - self.blur) * ("right" in phrase)
      maps.append(np.minimum(heat * np.linspace(0.9, 1, image.shape[1], dtype=np.float32), 1))
    return maps

  def to_image(self, grid, shape):
    return cv2.resize(grid, shape[::-1])


def _data(count, start=0):
  for i in range(start, start + count):
    side = "left" if i % 2 else "right"
    x0 = 0 if i % 2 else 18
    yield _example(
      f"image{i}",
      [Region(f"{side} lung", side, _boxes((x0, 0, x0 + 18, 24)))],
      patient=f"p{i // 2}",
    )


def test_evaluator_from_end_to_end():
  oracle = _Oracle()
  examples = [*_data(20, 100), _example("without", [])]
  full = Region("left everything", "left", _boxes((0, 0, 36, 24)))
  examples.append(_example("full", [full]))
  rows = grounding.evaluate_grounding(
    oracle, iter(examples), _data(10), data="toy/test", batch=8, resamples=100
  )
  assert oracle.asked == [8, 8, 5]
  cells = {(r.group, r.metric, r.model): r for r in rows}
  assert len(cells) == len(rows) == 3 * len(NAMES) * 5
  assert {r.protocol for r in rows} == {"grounding-v1"} and rows[0].group == "macro"
  assert {r.model for r in rows} == {
    "run", "random", "centre", "mean_box", "mean_box_per_finding"
  }  # fmt: skip
  macro = {m: cells["macro", "mIoU", m] for m in ("run", "random", "centre", "mean_box")}
  assert macro["run"].value > 0.9 > 0.75 > max(macro[m].value for m in list(macro)[1:])
  assert macro["run"].low <= macro["run"].value <= macro["run"].high
  assert abs(cells["macro", "signed CNR", "random"].value) < 0.5
  assert cells["macro", "pointing", "random"].value == pytest.approx(0.5, abs=0.35)
  assert cells["right", "pointing", "run"].value == 1
  # The image whose region is everything has no contrast: counted out of CNR, but not of mIoU.
  assert cells["left", "signed CNR", "run"].n == 10 and cells["left", "mIoU", "run"].n == 11
  again = grounding.evaluate_grounding(
    _Oracle(), examples, grounding.box_prior(_data(10)), data="toy/test", batch=3, resamples=100
  )
  assert [r.value for r in again] == pytest.approx([r.value for r in rows], nan_ok=True)


def test_without_training_regions_the_prior_floors_are_missing():
  rows = grounding.evaluate_grounding(_Oracle(), _data(4), [], data="toy", resamples=10)
  assert {r.model for r in rows} == {"run", "random", "centre"}
  assert grounding.evaluate_grounding(_Oracle(), [_example("x", [])], [], data="toy") == []


def test_wrong_maps_and_images_are_named():
  class Wrong(_Oracle):
    def ground(self, images, phrases, of):
      return [np.zeros((2, 2), np.float32) for _ in phrases]

  with pytest.raises(ValueError, match="image0, 'right lung'"):
    grounding.evaluate_grounding(Wrong(), _data(1), [], data="toy")
  example = next(_data(1))
  for broken in ({"image": b"no"}, {"width": 40}):
    with pytest.raises(ValueError, match="image0"):
      changed = Example(**{**example.__dict__, **broken})
      grounding.evaluate_grounding(_Oracle(), [changed], [], data="toy")
