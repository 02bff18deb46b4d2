"""Drawings on images: heatmaps, outlines, captions, and images as data URIs."""

import base64

import cv2
import numpy as np

STILL_PX = 260  # longest side of a still
_TRUTH = (242, 215, 38)  # blue, green, red


def outline(mask: np.ndarray) -> str:
  """Traces the borders of a mask as an SVG path in image pixels."""
  # At twice the size contours, which join pixel centres, run a quarter pixel inside the true edge.
  large = np.pad((mask != 0).astype(np.uint8), 1).repeat(2, 0).repeat(2, 1)
  contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  parts = []
  for contour in contours:
    points = (cv2.approxPolyDP(contour, 1.0, True)[:, 0] + 0.5) / 2 - 1
    parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
  return "".join(parts)


def outlined(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """Copies a BGR image with the mask's border, at least `STILL_PX` on its longer side."""
  scale = max(1, -(-STILL_PX // max(image.shape[:2])))
  size = (image.shape[1] * scale, image.shape[0] * scale)
  out = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
  if mask is not None:
    large = cv2.resize((mask != 0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, _TRUTH, max(1, max(size) // 200))
  return out


def reduced(image: np.ndarray, most: int) -> np.ndarray:
  """Shrinks an image or map so that the longer side is at most `most` pixels."""
  return _resized(image, most) if most < max(image.shape[:2]) else image


def boxed(image: np.ndarray, side: int) -> np.ndarray:
  """Fits a BGR image into a black square of `side` pixels with a white rim to its right."""
  small = _resized(image, side)
  out = np.zeros((side, side, 3), np.uint8)
  height, width = small.shape[:2]
  y, x = (side - height) // 2, (side - width) // 2
  out[y : y + height, x : x + width] = small
  return cv2.copyMakeBorder(out, 0, 0, 0, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _resized(image: np.ndarray, longest: int) -> np.ndarray:
  scale = longest / max(image.shape[:2])
  size = tuple(max(1, round(scale * side)) for side in image.shape[1::-1])
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def tiled(cells: list[np.ndarray], columns: int) -> np.ndarray:
  """Puts images of one size side by side, at most `columns` a row, the last row filled white."""
  columns = min(columns, len(cells))
  cells = cells + [np.full_like(cells[0], 255)] * (-len(cells) % columns)
  rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
  return np.concatenate(rows)


def caption(text: str, width: int) -> np.ndarray:
  """Draws dark text on a white strip [30, width, 3], shrunk to fit; only ASCII can be drawn."""
  out = np.full((30, width, 3), 255, np.uint8)
  text = text.encode("ascii", "replace").decode()
  font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
  (length, _), _ = cv2.getTextSize(text, font, size, 1)
  size *= min(1.0, (width - 8) / max(1, length))
  return cv2.putText(out, text, (4, 20), font, size, (40, 40, 40), 1, cv2.LINE_AA)


def uri(image: np.ndarray, suffix: str) -> str:
  """Encodes an image as a data URI; the suffix is ".png" or ".jpg"."""
  data = base64.b64encode(cv2.imencode(suffix, image)[1].tobytes()).decode()
  return f"data:image/{'png' if suffix == '.png' else 'jpeg'};base64,{data}"
