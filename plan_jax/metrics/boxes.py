"""Boxes (x0, y0, x1, y1), x1 and y1 exclusive: overlap, the model's square, and suppression.

A box of one pixel is (x, y, x + 1, y + 1): its edges lie half a pixel from the pixel's centre.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example, Region

_EDGE = np.array([0.5, 0.5, 0.5, 0.5])


def iou(a, b):
  """Intersection over union of boxes [..., N, 4] and [..., M, 4] -> [..., N, M], NumPy or JAX.

  Zero where both are empty.
  """
  xp = a.__array_namespace__()
  a, b = a[..., :, None, :], b[..., None, :, :]
  sides = xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2])
  shared = xp.prod(xp.maximum(sides, 0), axis=-1)
  union = area(a) + area(b) - shared
  return xp.where(union > 0, shared / xp.where(union > 0, union, 1), 0)


def area(boxes):
  """[..., 4] -> [...], NumPy or JAX."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def of_region(region: Region) -> np.ndarray:
  """Its boxes [N, 4] float32; the box around its mask where it has none."""
  if len(region.boxes):
    return region.boxes
  mask = cv2.imdecode(np.frombuffer(region.mask, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
  columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
  if not len(rows):
    return np.zeros((0, 4), np.float32)
  return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)


def of_example(example: Example, findings: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
  """The true boxes of these findings: [N, 4] float32 in image pixels, and [N] int32 places."""
  boxes, labels = [np.zeros((0, 4), np.float32)], []
  for region in example.regions:
    if region.label in findings:
      boxes.append(of_region(region))
      labels += [findings.index(region.label)] * len(boxes[-1])
  return np.concatenate(boxes), np.array(labels, np.int32)


def to_square(boxes: np.ndarray, height: int, width: int, size_px: int) -> np.ndarray:
  """Boxes [N, 4] of an image of that size -> [N, 4] float32 in its letterboxed square."""
  scale, shift = _map(height, width, size_px)
  return ((boxes - _EDGE) * scale + shift + _EDGE).astype(np.float32)


def to_image(boxes: np.ndarray, height: int, width: int, size_px: int) -> np.ndarray:
  """The way back from the square [N, 4] to the image, float32, cut at the image's border."""
  scale, shift = _map(height, width, size_px)
  found = (boxes - _EDGE - shift) / scale + _EDGE
  return np.clip(found, 0, [width, height, width, height]).astype(np.float32)


def _map(height: int, width: int, size_px: int) -> tuple[float, np.ndarray]:
  matrix = images.fit_matrix(height, width, size_px)
  return matrix[0, 0], np.tile(matrix[:, 2], 2)


def suppress(boxes: jax.Array, scores: jax.Array, labels: jax.Array, threshold: float) -> jax.Array:
  """Greedy non-maximum suppression within each label, of static shapes.

  A box goes if one of its label that scores more, and stays, overlaps it by more than the
  threshold; of equal scores the earlier comes first.

  Args:
    boxes: [N, 4].
    scores: [N]; a box that scores 0 or less is none, and goes.
    labels: [N] int.
    threshold: of IoU.

  Returns:
    [N] bool, which stay.
  """
  order = jnp.argsort(-scores, stable=True)
  boxes, labels = boxes[order], labels[order]
  over = (iou(boxes, boxes) > threshold) & (labels[:, None] == labels[None])
  number = jnp.arange(len(scores))

  def step(i, stays):
    return stays & ~(over[i] & (number > i) & stays[i])

  stays = jax.lax.fori_loop(0, len(scores), step, scores[order] > 0)
  return jnp.zeros(len(scores), bool).at[order].set(stays)
