"""Geometry of boxes (x0, y0, x1, y1), x1 and y1 exclusive: overlap, and the model's square.

A box of one pixel is (x, y, x + 1, y + 1): its edges lie half a pixel from the pixel's centre.
"""

import numpy as np

from input_pipeline import images

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
  """Areas of boxes [..., 4] -> [...], NumPy or JAX."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def to_square(boxes: np.ndarray, height: int, width: int, size_px: int) -> np.ndarray:
  """Maps boxes [N, 4] of an image of that size -> [N, 4] float32 in its letterboxed square."""
  scale, shift = _scale_and_shift(height, width, size_px)
  return ((boxes - _EDGE) * scale + shift + _EDGE).astype(np.float32)


def to_image(boxes: np.ndarray, height: int, width: int, size_px: int) -> np.ndarray:
  """Maps boxes of the square [N, 4] back to the image, float32, cut at the image's border."""
  scale, shift = _scale_and_shift(height, width, size_px)
  inside = (boxes - _EDGE - shift) / scale + _EDGE
  return np.clip(inside, 0, [width, height, width, height]).astype(np.float32)


def _scale_and_shift(height: int, width: int, size_px: int) -> tuple[float, np.ndarray]:
  matrix = images.fit_matrix(height, width, size_px)
  return matrix[0, 0], np.tile(matrix[:, 2], 2)
