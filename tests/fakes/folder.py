"""A folder with a manifest: reports, labels, boxes of one phrase, a mask."""

import json

import cv2
import numpy as np

from fakes.images import image, manifest

BOXES = [
  {"label": "opacity", "x": 1, "y": 2, "w": 3, "h": 4, "phrase": "bilateral opacities"},
  {"label": "opacity", "x": 20, "y": 2, "w": 3, "h": 4, "phrase": "bilateral opacities"},
]
ROWS = [
  {
    "image": "a.png",
    "text": "FINDINGS: Opacities.",
    "split": "train",
    "labels": "opacity",
    "boxes": json.dumps(BOXES),
  },
  {"image": "b.png", "text": "Clear.", "split": "train"},
  {"image": "d.png", "text": "", "split": "validation", "mask": "mask.png"},
  {"image": "c.jpg", "text": "Normal.", "split": "test", "labels": "opacity=0"},
]
COLUMNS = ("image", "text", "split", "labels", "boxes", "mask")


def write(folder):
  for i, row in enumerate(ROWS):
    image(folder / row["image"], 40, 30, seed=i)
  inside = np.zeros((30, 40), np.uint8)
  inside[5:9, 7:20] = 255
  cv2.imwrite(str(folder / "mask.png"), inside)
  manifest(folder, ROWS, COLUMNS)
  return folder
