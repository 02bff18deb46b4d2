"""Images with true and predicted boxes drawn on them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from plan_jax.metrics.detection import RATES, Image, score_limits
from plan_jax.results.contact_sheet import SIDE, enlarged, sheet, spread_over

_PICTURED = "1/8"  # of RATES: predictions above its limit are drawn
_TRUTH, _FOUND = (242, 215, 38), (60, 140, 255)  # blue, green, red


def overlay(
  pixels: np.ndarray, image: Image, findings: Sequence[str], limits: Sequence[float]
) -> np.ndarray:
  """BGR [H, W, 3] of an image: true boxes in cyan, predictions of a score above `limits` in orange.

  Args:
    pixels: uint8 [H, W].
    image: its boxes.
    findings: names.
    limits: of each finding.
  """
  out, scale = enlarged(pixels)
  size = out.shape[1::-1]
  width = max(1, max(size) // SIDE)

  def draw(box, colour, text, below):
    x0, y0, x1, y1 = (int(round(scale * float(edge))) for edge in box)
    cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), colour, width)
    at = (x0 + 2, min(y1 + 12 * width, size[1] - 2) if below else max(y0 - 4, 10 * width))
    cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, colour, width, cv2.LINE_AA)

  for box, label in zip(image.truth, image.truth_labels, strict=True):
    draw(box, _TRUTH, findings[label], True)
  for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
    if score > limits[label]:
      draw(box, _FOUND, f"{findings[label]} {score:.2f}", False)
  return out


def write(
  path: Path, detected: Sequence[Image], findings: Sequence[str], source: Sequence[Example]
) -> None:
  """Images spread over the set; of a finding's predictions those above 1/8 false ones an image.

  Args:
    path: of the PNG.
    detected: with their predictions.
    findings: names.
    source: of the same detected, in their order.
  """
  limits = score_limits(detected, len(findings))[:, list(RATES).index(_PICTURED)]
  chosen = spread_over(len(detected))
  drawn = [
    overlay(images.decode(source[i].image), detected[i], findings, limits) for i in chosen
  ]  # fmt: skip
  cv2.imwrite(str(path), sheet(drawn, [detected[i].image_id for i in chosen]))
