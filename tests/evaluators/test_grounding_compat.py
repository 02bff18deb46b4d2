"""Each emulated protocol against a computation of its own, pixel by pixel, from its description."""

import itertools
import math

import cv2
import numpy as np
import pytest
from scipy import ndimage

from input_pipeline.example import Example, Region
from plan_jax.evaluators import grounding_compat as compat
from plan_jax.inference import prompts
from plan_jax.metrics.localization import cnr, mixture_threshold

H, W, GRID = 40, 56, (5, 7)


class Model:
  """A map that it is given; of an image of W x H `crop` of (x0, y0, x1, y1) alone is seen."""

  def __init__(self, grid, crop=(0, 0, W, H), map_sigma=0, map_nearest=False):
    self.grid, self.crop = np.asarray(grid, np.float32), crop
    self.map_sigma, self.map_nearest = map_sigma, map_nearest

  def similarities(self, images, phrases, of):
    assert of == "phrase"
    return np.stack([self.grid] * len(phrases))

  def to_image(self, grid, shape, *, nearest=False):
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    whole = cv2.resize(np.asarray(grid, np.float32), shape[::-1], interpolation=mode)
    x0, y0, x1, y1 = np.multiply(self.crop, (*shape[::-1], *shape[::-1])) // (W, H, W, H)
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
  predicted = {p for p in scored if heatmap[p] > threshold}
  return len(predicted & mask) / len(predicted | mask) if predicted | mask else 0.0


def values_of(name, grid, image=EXAMPLE, **model):
  scores = compat.score_compat(Model(grid, **model), [image])[name]
  return dict(zip(scores.ids, scores.values.tolist(), strict=True)), scores


def test_vios_s():
  grid = random_grid()
  values, scores = values_of("compat-vios-s-v2", grid)
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
  values, _ = values_of("compat-vios-s-v2", grid, image, crop=crop, **own)
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
  assert (
    "compat-vios-s-v2: 1 of 3 examples have no region in what is scored" in capsys.readouterr().out
  )
  rows = compat.compat_rows(
    compat.score_compat(Model(grid, crop, **own), [image]), data="toy", resamples=0
  )
  counts = {(r.protocol, r.group): r.n for r in rows if r.metric == "signed CNR"}
  assert counts["compat-vios-s-v2", "macro"] == 2 and counts["compat-vios-s-v2", "opacity"] == 2
  # A map without contrast, and a box inside of an earlier one, count as 0.
  flat, _ = values_of("compat-vios-s-v2", -np.ones(GRID))
  assert flat["i\tleft opacity"] == [0, 0, 0]
  nested = example(region("a", "a", (2, 3, 14, 20), (4, 4, 9, 9)))
  values, _ = values_of("compat-vios-s-v2", random_grid(), nested)
  heatmap = Model(random_grid()).to_image(np.maximum(random_grid(), 0), (H, W))
  half = naive_cnr(heatmap, first, EVERYWHERE - first) / 2
  assert values["i\ta"][:2] == pytest.approx([half, abs(half)], rel=1e-4)


@pytest.mark.parametrize("crop", [(0, 0, W, H), (9, 0, 44, 31)])
def test_aep(crop):
  """Of the 56 x 56 square round the image the middle 49 x 49 is scored: 3.5 columns a side go."""
  grid = random_grid(1)
  values, _ = values_of("compat-aep-v2", grid, crop=crop)
  heatmap = Model(grid).to_image(ndimage.gaussian_filter(grid, 1.5), (H, W))
  scored = pixels(crop) & pixels((3, 0, 53, H))
  heatmap -= min(heatmap[p] for p in scored)
  heatmap = 2 * heatmap / max(heatmap[p] for p in scored) - 1
  first, second = (pixels(box) & scored for box in LEFT)
  mask, once = first | second, first ^ second
  overlap = np.mean([naive_iou(heatmap, t, mask, scored) for t in (0.1, 0.2, 0.3, 0.4, 0.5)])
  dice = []
  for t in (0.1, 0.2, 0.3, 0.4, 0.5):
    predicted = {p for p in scored if heatmap[p] > t}
    dice.append(2 * len(predicted & mask) / (len(predicted) + len(first) + len(second)))
  hit = float(max(scored, key=lambda p: heatmap[p]) in mask)
  expected = [naive_cnr(heatmap, once, scored - mask), overlap, np.mean(dice), hit]
  assert values["i\tleft opacity"] == pytest.approx(expected, rel=1e-4)
  # A constant map is -1 after scaling: every prediction is empty, there is nothing to average.
  flat = values_of("compat-aep-v2", np.ones(GRID))[0]["i\tnodule"]
  assert flat[0] == 0 and np.isnan(flat[1:3]).all()


