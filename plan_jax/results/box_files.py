"""Boxes of groundings as COCO JSON and as CSV, whose coordinates say what they mean.

COCO's score is the highest value of the map in a box; presence, the phrase's own score, and the
quantile stand beside it. A phrase without a box has no annotation there, and in the CSV a line with
empty coordinates.
"""

import csv
import io
import json
from collections.abc import Iterable
from typing import NamedTuple

import plan_jax
from input_pipeline.terminal import escape
from plan_jax.inference.grounding import Box, Grounding
from plan_jax.results.example_scores import quote

FRAME = "pixels of the image itself, x to the right, y down, from its upper left corner; half-open"
_COLUMNS = (
  *("file_name", "width", "height", "phrase", "presence", "quantile", "threshold"),
  *("x0", "y0", "x1", "y1", "score", "coordinates"),
)


class PhraseBoxes(NamedTuple):
  """Boxes of a phrase in an image of `width` x `height` pixels, under the name a user gave it."""

  file_name: str
  width: int
  height: int
  phrase: str
  presence: float
  quantile: float | None
  threshold: float
  boxes: list[Box]


def phrase_boxes(file_name: str, grounding: Grounding, threshold: float = 0.5) -> PhraseBoxes:
  """Takes the boxes of a grounding, and lets go of its maps.

    rows = [phrase_boxes("image.png", each) for each in model.ground("image.png", phrases)]
    text = to_coco(rows)

  Names and phrases are escaped, as `input_pipeline.terminal` does. Raises InputError of `boxes`.
  """
  height, width = grounding.image.shape
  return PhraseBoxes(
    escape(file_name),
    width,
    height,
    escape(grounding.phrase),
    grounding.score,
    grounding.quantile,
    threshold,
    grounding.boxes(threshold),
  )


def to_coco(rows: Iterable[PhraseBoxes]) -> str:
  """Writes JSON of COCO's object detection; a category is a phrase, a box [x, y, width, height]."""
  images: dict[str, dict] = {}
  categories: dict[str, int] = {}
  annotations: list[dict] = []
  for row in rows:
    size = {"file_name": row.file_name, "width": row.width, "height": row.height}
    image = images.setdefault(row.file_name, {"id": len(images) + 1, **size})
    category = categories.setdefault(row.phrase, len(categories) + 1)
    for x0, y0, x1, y1, score in row.boxes:
      annotation = {
        "id": len(annotations) + 1,
        "image_id": image["id"],
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "score": score,
        "presence": row.presence,
        "quantile": row.quantile,
        "threshold": row.threshold,
      }
      annotations.append(annotation)
  content = {
    "info": {"description": f"plan_jax {plan_jax.__version__}", "coordinates": FRAME},
    "images": list(images.values()),
    "categories": [{"id": number, "name": name} for name, number in categories.items()],
    "annotations": annotations,
  }
  return json.dumps(content, indent=1) + "\n"


def to_csv(rows: Iterable[PhraseBoxes]) -> str:
  """Writes a line a box; x1 and y1 are exclusive. No spreadsheet takes a text for a formula."""
  file = io.StringIO()
  out = csv.writer(file, lineterminator="\n")
  out.writerow(_COLUMNS)
  for row in rows:
    for box in row.boxes or [("",) * 5]:
      texts = (quote(row.file_name), row.width, row.height, quote(row.phrase))
      out.writerow([*texts, row.presence, row.quantile, row.threshold, *box, FRAME])
  return file.getvalue()
