"""Films with true and predicted boxes drawn on them."""

from collections.abc import Sequence

import cv2
import numpy as np

from plan_jax.evaluators.detection import Film
from plan_jax.report_drawing import boxed, caption

_SIDE = 320  # of a film in the picture
_COLUMNS = 4
_TRUTH, _FOUND = (242, 215, 38), (60, 140, 255)  # blue, green, red


def overlay(
  pixels: np.ndarray, film: Film, findings: Sequence[str], limits: Sequence[float]
) -> np.ndarray:
  """BGR [H, W, 3] of a film: true boxes in cyan, predictions of a score above `limits` in orange.

  Args:
    pixels: uint8 [H, W].
    film: its boxes.
    findings: names.
    limits: of each finding.
  """
  scale = max(1, round(_SIDE / max(pixels.shape)))
  size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
  out = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2BGR)
  width = max(1, max(size) // _SIDE)

  def draw(box, colour, text, below):
    x0, y0, x1, y1 = (int(round(scale * float(edge))) for edge in box)
    cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), colour, width)
    at = (x0 + 2, min(y1 + 12 * width, size[1] - 2) if below else max(y0 - 4, 10 * width))
    cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, colour, width, cv2.LINE_AA)

  for box, label in zip(film.truth, film.truth_labels, strict=True):
    draw(box, _TRUTH, findings[label], True)
  for box, score, label in zip(film.boxes, film.scores, film.labels, strict=True):
    if score > limits[label]:
      draw(box, _FOUND, f"{findings[label]} {score:.2f}", False)
  return out


def sheet(pictures: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
  """BGR pictures of any size side by side, each above its name."""
  cells = [
    np.concatenate([boxed(picture, _SIDE), caption(name, _SIDE + 4)])
    for picture, name in zip(pictures, names, strict=True)
  ]
  cells += [np.full_like(cells[0], 255)] * (-len(cells) % min(_COLUMNS, len(cells)))
  columns = min(_COLUMNS, len(cells))
  rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
  return np.concatenate(rows)