def test_aep_leaves_out_what_lies_at_the_edge(capsys):
  image = example(region("edge", "a", (0, 5, 3, 30)), region("across", "a", (1, 5, 20, 30)))
  values, _ = values_of("compat-aep-v2", random_grid(), image)
  assert np.isnan(values["i\tedge"]).all() and not np.isnan(values["i\tacross"]).any()
  assert (
    "compat-aep-v2: 1 of 2 examples have no region in what is scored" in capsys.readouterr().out
  )
  tall = compat.centre(112, 40)
  assert tall.all(1).sum() == 98 and not tall[:7].any() and tall[7].all() and not tall[105:].any()


def test_a_region_of_all_that_is_scored_has_no_contrast():
  image = example(region("all", "a", (0, 0, W, H)))
  names = [name for name, rules in compat.PROTOCOLS.items() if not rules.by_prompt]
  scores = {name: values_of(name, random_grid(), image)[0]["i\tall"] for name in names}
  assert scores["compat-vios-s-v2"][:2] == [0, 0] and 0 < scores["compat-vios-s-v2"][2] < 1
  contrast, overlap, dice, hit = scores["compat-aep-v2"]
  assert np.isnan(contrast) and 0 < overlap < dice < 1 and hit == 1
  assert np.isnan(scores["compat-mgvla-v2"][0]) and np.isnan(scores["compat-g2g-v2"][0])
  assert scores["compat-radzero-v2"] == [1]


@pytest.mark.parametrize("name", ["compat-mgvla-v2", "compat-g2g-v2", "compat-radzero-v2"])
def test_cropped_pixels_are_least_similar_where_the_whole_image_is_scored(name):
  crop = (9, 3, 44, 31)

  class Filled(Model):
    def to_image(self, grid, shape, *, nearest=False):
      image = super().to_image(grid, shape, nearest=nearest)
      least = min(v for v in image.ravel() if not np.isnan(v))
      return np.array([[least if np.isnan(v) else v for v in row] for row in image], np.float32)

  seen = compat.score_compat(Model(random_grid(5), crop), [EXAMPLE])[name]
  filled = compat.score_compat(Filled(random_grid(5), crop), [EXAMPLE])[name]
  np.testing.assert_allclose(seen.values, filled.values)
  whole = compat.score_compat(Model(random_grid(5)), [EXAMPLE])[name]
  assert name == "compat-radzero-v2" or (seen.values != whole.values).any()


def test_mgvla_scores_boxes_on_the_mask_of_their_finding():
  grid = random_grid(2)
  values, scores = values_of("compat-mgvla-v2", grid)
  assert list(values) == ["i\tleft opacity", "i\tleft opacity #1", "i\tnodule", "i\tRight opacity"]
  heatmap = Model(grid).to_image(ndimage.gaussian_filter(grid, 1.5), (H, W), nearest=True)
  assert len(np.unique(heatmap)) == GRID[0] * GRID[1]  # no interpolation
  mask = pixels(*LEFT, (33, 20, 50, 39))
  expected = abs(naive_cnr(heatmap, mask, EVERYWHERE - mask))
  for phrase in ("left opacity", "left opacity #1", "Right opacity"):
    assert values[f"i\t{phrase}"] == pytest.approx([expected], rel=1e-4)
  assert scores.groups == ["opacity", "opacity", "nodule", "opacity"]


def blob(side, y, x, spread):
  rows, columns = np.mgrid[:side, :side]
  return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / spread).astype(np.float32)


def square_values(name, grid, side, *boxes_xywh, **model):
  """Metrics of one phrase with these boxes on a square image."""
  boxes = [(x, y, x + w, y + h) for x, y, w, h in boxes_xywh]
  png = cv2.imencode(".png", np.zeros((side, side), np.uint8))[1].tobytes()
  image = Example(png, side, side, "i", "s", "p", regions=(region("a", "a", *boxes),))
  return compat.score_compat(Model(grid, **model), [image])[name].values[0].tolist()


def test_values_of_the_published_code():
  """On these maps and boxes the projects' own functions gave these values."""
  grid = blob(19, 6, 7, 18)
  own = dict(map_sigma=1.5, map_nearest=True)
  inner_first = square_values(
    "compat-vios-s-v2", grid, 224, (80, 80, 20, 20), (60, 60, 100, 100), **own
  )
  assert inner_first[:2] == pytest.approx([0.996, 0.996], abs=5e-4)
  contrast, _, dice, _ = square_values(
    "compat-aep-v2", grid, 224, (20, 20, 100, 100), (60, 60, 100, 100)
  )
  assert (contrast, dice) == pytest.approx((1.388, 0.344), abs=5e-4)
  both = square_values("compat-g2g-v2", blob(64, 20, 24, 200), 512, (120, 90, 140, 140))[1]
  assert both == pytest.approx(0.4856, abs=5e-5)


