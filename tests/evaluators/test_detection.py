"""Detection: precision as pycocotools has it, FROC by hand, rows and published rules."""

import dataclasses
import math

import numpy as np
import pytest

from input_pipeline.boxes import iou
from plan_jax.evaluators import detection as evaluator
from plan_jax.metrics import detection
from plan_jax.metrics.coco import coco_precision
from plan_jax.metrics.detection import METRICS, THRESHOLDS, Image

NONE = np.zeros((0, 4))


def image(i, truth=NONE, boxes=NONE, scores=(), truth_labels=None, labels=None, patient=None):
  truth, boxes = np.array(truth, float).reshape(-1, 4), np.array(boxes, float).reshape(-1, 4)
  truth_labels = np.zeros(len(truth), int) if truth_labels is None else np.array(truth_labels, int)
  labels = np.zeros(len(boxes), int) if labels is None else np.array(labels, int)
  return Image(
    f"image{i}",
    f"p{i}" if patient is None else patient,
    60,
    80,
    truth,
    truth_labels,
    boxes,
    np.array(scores, float),
    labels,
  )


def _boxes(rng, count, side=12):
  corner = rng.integers(0, side, (count, 2))
  return np.concatenate([corner, corner + rng.integers(2, side, (count, 2))], 1)


def _images(seed, count=30, findings=3, digits=9):
  """Some without truth, some without predictions; predictions near truth, and elsewhere."""
  rng = np.random.default_rng(seed)
  images = []
  for i in range(count):
    truth, boxes = _boxes(rng, rng.integers(0, 4)), _boxes(rng, rng.integers(0, 6))
    truth_labels = rng.integers(0, findings, len(truth))
    seen = rng.random(len(truth)) < 0.8
    near = truth[seen] + rng.integers(-1, 2, (seen.sum(), 4)) * [0, 0, 1, 1]
    labels = np.concatenate([rng.integers(0, findings, len(boxes)), truth_labels[seen]])
    scores = rng.random(len(labels)) + (np.arange(len(labels)) >= len(boxes))
    boxes = np.concatenate([boxes, near])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    images.append(
      image(i, truth, boxes, np.round(scores, digits), truth_labels, labels, patient=f"p{i // 2}")
    )
  return images


def _column(name):
  return METRICS.index(name)


@pytest.mark.parametrize("digits", [9, 1])  # of the scores: without ties, and with many
def test_average_precision_is_that_of_pycocotools(digits):
  for seed in range(5):
    images = _images(seed, digits=digits)
    wanted = coco_precision(images, 4)  # the last has no true box
    actual = detection.detection_metrics(images, 4, np.ones((1, len(images))))[0]
    for name, part in detection.PRECISIONS.items():
      np.testing.assert_allclose(actual[:, _column(name)], wanted[:, part].mean(1), atol=1e-12)
    assert np.isnan(actual[3]).all() and 0.1 < np.nanmean(actual[:, 0]) < 0.9


def test_an_image_that_counts_twice_is_two_images():
  images = _images(1)
  weights = np.random.default_rng(0).integers(0, 3, (4, len(images)))
  actual = detection.detection_metrics(images, 3, weights)
  for row, counts in zip(actual, weights, strict=True):
    several = [each for each, count in zip(images, counts, strict=True) for _ in range(count)]
    wanted = coco_precision(several, 3)
    for name, part in detection.PRECISIONS.items():
      np.testing.assert_allclose(row[:, _column(name)], wanted[:, part].mean(1), atol=1e-12)
    same = detection.detection_metrics(several, 3, np.ones((1, len(several))))[0]
    np.testing.assert_allclose(row, same, atol=1e-12)


