"""Overlays of images: true boxes or outlines in cyan, predicted ones in orange."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from input_pipeline.files import replace_bytes
from input_pipeline.regions import finding_masks
from plan_jax.metrics.detection import RATES, Image, score_limits
from plan_jax.results.contact_sheet import SIDE, enlarged, sheet, spread_over
from plan_jax.runtime.logging import log

_RATE = "1/8"  # of RATES: predictions above its limit are drawn
_TRUE, _PREDICTED = (242, 215, 38), (60, 140, 255)  # blue, green, red
_LINES = (0, 1, -1, 2, -2, 3, -3)  # a text moves down by as many of its height until it is free


class Canvas:
  """An image to draw on, small ones enlarged; `pixels` is BGR [H, W, 3].

  A text that would cover another one moves a few lines up or down, and stays within the image.
  """

  def __init__(self, pixels: np.ndarray):
    """`pixels`: uint8 [H, W]."""
    self.pixels, self._scale = enlarged(pixels)
    self._size = self.pixels.shape[1::-1]
    self._width = max(1, max(self._size) // SIDE)
    self._written: list[np.ndarray] = []  # x0, y0, x1, y1 of each text

  def box(self, box: np.ndarray, color: tuple, text: str, *, below: bool) -> None:
    """Draws a box in pixels of the image, and a text above or below it."""
    x0, y0, x1, y1 = (int(round(self._scale * float(edge))) for edge in box)
    cv2.rectangle(self.pixels, (x0, y0), (x1 - 1, y1 - 1), color, self._width)
    bottom = min(y1 + 12 * self._width, self._size[1] - 2)
    self._text(text, x0, bottom if below else max(y0 - 4, 10 * self._width), color)

  def outline(self, mask: np.ndarray, color: tuple, text: str) -> None:
    """Draws the outlines of a mask bool [H, W] that is not empty, and a text above it."""
    large = cv2.resize(mask.astype(np.uint8), self._size, interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(self.pixels, lines, -1, color, self._width)
    x, y = lines[0].reshape(-1, 2).min(0).tolist()
    self._text(text, x, max(y - 4, 10 * self._width), color)

  def _text(self, text: str, x: int, y: int, color: tuple) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * self._width
    (width, height), depth = cv2.getTextSize(text, font, size, self._width)
    x = max(0, min(x + 2, self._size[0] - width - 1))
    y = max(height, min(y, self._size[1] - depth))
    line = height + depth
    places = [np.array([x, y - height, x + width, y + depth]) + [0, k * line] * 2 for k in _LINES]
    free = [box for box in places if self._is_free(box)]
    box = (free or places)[0]
    self._written.append(box)
    at = x, int(box[3]) - depth
    cv2.putText(self.pixels, text, at, font, size, color, self._width, cv2.LINE_AA)

  def _is_free(self, box: np.ndarray) -> bool:
    """Tells whether a box lies within the image's height and on no text."""
    inside = box[1] >= 0 and box[3] <= self._size[1]
    return inside and all(
      (box[:2] >= other[2:]).any() or (box[2:] <= other[:2]).any() for other in self._written
    )


def write_boxes(
  path: Path, predicted: Sequence[Image], findings: Sequence[str], source: Sequence[Example]
) -> None:
  """Writes images spread over the set, with their boxes, as one PNG.

  Args:
    path: of the PNG.
    predicted: images with true and predicted boxes; of a finding's predictions those are drawn that
      leave 1/8 false ones an image.
    findings: names.
    source: of the same images, in their order.
  """
  limits = score_limits(predicted, len(findings))
  limits = limits[:, list(RATES).index(_RATE)]
  overlays = {}
  for i in spread_over(len(predicted)):
    image, canvas = predicted[i], Canvas(images.decode_example(source[i]))
    for box, label in zip(image.truth, image.truth_labels, strict=True):
      canvas.box(box, _TRUE, findings[label], below=True)
    for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
      if score > limits[label]:
        canvas.box(box, _PREDICTED, f"{findings[label]} {score:.2f}", below=False)
    overlays[image.image_id] = canvas.pixels
  _write(path, overlays)


def write_outlines(
  path: Path,
  maps: Iterable[tuple[Example, np.ndarray]],
  findings: Sequence[str],
  thresholds: dict[str, float],
) -> None:
  """Writes images with the outlines of their masks as one PNG.

  Args:
    path: of the PNG.
    maps: examples with the probabilities of the findings, float32 [K, H, W].
    findings: K names.
    thresholds: of the findings, .5 where there is none.
  """
  overlays = {}
  for example, probabilities in maps:
    canvas, masks = Canvas(images.decode_example(example)), finding_masks(example, findings)
    for k, name in enumerate(findings):
      predicted = probabilities[k] >= np.float32(thresholds.get(name, 0.5))
      for mask, color in ((masks.get(k), _TRUE), (predicted, _PREDICTED)):
        if mask is not None and mask.any():
          canvas.outline(mask, color, name)
    overlays[example.image_id] = canvas.pixels
  _write(path, overlays)


def _write(path: Path, overlays: dict[str, np.ndarray]) -> None:
  encoded = cv2.imencode(".png", sheet(list(overlays.values()), list(overlays)))[1]
  replace_bytes(path, encoded.tobytes())
  log.info(f"overlays (true in cyan, predicted in orange): {path}")