def test_vios_s_paints_boxes_over_each_other():
  """Covered by one later box or by two: not scored; covered by an earlier one: scored as 0."""
  inner, outer = (80, 80, 20, 20), (60, 60, 100, 100)
  grid = blob(19, 6, 7, 18)

  def score(*boxes):
    return square_values("compat-vios-s-v2", grid, 224, *boxes)

  assert score(inner, outer) == score(outer)
  assert score(outer, inner)[0] == pytest.approx(score(outer)[0] / 2)
  halves = (60, 60, 30, 100), (90, 60, 70, 100)
  assert score(inner, *halves) == score(*halves)
  assert score(inner, halves[0])[0] != score(halves[0])[0]


class Fixed(Model):
  """A model with this map on the image."""

  def __init__(self, image):
    super().__init__(np.zeros(GRID))
    self.image = image

  def to_image(self, grid, shape, *, nearest=False):
    return self.image


@pytest.mark.parametrize("name", ["compat-vios-s-v2", "compat-aep-v2"])
def test_a_pixel_at_a_threshold_is_not_predicted(name):
  image = np.full((H, W), 0.0 if name == "compat-vios-s-v2" else -1.0, np.float32)
  image[10:20, 20:30], image[20:30, 20:30] = 0.5, 1
  truth = example(region("a", "a", (20, 20, 30, 30)))
  values = compat.score_compat(Fixed(image), [truth])[name].values[0].tolist()
  overlap = dict(zip(compat.PROTOCOLS[name].metrics, values, strict=True))["mIoU"]
  assert overlap == pytest.approx((4 * 0.5 + 1) / 5)


def test_aep_of_parts_that_do_not_vary():
  image = np.zeros((H, W), np.float32)
  image[20:30, 20:30] = 1
  for boxes, contrast in (([(20, 20, 30, 30)], 0), ([(20, 20, 30, 30)] * 2, np.nan)):
    truth = example(region("a", "a", *boxes))
    values = compat.score_compat(Fixed(image), [truth])["compat-aep-v2"].values[0].tolist()
    assert values == pytest.approx([contrast, 1, 2 / (1 + len(boxes)), 1], nan_ok=True)


def test_a_phrase_of_two_findings():
  """AEP counts it to the last finding, vios-s to the first, MGVLA each box to its own."""
  image = example(
    region("both", "opacity", (2, 3, 14, 20)),
    region("Both.", "nodule", (40, 5, 50, 12), (33, 20, 50, 39)),
  )
  scores = compat.score_compat(Model(random_grid(6)), [image])
  assert scores["compat-aep-v2"].groups == ["nodule"]
  assert scores["compat-vios-s-v2"].groups == ["opacity"]
  assert scores["compat-mgvla-v2"].groups == ["opacity", "nodule", "nodule"]
  grid = ndimage.gaussian_filter(random_grid(6), 1.5)
  heatmap = Model(grid).to_image(grid, (H, W), nearest=True)
  masks = [pixels((2, 3, 14, 20))] + [pixels((40, 5, 50, 12), (33, 20, 50, 39))] * 2
  expected = [abs(naive_cnr(heatmap, mask, EVERYWHERE - mask)) for mask in masks]
  assert scores["compat-mgvla-v2"].values.ravel() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_g2g(seed):
  """The steps of its code with the library it takes, on its 64 x 64 map."""
  mixture = pytest.importorskip("sklearn.mixture")
  rng = np.random.default_rng(seed)
  grid = blob(64, *rng.uniform(8, 56, 2), 150) + 0.7 * blob(64, *rng.uniform(8, 56, 2), 60)
  grid += 0.01 * rng.normal(size=grid.shape).astype(np.float32)
  contrast, both = square_values("compat-g2g-v2", grid, 512, (90, 70, 200, 240))
  scaled = (grid - grid.min()) / np.ptp(grid)
  fitted = mixture.GaussianMixture(2, random_state=0).fit(scaled.reshape(-1, 1).astype(float))
  bright = (scaled > np.mean(fitted.means_)).astype(np.float32)
  kept = bright.copy()
  for y, x in itertools.product(range(1, 63), range(1, 63)):
    kept[y, x] = bright[y - 1 : y + 2, x - 1 : x + 2].mean() >= 0.5
  assert 0 < np.abs(kept - bright).sum() < 300
  large = cv2.resize(kept, (512, 512)).round() == 1
  mask = np.zeros((512, 512), bool)
  mask[70:310, 90:290] = True
  ious = [(a & b).sum() / (a | b).sum() for a, b in ((large, mask), (~large, ~mask))]
  assert both == pytest.approx(np.mean(ious), abs=2e-3)
  heatmap = cv2.resize(scaled, (512, 512))
  a, b = heatmap[mask], heatmap[~mask]
  expected = (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) + b.var(ddof=1))
  assert contrast == pytest.approx(expected, rel=1e-4)