def test_average_precision_by_hand():
  box, far = [0, 0, 10, 10], [40, 40, 50, 50]
  images = [
    image(0, [box], [box], [0.9]),
    image(1, [], [far], [0.8]),  # false, on an image without boxes
    image(2, [box], [[0, 0, 10, 5]], [0.7]),  # IoU .5
    image(3, [box]),  # missed
  ]
  actual = detection.detection_metrics(images, 1, np.ones((1, 4)))[0, 0]
  # Recall 1/3 at precision 1, and 2/3 at 2/3: 34 and 33 of the 101 recalls.
  low, high = (34 + 33 * 2 / 3) / 101, 34 / 101
  assert actual[_column("AP50")] == pytest.approx(low)
  assert actual[_column("mAP .4-.75")] == pytest.approx((3 * low + 5 * high) / 8)
  assert actual[_column("mAP .5-.95")] == pytest.approx((low + 9 * high) / 10)


def test_perfect_and_empty():
  box = [0, 0, 10, 10]
  perfect = [image(i, [box], [box], [0.5]) for i in range(3)]
  np.testing.assert_allclose(detection.detection_metrics(perfect, 1, np.ones((1, 3))), 1)
  silent = [image(i, [box]) for i in range(3)]
  np.testing.assert_array_equal(detection.detection_metrics(silent, 1, np.ones((1, 3))), 0)
  np.testing.assert_array_equal(coco_precision(silent, 1), 0)
  healthy = [image(i, [], [box], [0.5]) for i in range(3)]
  assert np.isnan(detection.detection_metrics(healthy, 1, np.ones((1, 3)))).all()
  assert evaluator.detection_rows(healthy, ["mass"], data="toy/test") == []


def _matched(boxes, truth, threshold):
  """Prediction after prediction, box after box."""
  taken, right = set(), []
  for box in boxes:
    best, chosen = threshold, None
    for t in range(len(truth)):
      overlap = iou(box[None], truth[t][None])[0, 0]
      if t not in taken and overlap >= best:
        best, chosen = overlap, t
    taken.add(chosen)
    right.append(chosen is not None)
    taken.discard(None)
  return right


def test_matching_takes_each_true_box_once():
  for seed in range(30):
    rng = np.random.default_rng(seed)
    truth, boxes = _boxes(rng, 4, 6).astype(float), _boxes(rng, 8, 6).astype(float)
    actual = detection.match(boxes, truth, THRESHOLDS)
    for t, threshold in enumerate(THRESHOLDS):
      assert actual[t].tolist() == _matched(boxes, truth, threshold)
  assert detection.match(NONE, truth, THRESHOLDS).shape == (12, 0)
  assert not detection.match(boxes, NONE, THRESHOLDS).any()


def test_froc_by_hand():
  box, far = [0, 0, 10, 10], [40, 40, 50, 50]
  inner, edge = [4, 4, 6, 6], [5, 0, 15, 10]  # centres in the box, and on its right edge
  images = [
    image(0, [box], [inner, inner, far], [0.9, 0.8, 0.3]),
    image(1, [box, far], [edge, far], [0.7, 0.6]),
    image(2, [], [box], [0.6]),  # false, and tied with a hit
    image(3, [box], [box], [0.2]),
  ]
  actual = detection.detection_metrics(images, 1, np.ones((1, 4)))[0, 0]
  at = {name: actual[_column(f"sensitivity at {name} FP")] for name in detection.RATES}
  # False are .7, .6, .3; of 4 images, so 1/4 allows one: up to, not with, the tie at .6.
  assert at == dict(zip(at, [0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75], strict=True))
  assert actual[_column("FROC")] == pytest.approx(4 / 7)


