"""Contact sheets: small images side by side in one."""

from collections.abc import Sequence

import cv2
import numpy as np

from plan_jax.results.drawing import boxed, caption, tiled

SIDE = 320  # of a small image
_COLUMNS = 4


def spread_over(count: int, most: int = 12) -> list[int]:
  """Returns at most `most` indices, spread evenly over `count`."""
  return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def enlarged(pixels: np.ndarray) -> tuple[np.ndarray, int]:
  """Converts an image uint8 [H, W] to BGR, small ones enlarged; returns it and the whole factor."""
  scale = max(1, round(SIDE / max(pixels.shape)))
  size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
  large = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
  return cv2.cvtColor(large, cv2.COLOR_GRAY2BGR), scale


def sheet(images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
  """Puts BGR images of any size side by side, each above its name."""
  cells = [
    np.concatenate([boxed(image, SIDE), caption(name, SIDE + 4)])
    for image, name in zip(images, names, strict=True)
  ]
  return tiled(cells, _COLUMNS)