def test_g2g_of_another_grid_and_shape():
  """The map of 64 cells to the shorter side, 64 x 90 here, is filtered and comes back."""
  grid = np.full(GRID, 0.1, np.float32) + 0.02 * random_grid(3)
  grid[1:3, 1:4] += 1.0
  values, scores = values_of("compat-g2g-v2", grid)
  coarse = Model(grid).to_image(grid, (64, 90))
  coarse = (coarse - coarse.min()) / np.ptp(coarse)
  bright = (coarse > mixture_threshold(coarse)).astype(np.float32)
  kept = bright.copy()
  for y, x in itertools.product(range(1, 63), range(1, 89)):
    kept[y, x] = bright[y - 1 : y + 2, x - 1 : x + 2].sum() > 4.5
  large = cv2.resize(kept, (W, H)).round()
  bright = {p for p in EVERYWHERE if large[p]}
  mask = pixels((40, 5, 50, 12))
  both = (
    len(bright & mask) / len(bright | mask)
    + len((EVERYWHERE - bright) & (EVERYWHERE - mask)) / len(EVERYWHERE - (bright & mask))
  ) / 2
  heatmap = Model(grid).to_image(grid, (H, W))
  expected = [naive_cnr(heatmap, mask, EVERYWHERE - mask, unbiased=True), both]
  assert values["i\tnodule"] == pytest.approx(expected, rel=1e-4)
  assert set(scores.groups) == {"all"}


def test_g2g_without_foreground():
  """A lone cell is filtered away, though not at the edge, which the filter does not reach."""
  box = (0, 0, 100, 100)
  lone = np.zeros((64, 64), np.float32)
  assert square_values("compat-g2g-v2", lone, 512, box) == [0, 0]
  lone[30, 30] = 1
  assert square_values("compat-g2g-v2", lone, 512, box) == [0, 0]
  lone[30, 30], lone[0, 5] = 0, 1
  contrast, both = square_values("compat-g2g-v2", lone, 512, box)
  assert contrast > 0 and both > 0.4


@pytest.mark.parametrize(
  ("place", "expected"),
  [((1, 1), 1), ((2, 3), 1), ((6, 5), 1), ((6, 6), 0), ((7, 5), 0), ((1, 0), 0), ((0, 1), 0)],
)
def test_radzero_knows_the_first_box_alone_with_its_last_edge(place, expected):
  image = np.zeros((H, W), np.float32)
  image[place] = 1
  truth = example(region("a", "a", (1, 1, 5, 6), (10, 10, 30, 30)))
  assert compat.score_compat(Fixed(image), [truth])["compat-radzero-v2"].values.tolist() == [
    [expected]
  ]


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_of_two_gaussians(seed):
  """Within what scikit-learn's own starting points make of it."""
  mixture = pytest.importorskip("sklearn.mixture")
  rng = np.random.default_rng(seed)
  heatmap = cv2.resize(rng.normal(size=(9, 9)), (64, 64), interpolation=cv2.INTER_CUBIC)
  heatmap = (heatmap - heatmap.min()) / np.ptp(heatmap)
  fits = [mixture.GaussianMixture(2, random_state=i).fit(heatmap.reshape(-1, 1)) for i in range(3)]
  means = [fit.means_.mean() for fit in fits]
  assert min(means) - 5e-3 < mixture_threshold(heatmap) < max(means) + 5e-3


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
  scores = scores["compat-aep-v2"]
  per = [
    np.mean([v[1] for v, g in zip(scores.values, scores.groups, strict=True) if g == name])
    for name in ("nodule", "opacity")
  ]
  assert cells["compat-aep-v2", "macro", "mIoU"].value == pytest.approx(np.mean(per))
  assert ("compat-g2g-v2", "macro", "unbiased CNR") not in cells
  assert cells["compat-g2g-v2", "all", "unbiased CNR"].n == 4
  assert cells["compat-mgvla-v2", "macro", "absolute CNR"].n == 5
  assert compat.score_compat(Model(random_grid()), [example()]) == {}
  assert compat.compat_rows({}, data="toy") == []


