"""Boxes against painted pixels: overlap, the model's square; boxes and masks of regions."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import boxes, images
from input_pipeline.example import Example, Region
from input_pipeline.regions import example_boxes


def _random(rng, count, side=20):
  corner = rng.integers(0, side, (count, 2))
  return np.concatenate([corner, corner + rng.integers(1, side, (count, 2))], 1).astype(np.float32)


def _painted(box, side=40):
  mask = np.zeros((side, side), bool)
  x0, y0, x1, y1 = box.astype(int)
  mask[y0:y1, x0:x1] = True
  return mask


def test_iou_counts_pixels():
  rng = np.random.default_rng(0)
  a, b = _random(rng, 7), _random(rng, 5)
  actual = boxes.iou(a, b)
  for i, j in np.ndindex(7, 5):
    first, second = _painted(a[i]), _painted(b[j])
    assert actual[i, j] == pytest.approx((first & second).sum() / (first | second).sum())
  assert actual.dtype == np.float32 and isinstance(actual, np.ndarray)
  np.testing.assert_allclose(boxes.iou(jnp.array(a), jnp.array(b)), actual, rtol=1e-6)


def test_iou_of_nothing():
  empty = np.array([[3, 3, 3, 3]], np.float32)
  assert boxes.iou(empty, empty) == 0
  assert boxes.iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
  apart = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
  assert boxes.iou(apart[:1], apart[1:]) == 0


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 90), (130, 50)])
def test_square_and_back(height, width):
  image = np.zeros((height, width), np.uint8)
  image[10:30, 5:40] = 255
  box = np.array([[5, 10, 40, 30]], np.float32)
  square = boxes.to_square(box, height, width, 256)
  bright = images.fit(image, 256) > 0.5
  columns, rows = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
  seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
  np.testing.assert_allclose(square[0], seen, atol=1.5)
  np.testing.assert_allclose(boxes.to_image(square, height, width, 256), box, atol=1e-3)


def test_the_whole_image_is_its_part_of_the_square():
  whole = np.array([[0, 0, 90, 60]], np.float32)
  np.testing.assert_allclose(boxes.to_square(whole, 60, 90, 180), [[0, 30, 180, 150]], atol=1e-4)
  beyond = np.array([[-20, -20, 300, 300]], np.float32)
  np.testing.assert_allclose(boxes.to_image(beyond, 60, 90, 180), whole)


def test_boxes_of_an_example():
  mask = np.zeros((20, 30), np.uint8)
  mask[4:9, 10:12] = 255
  png = cv2.imencode(".png", mask)[1].tobytes()
  blank = cv2.imencode(".png", 0 * mask)[1].tobytes()
  none = np.zeros((0, 4), np.float32)
  two = np.array([[0, 0, 5, 5], [6, 6, 9, 9]], np.float32)
  example = Example(
    image=png,
    width=30,
    height=20,
    image_id="a",
    study_id="a",
    patient_id="a",
    regions=(
      Region("", "mass", two, png),
      Region("", "nodule", none, png),
      Region("", "tube", two),
      Region("", "nodule", none, blank),
    ),
  )
  actual, labels = example_boxes(example, ("nodule", "mass"))
  np.testing.assert_array_equal(actual, [*two, [10, 4, 12, 9]])
  np.testing.assert_array_equal(labels, [1, 1, 0])
  actual, labels = example_boxes(example, ("edema",))
  assert actual.shape == (0, 4) and labels.shape == (0,)
