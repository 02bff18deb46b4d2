"""Images with true and predicted outlines drawn on them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from input_pipeline.regions import finding_masks
from plan_jax.results.contact_sheet import SIDE, enlarged, sheet

_TRUTH, _FOUND = (242, 215, 38), (60, 140, 255)  # blue, green, red


def overlay(
  example: Example, heats: np.ndarray, findings: Sequence[str], thresholds: dict[str, float]
) -> np.ndarray:
  """BGR [H, W, 3] of an image: outlines of true masks in cyan, of predicted ones in orange.

  Args:
    study: the image.
    heats: float32 [K, H, W].
    findings: K names.
    thresholds: of the findings, .5 where there is none.
  """
  out, scale = enlarged(images.decode(example.image))
  size = out.shape[1::-1]
  width = max(1, max(size) // SIDE)
  masks = finding_masks(example, findings)
  for k, name in enumerate(findings):
    found = heats[k] >= np.float32(thresholds.get(name, 0.5))
    for mask, colour in ((masks.get(k), _TRUTH), (found, _FOUND)):
      if mask is None or not mask.any():
        continue
      large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
      lines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(out, lines, -1, colour, width)
      x, y = lines[0].reshape(-1, 2).min(0).tolist()
      at = (x + 2, max(y - 4, 10 * width))
      cv2.putText(
        out, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, colour, width, cv2.LINE_AA
      )  # fmt: skip
  return out


def write(
  path: Path,
  maps: Iterable[tuple[Example, np.ndarray]],
  findings: Sequence[str],
  thresholds: dict[str, float],
) -> None:
  """A sheet of the images; arguments as of `overlay`."""
  drawn = [
    (overlay(example, some, findings, thresholds), example.image_id) for example, some in maps
  ]
  cv2.imwrite(str(path), sheet(*zip(*drawn, strict=True)))
