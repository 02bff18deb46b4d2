"""Grounding: phrases, chance baselines, cropped pixels, and the scores from end to end."""

import math

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.example import Example, Region
from plan_jax.evaluators import chance, grounding
from plan_jax.evaluators.phrases import phrases
from plan_jax.metrics.localization import METRICS, Heatmap, TrueMask, localization_metrics


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


def test_cropped_pixels_count_as_misses(capsys):
  mask = np.zeros((12, 10), bool)
  mask[1:7, 2:9] = True
  heatmap = np.random.default_rng(0).random((12, 10)).astype(np.float32)
  heatmap[:3] = np.nan
  known, truth = np.nan_to_num(heatmap), TrueMask(mask)
  values = [localization_metrics(Heatmap(each), truth) for each in (heatmap, known)]
  np.testing.assert_array_equal(*values)
  with pytest.raises(ValueError, match="ranges from nan to nan"):
    Heatmap(np.full((12, 10), np.nan, np.float32))

  class Cropping(_Oracle):
    """Sees the right half alone."""

    def maps(self, images, phrases, of):
      maps = super().maps(images, phrases, of)
      for heatmap in maps:
        heatmap[:, : heatmap.shape[1] // 2] = np.nan
      return maps

  both = _example("both", [Region("left and right", "both", _boxes((10, 2, 30, 20)))])
  scores = grounding.score_grounding(Cropping(), [*_data(4), both], None)
  assert capsys.readouterr().out == (
    "grounding: of 5 phrases, 1 have a region partly and 2 wholly outside of what the model saw;"
    " its pixels count as not found\n"
  )
  by_id = dict(zip(scores["run"].ids, scores["run"].values, strict=True))
  left, right = by_id["image1\tleft lung"], by_id["image0\tright lung"]
  assert left[2:].tolist() == [0] * 9 and left[0] < 0
  assert right[2:].tolist() == [1] * 9 and right[0] > 10
  grounding.score_grounding(_Oracle(), _data(4), None)
  assert capsys.readouterr().out == ""


def test_regions_of_one_phrase_are_one_example():
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
  first, second = phrases(example)
  assert (first.text, first.label, first.example.patient_id) == (
    "Small left effusion",
    "effusion",
    "one",
  )
  expected = mask > 0
  expected[:3, :4] = True
  assert (first.mask == expected).all()  # the mask stands in for the box beside it
  expected = np.zeros((24, 36), bool)
  expected[10:12, 10:14] = True
  assert (second.mask == expected).all()


def test_a_wrong_mask_is_named():
  small = Region("x", "nodule", _boxes(), _png(np.ones((3, 3), np.uint8)))
  with pytest.raises(UserError, match="nodule.*image7 is 3 x 3, its image 36 x 24"):
    phrases(_example("image7", [small]))
  with pytest.raises(UserError, match="image8"):
    phrases(_example("image8", [Region("x", "nodule", _boxes(), b"no png")]))


def test_centre_is_round_and_central_on_any_image():
  heatmap = chance.centre(40, 80)
  assert heatmap.shape == (40, 80) and heatmap.dtype == np.float32 and heatmap.max() == 1
  assert heatmap[19, 39] == heatmap[20, 40] == 1
  assert heatmap[19, 49] == pytest.approx(heatmap[29, 39], abs=1e-6)  # 10 px along x and along y
  assert heatmap[20, 50] == pytest.approx(math.exp(-(10.5**2 + 0.5) / 200 + 0.5 / 200), abs=2e-3)


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


@pytest.mark.parametrize(
  ("phrase", "place"),
  [
    ("small right basal opacity", "right lower"),
    ("nodule in the left mid zone", "left middle"),
    ("Right apical pneumothorax", "right upper"),
    ("biapical scars", "left right upper"),
    ("bibasilar atelectasis", "left right lower"),
    ("tuberculosis in the bilateral upper and middle fields", "left right upper middle"),
    ("RUL mass at the apex", "right upper"),
    ("RML opacity", "right middle"),
    ("Rt upper zone", "right upper"),
    ("lt. base, midzones", "left middle lower"),
    ("LLL collapse, left lung bases", "left lower"),
    ("midline tube", ""),
    ("enlarged heart", ""),
    ("opacity in the lower lobes", "lower"),
  ],
)
def test_places_by_their_words(phrase, place):
  assert chance.place(phrase) == tuple(place.split())


def test_the_prior_by_place():
  """Two findings share a place; a place without regions has the mean of the finding."""
  upper, inner, lower, whole = (0, 0, 12, 12), (0, 0, 6, 12), (0, 12, 12, 24), (0, 0, 24, 24)
  train = [
    _example(str(i), [Region(phrase, label, _boxes(box))], 24, 24)
    for i, (phrase, label, box) in enumerate(
      [
        ("right upper mass", "mass", upper),
        ("scar of the right apex", "scar", inner),
        ("right basal mass", "mass", lower),
        ("a scar", "scar", whole),
      ]
    )
  ]
  prior = grounding.box_prior(train, grid=24)
  assert prior.counts == {"mass": 2, "scar": 2}
  assert prior.places.counts == {("right", "upper"): 2, ("right", "lower"): 1}
  for phrase, label, boxes in [
    ("small nodule in the right upper zone", "nodule", [upper, inner]),
    ("RLL scar", "scar", [lower]),
    ("left upper mass", "mass", [upper, lower]),
    ("a mass", "mass", [upper, lower]),
    ("left nodule", "nodule", [upper, inner, lower, whole]),
  ]:
    expected = np.zeros((24, 24))
    for x0, y0, x1, y1 in boxes:
      expected[y0:y1, x0:x1] += 1
    found = prior.mean_box_per_place(phrase, label, 24, 24)
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-6)


