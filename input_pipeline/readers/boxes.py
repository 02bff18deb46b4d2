"""Boxes of the raw tables: clipped to their film, united to regions."""

from collections.abc import Iterable

import numpy as np

from input_pipeline.study import Region

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1; x1 and y1 exclusive


def clip(corners: Corners, width: float, height: float) -> Corners | None:
  """What of a box lies in [0, width] x [0, height]; None where that has no area."""
  x0, y0, x1, y1 = corners
  x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
  # As the study stores it: float32 may round a sliver to nothing.
  sides = np.diff(np.array([[x0, x1], [y0, y1]], np.float32))
  return (x0, y0, x1, y1) if (sides > 0).all() else None


def by_label(boxes: Iterable[tuple[str, Corners]]) -> tuple[Region, ...]:
  """One region a label, in the order of first mention; its phrase is the label."""
  found: dict[str, list[Corners]] = {}
  for label, corners in boxes:
    found.setdefault(label, []).append(corners)
  return tuple(
    Region(label, label, np.array(corners, np.float32)) for label, corners in found.items()
  )
