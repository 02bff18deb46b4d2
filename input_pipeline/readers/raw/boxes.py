"""Boxes of the raw tables: clipped to their image, united to regions."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from input_pipeline.example import Region

NUMBERS = "numbers between -1e9 and 1e9"  # of a box
_MOST = 1e9
Corners = tuple[float, float, float, float]  # x0, y0, x1, y1; x1 and y1 exclusive
Labelled = tuple[str, Corners]


def is_box(value: Any) -> bool:
  """Tells whether a value of JSON is a list of four numbers that a box can have."""
  fits = isinstance(value, list) and len(value) == 4
  return fits and all(type(n) in (int, float) and abs(n) < _MOST for n in value)


def clip(corners: Corners, width: float, height: float) -> Corners | None:
  """Clips a box to [0, width] x [0, height]; None where that leaves no area."""
  x0, y0, x1, y1 = corners
  x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
  # A millionth of the image may round to nothing once it is float32 pixels.
  return (x0, y0, x1, y1) if x1 - x0 > width * 1e-6 and y1 - y0 > height * 1e-6 else None


def by_label(
  boxes: Iterable[Labelled], scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[Region, ...]:
  """Unites scaled boxes to a region a label, which is its phrase, in order of first mention."""
  corners_of: dict[str, list[Corners]] = {}
  for label, corners in boxes:
    corners_of.setdefault(label, []).append(corners)
  return tuple(
    Region(label, label, (np.array(corners) * (scale * 2)).astype(np.float32))
    for label, corners in corners_of.items()
  )
