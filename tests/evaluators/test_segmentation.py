"""Segmentation's metrics against loops over pixels, its baseline, and what a decoder learns by."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.example import Example, Region
from input_pipeline.regions import finding_masks
from plan_jax.evaluators import segmentation
from plan_jax.evaluators.chance import BoxPrior
from plan_jax.evaluators.segmentation import MEAN_MASK, NOTHING, THRESHOLDS
from plan_jax.metrics.localization import overlaps
from plan_jax.results.rows import RUN
from plan_jax.transfer.segmentation import decoder

H, W = 12, 20
NAMES = ("mass", "tube")


def example(number, *regions):
  image = cv2.imencode(".png", np.zeros((H, W), np.uint8))[1].tobytes()
  return Example(image, W, H, f"i{number}", f"s{number}", f"p{number // 2}", regions=regions)


def box(label, *corners):
  return Region(label, label, np.array([corners], np.float32))


def drawn(label, mask):
  png = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()
  return Region(label, label, np.zeros((0, 4), np.float32), png)


def naive(heatmap, mask, threshold):
  """Dice and IoU by loops; None where both are empty."""
  predicted = {(y, x) for y in range(H) for x in range(W) if heatmap[y, x] >= np.float32(threshold)}
  true = {(y, x) for y in range(H) for x in range(W) if mask is not None and mask[y, x]}
  if not true and not predicted:
    return None
  shared = len(predicted & true)
  return 2 * shared / (len(predicted) + len(true)), shared / len(predicted | true)


def heatmaps(seed):
  """Values on thresholds too."""
  rng = np.random.default_rng(seed)
  return rng.choice(np.linspace(0, 1, 41, dtype=np.float32), (len(NAMES), H, W))


def test_a_union_of_regions_masks_and_boxes():
  mask = np.zeros((H, W), bool)
  mask[2:5, 3:9] = True
  one = example(0, drawn("mass", mask), box("mass", 10, 6, 14.5, 9), box("other", 0, 0, 2, 2))
  scores = finding_masks(one, NAMES)
  mask[6:9, 10:15] = True
  assert list(scores) == [0]
  np.testing.assert_array_equal(scores[0], mask)


def test_figures_equal_loops_over_pixels():
  two = box("mass", 0, 0, 20, 12), box("tube", 5, 5, 6, 6)
  examples = [example(0, box("mass", 2, 2, 9, 8)), example(1, *two), example(2)]
  maps = [(one, heatmaps(i)) for i, one in enumerate(examples)]
  scores = segmentation.score_segmentation(maps, NAMES, keep_empty=True)
  assert len(scores.ids) == 6 and scores.groups == list(NAMES) * 3
  metrics = scores.metrics()
  for u, (one, heatmap, k) in enumerate((o, h[k], k) for o, h in maps for k in range(2)):
    mask = finding_masks(one, NAMES).get(k)
    for t, threshold in enumerate(THRESHOLDS):
      expected = naive(heatmap, mask, threshold)
      if mask is None:
        assert np.isnan(metrics[u, t, :2]).all() and metrics[u, t, 2] == (expected is None)
      else:
        np.testing.assert_allclose(metrics[u, t], [*expected, expected[0]])
  dropped = segmentation.score_segmentation(maps, NAMES, keep_empty=False)
  assert dropped.ids == ["i0\tmass", "i1\tmass", "i1\ttube"]
  assert segmentation.score_segmentation([], NAMES, keep_empty=True) is None


def test_edges():
  nothing, everything = np.zeros((H, W), np.float32), np.ones((H, W), np.float32)
  mask = np.ones((H, W), bool)
  shared, sizes, area = overlaps(nothing, mask, THRESHOLDS)
  assert not shared.any() and not sizes.any() and area == H * W
  shared, sizes, _ = overlaps(everything, mask, THRESHOLDS)
  assert (shared == H * W).all() and (sizes == H * W).all()
  with pytest.raises(ValueError, match="must stay in"):
    overlaps(everything * np.float32(1.1), mask, THRESHOLDS)
  with pytest.raises(ValueError, match="must stay in"):
    overlaps(everything * np.float32(np.nan), None, THRESHOLDS)
  with pytest.raises(ValueError, match="the map is"):
    overlaps(everything[1:], mask, THRESHOLDS)
  with pytest.raises(ValueError, match="i0, mass: the map is"):
    maps = [(example(0, box("mass", 0, 0, 3, 3)), np.zeros((2, H, W - 1), np.float32))]
    segmentation.score_segmentation(maps, NAMES, keep_empty=True)


def test_thresholds_come_from_validation_and_each_figure_has_its_own():
  """A faint map is right where the finding is; on images without it there is a fainter haze."""
  mask = np.zeros((H, W), np.float32)
  mask[3:9, 3:9] = 1
  with_it = example(0, box("mass", 3, 3, 9, 9))
  faint = np.stack([0.3 * mask, 0 * mask])
  haze = np.stack([np.full((H, W), 0.2, np.float32), 0 * mask])
  maps = [(with_it, faint + 0.1 * haze)] + [(example(i), haze) for i in (2, 3, 4)]
  scores = segmentation.score_segmentation(maps, NAMES, keep_empty=True)
  assert segmentation.choose(scores) == {
    "mass": (THRESHOLDS.index(0.05), THRESHOLDS.index(0.25), 4)
  }  # "tube" has no image
  assert segmentation.best_dice(scores) == 1
  assert np.isnan(segmentation.best_dice(None))


def rows_of(scores, validation, **more):
  rows, units = segmentation.segmentation_rows(
    scores, validation, data="toy", resamples=50, **{"keep_empty": True, **more}
  )
  return {(row.group, row.metric, row.model): row for row in rows}, units


def test_rows(capsys):
  examples = [example(i, box("mass", 2 + i, 2, 9 + i, 8)) for i in range(4)] + [example(9)]
  prior = BoxPrior()
  for one in examples[:-1]:
    prior.add("mass", finding_masks(one, NAMES)[0])
  run = segmentation.score_segmentation(
    [(one, heatmaps(i)) for i, one in enumerate(examples)], NAMES, keep_empty=True
  )
  baseline = segmentation.score_segmentation(
    segmentation.mean_masks(examples, prior, NAMES), NAMES, keep_empty=True
  )
  scores = {RUN: run, MEAN_MASK: baseline}
  cells, units = rows_of(scores, scores)
  assert "no image of toy has tube: left out" in capsys.readouterr().out
  assert {key[0] for key in cells} == {"mass", "macro"}
  place = segmentation.choose(run)["mass"]
  of_mass = [i for i, name in enumerate(run.groups) if name == "mass"]
  dice = run.metrics()[of_mass, place[0], 0]
  row = cells["mass", "Dice", RUN]
  assert row.value == pytest.approx(np.nanmean(dice)) and row.n == 4 and row.low <= row.value
  assert cells["mass", "Dice with empty images", RUN].n == 5
  assert cells["mass", "threshold", RUN].value == THRESHOLDS[place.alone]
  other = cells["mass", "threshold of Dice with empty images", RUN]
  assert other.value == THRESHOLDS[place.with_empty] and other.n == 5
  assert cells["mass", "Dice", MEAN_MASK].value > 0.5
  # What never predicts anything is right on the fifth image.
  assert cells["mass", "Dice with empty images", NOTHING].value == 0.2
  assert cells["mass", "Dice", NOTHING].value == cells["macro", "IoU", NOTHING].value == 0
  assert ("mass", "Dice with empty images", MEAN_MASK) not in cells
  assert len(units.ids) == 5 and units.metrics == ("Dice", "IoU", "Dice with empty images")
  cells, _ = rows_of(scores, scores, keep_empty=False)
  assert not any("empty" in metric for _, metric, _ in cells)
  assert rows_of(scores, scores, keep_empty=False)[1].metrics == ("Dice", "IoU")
  cells, units = rows_of(scores, None)
  assert ("mass", "Dice at .5", RUN) in cells and ("mass", "threshold", RUN) not in cells
  np.testing.assert_allclose(
    units.values[:4, 0], run.metrics()[of_mass][:4, THRESHOLDS.index(0.5), 0]
  )
  cells, _ = rows_of(scores, dict.fromkeys(scores))
  assert not cells and "no threshold, has mass: left out" in capsys.readouterr().out


def test_the_loss_and_its_gradient():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 4, 4, 2))
  masks = rng.random((2, 4, 4, 2)) < 0.3
  known = np.array([[True, False], [True, True]])

  def expected(z):
    parts = []
    for b, k in zip(*np.nonzero(known), strict=True):
      p, t = 1 / (1 + np.exp(-z[b, ..., k])), masks[b, ..., k]
      entropy = -np.where(t, np.log(p), np.log(1 - p)).mean()
      parts.append(entropy + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    return np.mean(parts)

  with jax.enable_x64(True):
    value, gradient = jax.value_and_grad(lambda z: decoder.loss(z, masks, known)[0])(logits)
  np.testing.assert_allclose(value, expected(logits), rtol=1e-6)
  step = np.zeros_like(logits)
  for place in [(0, 1, 2, 0), (1, 3, 3, 1), (0, 0, 0, 1)]:
    step[place] = 1e-5
    change = (expected(logits + step) - expected(logits - step)) / 2e-5
    np.testing.assert_allclose(gradient[place], change, atol=1e-7)
    step[place] = 0
  assert gradient[0, ..., 1].any() == False  # noqa: E712 - an array's bool
  total, _ = decoder.loss(jnp.array(logits), jnp.array(masks), jnp.zeros((2, 2), bool))
  assert total == 0


def test_the_decoder_looks_at_every_level():
  levels = [jnp.ones((1, 16 // 2**i, 16 // 2**i, 3)) for i in range(4)]
  head = decoder.Decoder(findings=2, channels=4)
  variables = jax.jit(head.init)(jax.random.key(0), levels)
  apply = jax.jit(lambda some: head.apply(variables, some))
  out = apply(levels)
  assert out.shape == (1, 16, 16, 2) and out.dtype == jnp.float32
  assert decoder.to_square(out, 64).shape == (1, 64, 64, 2)
  for i in range(4):
    lit = list(levels)
    lit[i] = lit[i].at[0, -1, -1].set(9.0)
    change = np.abs(apply(lit) - out)[0].sum(-1)
    assert change[8:, 8:].sum() > change[:8, :8].sum()
