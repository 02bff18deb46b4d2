"""Page of a check: its findings with their images, counts, and samples, in one HTML file."""

import base64
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from input_pipeline import images, pages
from input_pipeline.checks.check import Check
from input_pipeline.checks.facts import ImageFacts, group_by, split_of
from input_pipeline.example import Example
from input_pipeline.files import replace_text
from input_pipeline.records import RecordSource

_SIDE_PX = 280  # longest side of an image
_SAMPLES = 8  # a split, half of them with regions where there are as many
_BESIDE = 4  # of the images that belong together
_BOX, _OUTLINE = (242, 215, 38), (60, 180, 255)  # blue, green, red


def write(path: str | os.PathLike, result: Check, *, strict: bool = False) -> None:
  """Writes the page of a check, whole or not at all; images of findings are read again.

  Its folder is made; `strict` as in the check. Raises DiskError where it cannot be written.
  """
  by_split = group_by(result.images, split_of).items()
  template = pages.environment(Path(__file__).parent).get_template("page.html")
  text = template.render(
    title=f"{result.verdict(strict=strict).capitalize()}: {Path(result.records).resolve().name}",
    notes=result.notes(),
    findings={level: result.all_findings(level) for level in ("error", "warning")},
    tables=result.tables,
    samples={split: [[image] for image in _samples(part)] for split, part in by_split},
    gallery=_gallery,
  )
  replace_text(path, text)


def _samples(images: Sequence[ImageFacts]) -> list[ImageFacts]:
  """Returns images spread evenly over the split."""
  marked = _spread([image for image in images if image.regions], _SAMPLES // 2)
  bare = _spread([image for image in images if not image.regions], _SAMPLES - len(marked))
  return marked + bare


def _spread(images: Sequence[ImageFacts], most: int) -> list[ImageFacts]:
  count = min(most, len(images))
  return [images[i * len(images) // count] for i in range(count)]


def _gallery(groups: Iterable[Sequence[ImageFacts]]) -> list[dict[str, Any]]:
  """Returns the groups whose images can be shown: "images" and how many "more" there are."""
  shown = []
  for group in groups:
    if members := [_shown(image) for image in group[:_BESIDE] if image.short_px]:
      shown.append({"images": members, "more": max(0, len(group) - _BESIDE)})
  return shown


def _shown(image: ImageFacts) -> dict[str, str]:
  example = RecordSource(image.place.folder, image.place.split)[image.place.number]
  encoded = cv2.imencode(".jpg", _drawn(example), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
  facts = [f"{example.width} x {example.height}", example.view, example.patient_id]
  facts += [label for label, value in example.labels.items() if value == 1]
  return {
    "name": f"{image.place.split} {image.image_id}",
    "uri": f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}",
    "facts": ", ".join(filter(None, facts)),
    "text": " ".join(example.sentences),
  }


def _drawn(example: Example) -> np.ndarray:
  """Draws the image, reduced, with its regions: uint8 [H, W, 3], blue, green, red."""
  pixels = images.decode_example(example)
  scale = min(1.0, _SIDE_PX / max(pixels.shape))
  size = [max(1, round(side * scale)) for side in pixels.shape[::-1]]
  grey = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  canvas = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
  for region in example.regions:
    mask = cv2.imdecode(np.frombuffer(region.mask or b"-", np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is not None:
      inside = np.uint8(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0)
      outlines = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
      cv2.drawContours(canvas, outlines, -1, _OUTLINE, 1)
    # Boxes that cannot be right are drawn as far as they go.
    corners = np.clip(np.nan_to_num(region.boxes * scale), -_SIDE_PX, 2 * _SIDE_PX)
    for x0, y0, x1, y1 in np.rint(corners).astype(int).tolist():
      cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _BOX, 1)
  return canvas