@pytest.mark.parametrize(
  ("place", "first", "either"), [((1, 1), 1, 1), ((2, 6), 0, 0), ((15, 15), 0, 1), ((30, 30), 0, 1)]
)
def test_pointing_at_any_box(place, first, either):
  image = np.zeros((H, W), np.float32)
  image[place] = 1
  truth = example(
    region("a", "a", (1, 1, 5, 6), (10, 10, 20, 20)), region("A.", "a", (25, 25, 30, 30))
  )
  scores = compat.score_compat(Fixed(image), [truth])
  assert scores["compat-radzero-v2"].values.tolist() == [[first]]
  assert scores["compat-any-box-v1"].values.tolist() == [[either]]
  assert "compat-radzero-findings-v1" not in "".join(scores)  # which needs prompts


def test_pointing_by_the_prompt_of_the_finding(capsys):
  """Of the phrase nothing is asked; the mean is that of the findings."""
  (chosen,) = prompts.load(["radzero_chestx_det10"])
  asked = []

  class Asked(Model):
    def similarities(self, images, phrases, of):
      asked.extend(phrases)
      # A nodule's map peaks in the upper left, all others in the lower right.
      grids = np.zeros((len(phrases), *GRID), np.float32)
      for grid, phrase in zip(grids, phrases, strict=True):
        grid[(0, 0) if phrase == "There is Lung Nodule" else (-1, -1)] = 1
      return grids

  upper, lower = (0, 0, 10, 10), (46, 30, 56, 40)
  examples = [
    example(region("x", "Nodule", upper), region("y", "Mass", upper), region("z", "Oedema", lower)),
    example(region("x", "Nodule", lower, upper), image_id="j", patient="q"),
    example(region("x", "Nodule", lower), image_id="k", patient="r"),
  ]
  names = ("compat-radzero-findings-v1",)
  scores = compat.score_compat(Asked([[0]]), examples, names, chosen)
  assert asked == ["There is Lung Nodule", "There is Pulmonary Mass"] + ["There is Lung Nodule"] * 2
  assert (
    "1 phrases have findings without a prompt and are left out: Oedema" in capsys.readouterr().out
  )
  (name,) = scores
  assert name == f"compat-radzero-findings-v1, prompts {chosen.fingerprint}"
  cells = {row.group: row for row in compat.compat_rows(scores, data="toy", resamples=10)}
  assert {group: (row.value, row.n) for group, row in cells.items()} == {
    "macro": (pytest.approx(1 / 3), 4),
    "Nodule": (pytest.approx(2 / 3), 3),
    "Mass": (0, 1),
  }


def test_a_sharpened_map():
  """Against loops over the scored pixels; the pointing is that of the map itself."""
  grid = random_grid(8)
  values, scores = values_of("compat-aep-sharpened-v1", grid)
  plain, _ = values_of("compat-aep-v2", grid)
  heatmap = Model(grid).to_image(ndimage.gaussian_filter(grid, 1.5), (H, W)).astype(np.float64)
  scored = {p for p in EVERYWHERE if abs(p[0] + 0.5 - H / 2) <= 196 / 224 * W / 2}
  scored = {p for p in scored if abs(p[1] + 0.5 - W / 2) <= 196 / 224 * W / 2}
  low, high = (limit(heatmap[p] for p in scored) for limit in (min, max))
  u = {p: (heatmap[p] - low) / (high - low) for p in scored}
  numbers = np.array(list(u.values()))
  q = np.mean([v > numbers.mean() + numbers.std() for v in numbers])
  b = np.quantile(numbers, 1 - q)
  sharp = {p: 1 / (1 + math.exp(-min(60, max(-60, 96 * (v - b))))) for p, v in u.items()}
  low, high = min(sharp.values()), max(sharp.values())
  sharp = {p: 2 * (v - low) / (high - low) - 1 for p, v in sharp.items()}
  mask = pixels((40, 5, 50, 12)) & scored
  thresholds = (0.1, 0.2, 0.3, 0.4, 0.5)
  expected = [
    naive_cnr(sharp, mask, scored - mask),
    np.mean([naive_iou(sharp, t, mask, scored) for t in thresholds]),
  ]
  assert values["i\tnodule"][:2] == pytest.approx(expected, rel=1e-4)
  assert [v[3] for v in values.values()] == [v[3] for v in plain.values()]
  assert scores.groups == ["opacity", "nodule", "opacity"] and values != plain
  flat, _ = values_of("compat-aep-sharpened-v1", np.zeros(GRID))
  assert np.isfinite(flat["i\tnodule"][0])
