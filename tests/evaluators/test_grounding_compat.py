"""Each emulated protocol against a computation of its own, pixel by pixel, from its description."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from input_pipeline.example import Example, Region
from plan_jax.evaluators import grounding_compat as compat
from plan_jax.metrics.localization import cnr, foreground

H, W, GRID = 40, 56, (5, 7)


class Model:
  """A map that it is given; eight image pixels a cell, `crop` of (x0, y0, x1, y1) alone seen."""

  def __init__(self, grid, crop=(0, 0, W, H), map_sigma=0, map_nearest=False):
    self.grid, self.crop = np.asarray(grid, np.float32), crop
    self.map_sigma, self.map_nearest = map_sigma, map_nearest

  def similarities(self, images, phrases, of):
    assert of == "phrase"
    return np.stack([self.grid] * len(phrases))

  def to_image(self, grid, shape, *, nearest=False):
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    whole = cv2.resize(np.asarray(grid, np.float32), shape[::-1], interpolation=mode)
    x0, y0, x1, y1 = self.crop
    image = np.full_like(whole, np.nan)
    image[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
    return image


def region(phrase, label, *boxes):
  return Region(phrase, label, np.array(boxes, np.float32))


def example(*regions, image_id="i", patient="p"):
  image = cv2.imencode(".png", np.zeros((H, W), np.uint8))[1].tobytes()
  return Example(image, W, H, image_id, "s", patient, regions=regions)


def random_grid(seed=0):
  return np.random.default_rng(seed).normal(size=GRID).astype(np.float32)


EXAMPLE = example(
  region("left opacity", "opacity", (2, 3, 14, 20), (10, 10, 30, 30)),
  region("nodule", "nodule", (40, 5, 50, 12)),
  region("Right opacity", "opacity", (33, 20, 50, 39)),
)


def pixels(*boxes):
  return {
    (y, x) for x0, y0, x1, y1 in boxes for y, x in itertools.product(range(y0, y1), range(x0, x1))
  }


EVERYWHERE = set(itertools.product(range(H), range(W)))
LEFT = [(2, 3, 14, 20), (10, 10, 30, 30)]


def naive_cnr(heatmap, inside, outside, unbiased=False):
  a, b = ([float(heatmap[p]) for p in sorted(some)] for some in (inside, outside))
  mean = [sum(x) / len(x) for x in (a, b)]
  spread = [
    sum((v - m) ** 2 for v in x) / (len(x) - unbiased) for x, m in zip((a, b), mean, strict=True)
  ]
  return (mean[0] - mean[1]) / sum(spread) ** 0.5


def naive_iou(heatmap, threshold, mask, scored=EVERYWHERE):
  predicted = {p for p in scored if heatmap[p] >= threshold}
  return len(predicted & mask) / len(predicted | mask) if predicted | mask else 0.0


def values_of(name, grid, image=EXAMPLE, **model):
  scores = compat.score_compat(Model(grid, **model), [image])[name]
  return dict(zip(scores.ids, scores.values.tolist(), strict=True)), scores


def test_vios_s():
  grid = random_grid()
  values, scores = values_of("compat-vios-s", grid)
  heatmap = Model(grid).to_image(np.maximum(grid, 0), (H, W))
  first, second = pixels(LEFT[0]), pixels(LEFT[1])
  each = [
    naive_cnr(heatmap, first, EVERYWHERE - first),
    naive_cnr(heatmap, second - first, EVERYWHERE - first - second),
  ]
  overlap = np.mean([naive_iou(heatmap, t, first | second) for t in (0.1, 0.2, 0.3, 0.4, 0.5)])
  expected = [np.mean(each), np.mean(np.abs(each)), overlap]
  assert values["i\tleft opacity"] == pytest.approx(expected, rel=1e-4)
  assert scores.groups == ["opacity", "nodule", "opacity"]


def test_vios_s_of_a_model_that_crops(capsys):
  """By its own map; a box that is lost is dropped, with its phrase if there is no other."""
  grid, crop = random_grid(7) + 0.3, (12, 8, 38, 36)
  own = dict(map_sigma=1.5, map_nearest=True)
  lost = region("left opacity", "opacity", (0, 0, 12, 40))
  image = example(lost, *EXAMPLE.regions)
  values, _ = values_of("compat-vios-s", grid, image, crop=crop, **own)
  heatmap = Model(grid).to_image(
    np.maximum(ndimage.gaussian_filter(grid, 1.5), 0), (H, W), nearest=True
  )
  seen, first, second = pixels(crop), pixels(LEFT[0]), pixels(LEFT[1])
  each = [
    naive_cnr(heatmap, first & seen, seen - first),
    naive_cnr(heatmap, (second - first) & seen, seen - first - second),
  ]
  # Of the true boxes the part that was not seen stays: it cannot be scores.
  overlap = np.mean(
    [naive_iou(heatmap, t, first | second, seen) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
  )
  assert len((first | second) - seen) > 50
  expected = [np.mean(each), np.mean(np.abs(each)), overlap]
  assert values["i\tleft opacity"] == pytest.approx(expected, rel=1e-4)
  assert np.isnan(values["i\tnodule"]).all()
  assert "compat-vios-s: 1 of 3 phrases have no region in what is scored" in capsys.readouterr().out
  rows = compat.compat_rows(
    compat.score_compat(Model(grid, crop, **own), [image]), data="toy", resamples=0
  )
  counts = {(r.protocol, r.group): r.n for r in rows if r.metric == "signed CNR"}
  assert counts["compat-vios-s", "macro"] == 2 and counts["compat-vios-s", "opacity"] == 2
  # A map without contrast, and a box inside of an earlier image, count as 0.
  flat, _ = values_of("compat-vios-s", -np.ones(GRID))
  assert flat["i\tleft opacity"] == [0, 0, 0]
  nested = example(region("a", "a", (2, 3, 14, 20), (4, 4, 9, 9)))
  values, _ = values_of("compat-vios-s", random_grid(), nested)
  heatmap = Model(random_grid()).to_image(np.maximum(random_grid(), 0), (H, W))
  half = naive_cnr(heatmap, first, EVERYWHERE - first) / 2
  assert values["i\ta"][:2] == pytest.approx([half, abs(half)], rel=1e-4)


@pytest.mark.parametrize("crop", [(0, 0, W, H), (9, 0, 44, 31)])
def test_aep(crop):
  """Of the 56 x 56 square round the image the middle 49 x 49 is scored: 3.5 columns a side go."""
  grid = random_grid(1)
  values, _ = values_of("compat-aep", grid, crop=crop)
  heatmap = Model(grid).to_image(ndimage.gaussian_filter(grid, 1.5), (H, W))
  scored = pixels(crop) & pixels((3, 0, 53, H))
  heatmap -= min(heatmap[p] for p in scored)
  heatmap = 2 * heatmap / max(heatmap[p] for p in scored) - 1
  mask = pixels(*LEFT) & scored
  overlap = np.mean([naive_iou(heatmap, t, mask, scored) for t in (0.1, 0.2, 0.3, 0.4, 0.5)])
  dice = []
  for t in (0.1, 0.2, 0.3, 0.4, 0.5):
    predicted = {p for p in scored if heatmap[p] >= t}
    dice.append(2 * len(predicted & mask) / (len(predicted) + len(mask)))
  hit = float(max(scored, key=lambda p: heatmap[p]) in mask)
  expected = [naive_cnr(heatmap, mask, scored - mask), overlap, np.mean(dice), hit]
  assert values["i\tleft opacity"] == pytest.approx(expected, rel=1e-4)
  # A constant map is -1 after scaling: every prediction is empty, there is nothing to average.
  assert np.isnan(values_of("compat-aep", np.ones(GRID))[0]["i\tnodule"][:3]).all()


def test_aep_leaves_out_what_lies_at_the_edge(capsys):
  image = example(region("edge", "a", (0, 5, 3, 30)), region("across", "a", (1, 5, 20, 30)))
  values, _ = values_of("compat-aep", random_grid(), image)
  assert np.isnan(values["i\tedge"]).all() and not np.isnan(values["i\tacross"]).any()
  assert "compat-aep: 1 of 2 phrases have no region in what is scored" in capsys.readouterr().out
  tall = compat.centre(112, 40)
  assert tall.all(1).sum() == 98 and not tall[:7].any() and tall[7].all() and not tall[105:].any()


def test_a_region_of_all_that_is_scored_has_no_contrast():
  image = example(region("all", "a", (0, 0, W, H)))
  scores = {name: values_of(name, random_grid(), image)[0]["i\tall"] for name in compat.PROTOCOLS}
  assert scores["compat-vios-s"][:2] == [0, 0] and 0 < scores["compat-vios-s"][2] < 1
  contrast, overlap, dice, hit = scores["compat-aep"]
  assert np.isnan(contrast) and 0 < overlap < dice < 1 and hit == 1
  assert np.isnan(scores["compat-mgvla"][0]) and np.isnan(scores["compat-g2g"][0])
  assert scores["compat-radzero"] == [1]


@pytest.mark.parametrize("name", ["compat-mgvla", "compat-g2g", "compat-radzero"])
def test_cropped_pixels_are_least_similar_where_the_whole_image_is_scored(name):
  crop = (9, 3, 44, 31)

  class Filled(Model):
    def to_image(self, grid, shape, *, nearest=False):
      image = super().to_image(grid, shape, nearest=nearest)
      least = min(image[p] for p in pixels(crop))
      return np.array([[least if np.isnan(v) else v for v in row] for row in image], np.float32)

  seen = compat.score_compat(Model(random_grid(5), crop), [EXAMPLE])[name]
  filled = compat.score_compat(Filled(random_grid(5), crop), [EXAMPLE])[name]
  np.testing.assert_allclose(seen.values, filled.values)
  whole = compat.score_compat(Model(random_grid(5)), [EXAMPLE])[name]
  assert name == "compat-radzero" or (seen.values != whole.values).any()


def test_mgvla_scores_boxes_on_the_mask_of_their_finding():
  grid = random_grid(2)
  values, scores = values_of("compat-mgvla", grid)
  assert list(values) == ["i\tleft opacity", "i\tleft opacity #1", "i\tnodule", "i\tRight opacity"]
  heatmap = Model(grid).to_image(ndimage.gaussian_filter(grid, 1.5), (H, W), nearest=True)
  assert len(np.unique(heatmap)) == GRID[0] * GRID[1]  # no interpolation
  mask = pixels(*LEFT, (33, 20, 50, 39))
  expected = abs(naive_cnr(heatmap, mask, EVERYWHERE - mask))
  for phrase in ("left opacity", "left opacity #1", "Right opacity"):
    assert values[f"i\t{phrase}"] == pytest.approx([expected], rel=1e-4)
  assert scores.groups == ["opacity", "opacity", "nodule", "opacity"]


def test_g2g():
  grid = np.full(GRID, 0.1, np.float32) + 0.02 * random_grid(3)
  grid[1:3, 1:4] += 1.0
  values, scores = values_of("compat-g2g", grid)
  heatmap = Model(grid).to_image(grid, (H, W))
  heatmap = (heatmap - heatmap.min()) / np.ptp(heatmap)
  mask = pixels((40, 5, 50, 12))
  part = foreground(heatmap)
  bright = {p for p in EVERYWHERE if part[p]}
  both = (
    len(bright & mask) / len(bright | mask)
    + len((EVERYWHERE - bright) & (EVERYWHERE - mask)) / len(EVERYWHERE - (bright & mask))
  ) / 2
  expected = [naive_cnr(heatmap, mask, EVERYWHERE - mask, unbiased=True), both]
  assert values["i\tnodule"] == pytest.approx(expected, rel=1e-4)
  assert set(scores.groups) == {"all"}


def test_radzero_knows_the_first_box_alone():
  for place, expected in (((1, 1), 1.0), ((2, 2), 0.0)):
    grid = np.zeros(GRID)
    grid[place] = 1
    values, _ = values_of("compat-radzero", grid)
    assert values["i\tleft opacity"] == [expected]


def test_the_brighter_of_two_gaussians():
  rng = np.random.default_rng(0)
  truth = np.zeros((60, 60), bool)
  truth[10:25, 20:50] = True
  heatmap = np.where(truth, rng.normal(0.8, 0.05, (60, 60)), rng.normal(0.2, 0.1, (60, 60)))
  assert (foreground(heatmap) == truth).mean() > 0.999
  assert not foreground(np.full((5, 5), 0.3)).any()
  two = np.zeros((4, 4))
  two[0, 0] = 1
  assert foreground(two).sum() == 1


@pytest.mark.parametrize("apart", [2.5, 3.5])
def test_two_gaussians_that_overlap(apart):
  """As scikit-learn fits the mixture to the pixels themselves."""
  mixture = pytest.importorskip("sklearn.mixture")
  rng = np.random.default_rng(1)
  heatmap = rng.normal(0, 1, (80, 80))
  heatmap[20:60, 20:50] = rng.normal(apart, 0.6, (40, 30))
  heatmap = (heatmap - heatmap.min()) / np.ptp(heatmap)
  x = heatmap.reshape(-1, 1)
  fitted = mixture.GaussianMixture(2, tol=1e-7, max_iter=2000, means_init=[[0.3], [0.6]]).fit(x)
  wanted = fitted.predict(x) == fitted.means_[:, 0].argmax()
  assert (foreground(heatmap) == wanted.reshape(heatmap.shape)).mean() > 0.98


def test_degenerate_cnr():
  heatmap = np.arange(12.0).reshape(3, 4)
  nothing, everything = np.zeros((3, 4), bool), np.ones((3, 4), bool)
  image = nothing.copy()
  image[0, 0] = True
  assert np.isnan(cnr(heatmap, nothing, everything))
  assert np.isnan(cnr(heatmap, everything, nothing))
  assert np.isnan(cnr(np.ones((3, 4)), image, ~image))
  assert np.isnan(cnr(heatmap, image, ~image, ddof=1))  # image pixel has no unbiased variance
  assert np.isfinite(cnr(heatmap, image, ~image))


def test_rows_average_as_each_protocol_says():
  examples = [
    EXAMPLE,
    example(region("nodule", "nodule", (0, 0, 9, 9)), image_id="j", patient="q"),
    example(),
  ]
  scores = compat.score_compat(Model(random_grid(4)), examples)
  rows = compat.compat_rows(scores, data="toy", resamples=20)
  cells = {(r.protocol, r.group, r.metric): r for r in rows}
  scores = scores["compat-aep"]
  per = [
    np.mean([v[1] for v, g in zip(scores.values, scores.groups, strict=True) if g == name])
    for name in ("nodule", "opacity")
  ]
  assert cells["compat-aep", "macro", "mIoU"].value == pytest.approx(np.mean(per))
  assert ("compat-g2g", "macro", "unbiased CNR") not in cells
  assert cells["compat-g2g", "all", "unbiased CNR"].n == 4
  assert cells["compat-mgvla", "macro", "absolute CNR"].n == 5
  assert compat.score_compat(Model(random_grid()), [example()]) == {}
  assert compat.compat_rows({}, data="toy") == []
