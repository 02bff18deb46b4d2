"""Fusion of the boxes of several readers of an image to one set; pure functions over NumPy.

Boxes are float64 [N, 4], (x0, y0, x1, y1), of one finding; `readers` [N] tells whose each is.
"""

from collections.abc import Callable

import numpy as np

from input_pipeline.boxes import area, iou

IOU = 0.55  # two boxes that overlap so much mean the same


def weighted(boxes: np.ndarray, readers: np.ndarray) -> np.ndarray:
  """Fuses equally trusted boxes by weighted box fusion (Solovyev et al. 2021).

  In their order, each box joins the cluster whose mean it overlaps most, from an IoU of .55 on,
  unless its reader is in it already (this condition is ours); else it founds one. A cluster's box
  is its members' mean.
  """
  clusters: list[list[int]] = []
  for i in range(len(boxes)):
    means = np.array([boxes[members].mean(0) for members in clusters]).reshape(-1, 4)
    overlap = iou(boxes[i : i + 1], means)[0]
    taken = [readers[i] in readers[members] for members in clusters]
    overlap[np.array(taken, bool)] = 0
    if len(overlap) and overlap.max() >= IOU:
      clusters[int(overlap.argmax())].append(i)
    else:
      clusters.append([i])
  return np.array([boxes[members].mean(0) for members in clusters]).reshape(-1, 4)


def largest(boxes: np.ndarray, readers: np.ndarray) -> np.ndarray:
  """Keeps the larger of boxes that overlap with an IoU of .55 or more; in their order."""
  kept: list[int] = []
  for i in np.argsort(-area(boxes), kind="stable"):
    if not kept or iou(boxes[i : i + 1], boxes[kept])[0].max() < IOU:
      kept.append(int(i))
  return boxes[sorted(kept)]


def every(boxes: np.ndarray, readers: np.ndarray) -> np.ndarray:
  """Keeps all boxes as they are."""
  return boxes


FUSIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "weighted": weighted,
  "largest": largest,
  "every": every,
}
