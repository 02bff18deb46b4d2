"""Non-maximum suppression against a loop over boxes."""

import jax
import numpy as np

from input_pipeline.boxes import iou
from plan_jax.transfer.detection.yolo import suppress


def _random(rng, count, side=20):
  corner = rng.integers(0, side, (count, 2))
  return np.concatenate([corner, corner + rng.integers(1, side, (count, 2))], 1).astype(np.float32)


def _suppressed(boxes, scores, labels, threshold):
  """Greedy suppression, box by box."""
  stays = np.zeros(len(boxes), bool)
  for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
    rivals = [j for j in np.flatnonzero(stays) if labels[j] == labels[i]]
    overlaps = [iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0] for j in rivals]
    stays[i] = scores[i] > 0 and all(o <= threshold for o in overlaps)
  return stays


def test_suppression_is_the_greedy_one():
  jitted = jax.jit(suppress)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    boxes, labels = _random(rng, 24), rng.integers(0, 2, 24)
    scores = np.round(rng.random(24), 1).astype(np.float32)  # with ties, and zeros
    actual = jitted(boxes, scores, labels, 0.3)
    np.testing.assert_array_equal(actual, _suppressed(boxes, scores, labels, 0.3))


def test_a_suppressed_box_suppresses_no_other():
  boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
  scores, labels = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
  np.testing.assert_array_equal(jax.jit(suppress)(boxes, scores, labels, 0.4), [True, False, True])
