"""True regions of an example as boxes and masks at the stored resolution of its image."""

from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.example import Example, Region


def region_boxes(region: Region) -> np.ndarray:
  """Boxes of a region, [N, 4] float32; the box around its mask where it has none."""
  if len(region.boxes):
    return region.boxes
  x, y, width, height = cv2.boundingRect(images.decode(region.mask))
  if not width:
    return np.zeros((0, 4), np.float32)
  return np.array([[x, y, x + width, y + height]], np.float32)


def example_boxes(example: Example, findings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """True boxes of these findings: [N, 4] float32 in image pixels, and [N] int32 places."""
  boxes, labels = [np.zeros((0, 4), np.float32)], []
  for region in example.regions:
    if region.label in findings:
      boxes.append(region_boxes(region))
      labels += [findings.index(region.label)] * len(boxes[-1])
  return np.concatenate(boxes), np.array(labels, np.int32)


def region_mask(region: Region, example: Example) -> np.ndarray:
  """Mask of a region, bool [H, W]: its own, else its boxes, rounded outwards to whole pixels.

  Raises:
    UserError: the mask is unreadable or not of the image's size; the message names the image.
  """
  if region.mask:
    try:
      mask = images.decode(region.mask)
    except ValueError as error:
      raise UserError(f"mask of {region.label!r} in {example.image_id}: {error}") from error
    if mask.shape != (example.height, example.width):
      raise UserError(
        f"mask of {region.label!r} in {example.image_id} is {mask.shape[1]} x {mask.shape[0]},"
        f" its image {example.width} x {example.height}"
      )
    return mask > 0
  mask = np.zeros((example.height, example.width), bool)
  for box in region.boxes:
    mask |= box_mask(box, example)
  return mask


def box_mask(box: np.ndarray, example: Example) -> np.ndarray:
  """Mask of a box, bool [H, W], from floor(x0), floor(y0) to ceil(x1), ceil(y1)."""
  x0, y0, x1, y1 = box.astype(np.float64)
  mask = np.zeros((example.height, example.width), bool)
  rows = slice(max(0, int(np.floor(y0))), int(np.ceil(y1)))
  mask[rows, max(0, int(np.floor(x0))) : int(np.ceil(x1))] = True
  return mask


def finding_masks(example: Example, findings: Sequence[str]) -> dict[int, np.ndarray]:
  """Place of each finding that the example has -> bool [H, W], the union of its regions."""
  masks: dict[int, np.ndarray] = {}
  for region in example.regions:
    if region.label in findings:
      place = findings.index(region.label)
      mask = region_mask(region, example)
      masks[place] = masks[place] | mask if place in masks else mask
  return masks
