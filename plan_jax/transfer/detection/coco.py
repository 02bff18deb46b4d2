"""True and predicted boxes in COCO's format, for any other tool."""

import json
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.files import replace_text
from plan_jax.metrics.detection import Image


def write_coco(folder: Path, images: Sequence[Image], findings: Sequence[str]) -> None:
  """Writes truth.json and predictions.json; images and categories are numbered from 1."""
  truth, predicted = [], []
  for number, image in enumerate(images, 1):
    for box, label in zip(image.truth, image.truth_labels, strict=True):
      corner = _corner(box.tolist())
      annotation = {"id": len(truth) + 1, "image_id": number, "category_id": int(label) + 1}
      annotation |= {"bbox": corner, "area": corner[2] * corner[3], "iscrowd": 0}
      truth.append(annotation)
    for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
      annotation = {"image_id": number, "category_id": int(label) + 1}
      annotation |= {"bbox": _corner(box.tolist()), "score": float(score)}
      predicted.append(annotation)
  content = {
    "images": [
      {"id": number, "file_name": image.image_id, "height": image.height, "width": image.width}
      for number, image in enumerate(images, 1)
    ],
    "categories": [{"id": number, "name": name} for number, name in enumerate(findings, 1)],
    "annotations": truth,
  }
  replace_text(Path(folder) / "truth.json", json.dumps(content) + "\n")
  replace_text(Path(folder) / "predictions.json", json.dumps(predicted) + "\n")


def _corner(box: list[float]) -> list[float]:
  """(x0, y0, x1, y1) -> (x0, y0, width, height)."""
  return [*box[:2], box[2] - box[0], box[3] - box[1]]
