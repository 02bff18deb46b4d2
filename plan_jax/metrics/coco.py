"""COCO's average precision by its own code, pycocotools."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from input_pipeline.boxes import area
from plan_jax.metrics.detection import MOST, THRESHOLDS, Image


def coco_precision(
  images: Sequence[Image], findings: int
) -> Float64[np.ndarray, "findings thresholds"]:
  """Computes average precision at `detection.THRESHOLDS`; NaN without a true box."""
  truth, predictions = [], []
  for i, image in enumerate(images):
    truth += _annotations(i, image.truth, image.truth_labels, np.ones(len(image.truth)))
    predictions += _annotations(i, image.boxes, image.labels, image.scores)
  with contextlib.redirect_stdout(io.StringIO()):
    sides = [_side(marks, len(images), findings) for marks in (truth, predictions)]
    judge = COCOeval(*sides, "bbox")
    judge.params.iouThrs = np.array(THRESHOLDS)
    judge.params.maxDets = [MOST]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
  precision = judge.eval["precision"][:, :, :, 0, 0]  # [thresholds, recalls, findings]
  return np.where((precision < 0).any(1), np.nan, precision.mean(1)).T


def _annotations(
  image: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> list[dict]:
  """Boxes of an image as COCO has them, without numbers of their own."""
  boxes = boxes.astype(np.float64)
  corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
  parts = (corners.tolist(), labels.tolist(), scores.tolist(), area(boxes).tolist())
  names = ("image_id", "category_id", "bbox", "score", "area", "iscrowd")
  return [
    dict(zip(names, (image + 1, label + 1, box, score, size, 0), strict=True))
    for box, label, score, size in zip(*parts, strict=True)
  ]


def _side(annotations: list[dict], images: int, findings: int) -> COCO:
  """Index of one side; numbers begin at 1, for pycocotools takes 0 for no match."""
  side = COCO()
  side.dataset = {
    "images": [{"id": i + 1} for i in range(images)],
    "categories": [{"id": i + 1} for i in range(findings)],
    "annotations": [{"id": i + 1, **box} for i, box in enumerate(annotations)],
  }
  side.createIndex()
  return side