def test_examples_are_the_true_boxes_at_the_same_limits():
  images = _images(2)
  actual = evaluator.detection_scores(images, ["a", "b", "c"])
  assert actual.metrics == detection.SENSITIVITIES and len(actual.ids) == sum(
    len(each.truth) for each in images
  )
  wanted = detection.detection_metrics(images, 3, np.ones((1, len(images))))[0]
  for label, name in enumerate("abc"):
    own = [i for i, group in enumerate(actual.groups) if group == name]
    np.testing.assert_allclose(actual.values[own].mean(0), wanted[label, 4:])
  nothing = {"boxes": NONE, "scores": np.zeros(0), "labels": np.zeros(0, int)}
  silent = [dataclasses.replace(each, **nothing) for each in images]
  other = evaluator.detection_scores(silent, ["a", "b", "c"])
  assert (other.ids, other.groups, other.patients) == (actual.ids, actual.groups, actual.patients)
  assert not other.values.any()


def test_rows(capsys):
  images = _images(3)
  boxes, shares = [np.array([0, 0, 0.2, 0.2]), None, None, None], [0.5, 0, 0, 0]
  baselines = {"typical box": evaluator.with_typical_boxes(images, boxes, shares)}
  names = ["a", "b", "c", "d"]
  rows = evaluator.detection_rows(images, names, data="toy/test", resamples=40, baselines=baselines)
  cells = {(row.group, row.metric, row.model): row for row in rows}
  assert len(cells) == len(rows) == 2 * 4 * len(METRICS) and rows[0].group == "macro"
  value = detection.detection_metrics(images, 3, np.ones((1, len(images))))[0]
  for m, metric in enumerate(METRICS):
    macro = cells["macro", metric, "run"]
    assert macro.value == pytest.approx(value[:, m].mean())
    assert macro.low <= macro.value <= macro.high and macro.n == sum(len(f.truth) for f in images)
    assert cells["b", metric, "run"].value == pytest.approx(value[1, m])
    assert math.isnan(cells["b", metric, "typical box"].low)
  assert capsys.readouterr().out == (
    "detection: 1 of 4 findings have no box in toy/test and are left out: d\n"
  )
  alone = [dataclasses.replace(each, patient_id="p") for each in images]
  rows = evaluator.detection_rows(alone, names, data="toy/test", resamples=40)
  assert all(math.isnan(row.low) for row in rows)


def test_published_rules_leave_images_out(capsys):
  box, far = [0, 0, 10, 10], [40, 40, 50, 50]
  images = [
    image(0, [box], [box, far], [0.9, np.nextafter(0.5, 0)]),
    image(1, [], [far], [0.95]),  # false, but without truth
    image(2, [box], [box], [0.4]),  # actual, but not surely
    image(3, [box]),
  ]
  (macro, one) = evaluator.compat_rows(images, ["mass"], data="toy/test", resamples=10)
  assert (macro.protocol, macro.metric, macro.value, macro.n) == (
    "compat-mgca-detection-v2",
    "mAP .4-.75",
    pytest.approx(1),
    1,
  )
  assert one.group == "mass"
  full = detection.detection_metrics(images, 1, np.ones((1, 4)))[0, 0, 0]
  assert full < 0.5
  assert capsys.readouterr().out == (
    "compat-mgca-detection-v2: 3 of 4 images have no box, or no prediction of 0.5 or more, and are"
    " left out\n"
  )
  assert evaluator.compat_rows(images[1:], ["mass"], data="toy/test") == []
  # A prediction of .5 counts.
  at = [image(0, [box], [far, box], [0.5, 0.5]), image(1, [box], [box], [0.5])]
  macro, _ = evaluator.compat_rows(at, ["mass"], data="toy/test", resamples=0)
  assert macro.n == 2 and 0 < macro.value < 1


def test_typical_box():
  boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.6], [0.5, 0.5, 1, 1]])
  np.testing.assert_array_equal(evaluator.typical_box(boxes), boxes[2])
  assert evaluator.typical_box(NONE) is None
  (one,) = evaluator.with_typical_boxes([image(0)], [None, boxes[2]], [0, 0.3])
  np.testing.assert_allclose(one.boxes, [[0, 0, 40, 36]])
  assert one.labels.tolist() == [1] and one.scores.tolist() == [0.3]