class _Oracle:
  """Knows where each phrase lies: "left" or "right"; records what it was asked."""

  grid = (4, 6)

  def __init__(self, blur=0.01):
    self.blur, self.asked = blur, []

  def maps(self, images, phrases, of):
    self.asked.append(len(phrases))
    maps = []
    for image, phrase in zip(images, phrases, strict=True):
      assert image.dtype == np.uint8
      heatmap = np.full(image.shape, self.blur, np.float32)
      half = image.shape[1] // 2
      heatmap[:, :half] += (1 - self.blur) * ("left" in phrase)
      heatmap[:, half:] += (1 - self.blur) * ("right" in phrase)
      maps.append(np.minimum(heatmap * np.linspace(0.9, 1, image.shape[1], dtype=np.float32), 1))
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


def evaluate(model, examples, prior=(), *, batch=64, resamples=10):
  scores = grounding.score_grounding(model, examples, grounding.box_prior(prior), batch=batch)
  return grounding.grounding_rows(scores, data="toy/test", resamples=resamples)


def test_evaluator_from_end_to_end():
  oracle = _Oracle()
  examples = [*_data(20, 100), _example("without", [])]
  full = Region("left everything", "left", _boxes((0, 0, 36, 24)))
  examples.append(_example("full", [full]))
  rows = evaluate(oracle, iter(examples), _data(10), batch=8, resamples=100)
  assert oracle.asked == [8, 8, 5]
  cells = {(r.group, r.metric, r.model): r for r in rows}
  assert len(cells) == len(rows) == 3 * len(METRICS) * 6
  assert {r.protocol for r in rows} == {"grounding-v1"} and rows[0].group == "macro"
  means = {"mean_box", "mean_box_per_finding", "mean_box_per_place"}
  assert {r.model for r in rows} == {"run", "random", "centre", *means}
  macro = {m: cells["macro", "mIoU", m] for m in ("run", "random", "centre", "mean_box")}
  assert macro["run"].value > 0.9 > 0.75 > max(macro[m].value for m in list(macro)[1:])
  assert macro["run"].low <= macro["run"].value <= macro["run"].high
  assert abs(cells["macro", "signed CNR", "random"].value) < 0.5
  assert cells["macro", "pointing", "random"].value == pytest.approx(0.5, abs=0.35)
  assert cells["right", "pointing", "run"].value == 1
  # The image whose region is everything has no contrast: counted out of CNR, but not of mIoU.
  assert cells["left", "signed CNR", "run"].n == 10 and cells["left", "mIoU", "run"].n == 11
  again = evaluate(_Oracle(), examples, _data(10), batch=3, resamples=100)
  assert [r.value for r in again] == pytest.approx([r.value for r in rows], nan_ok=True)


def test_without_training_regions_the_prior_baselines_are_missing():
  rows = evaluate(_Oracle(), _data(4))
  assert {r.model for r in rows} == {"run", "random", "centre"}
  assert evaluate(_Oracle(), [_example("x", [])]) == []


def test_wrong_maps_and_images_are_named():
  class Wrong(_Oracle):
    def maps(self, images, phrases, of):
      return [np.zeros((2, 2), np.float32) for _ in phrases]

  with pytest.raises(ValueError, match="image0, 'right lung'"):
    evaluate(Wrong(), _data(1))
  example = next(_data(1))
  for broken in ({"image": b"no"}, {"width": 40}):
    with pytest.raises(UserError, match="image0"):
      changed = Example(**{**example.__dict__, **broken})
      evaluate(_Oracle(), [changed])
