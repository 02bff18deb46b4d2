"""Reader of Object-CXR (JF Healthcare 2020): foreign objects on frontal images, outlined.

The folder holds train.csv and dev.csv, and the images in train/ and dev/. Columns:

  image_name   file in train/ or dev/
  annotation   shapes with ";" between, in pixels; empty on a clean image:
               "0 x1 y1 x2 y2" a rectangle, "1 x1 y1 x2 y2" the ellipse in it,
               "2 x1 y1 x2 y2 ... xn yn" a polygon

The objects of an image are one region, "foreign object": a box each, and where one of them is an
ellipse or a polygon, a mask of them all. The label of that name is 1 or 0 for every image. There are
no reports. The tables name no patients: every image counts as one.

dev.csv is test, as the field uses it, for the outlines of the challenge's own test images were not
given out (test/ is left aside). A fifth of train.csv, drawn by file name, is validation (the shares
of LoVT: 6,400, 1,600 and 1,000 images).
"""

import functools
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.example import SPLITS, Example, Region, UnreadableError
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw

LABEL = "foreign object"
_VALIDATION = 1 / 5
_RECTANGLE, _ELLIPSE, _POLYGON = "0", "1", "2"


@dataclass(frozen=True)
class _Shape:
  kind: str
  numbers: tuple[float, ...]  # x, y, x, y, ...

  @property
  def corners(self) -> boxes.Corners:
    xs, ys = self.numbers[::2], self.numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class _Row:
  file: str  # relative to the folder
  shapes: tuple[_Shape, ...]


def open_source(source: str) -> Source:
  """Lists the images of both tables.

  Args:
    source: the folder.

  Raises SourceError: a table is missing, a shape cannot be read, an image has two rows that differ.
  """
  root = folders.folder(source, "Object-CXR's train.csv and dev.csv")
  items: dict[str, Item] = {}
  left_out: list[tuple[str, str]] = []
  twice = 0
  for folder in ("train", "dev"):
    table = folders.find(root, f"{folder}.csv", what="both tables are needed")
    for row in tables.read(table, ("image_name", "annotation")):
      name = row.text("image_name")
      shapes, broken = _shapes(row)
      image_id = f"{folder}/{Path(name).stem}"
      split = "test" if folder == "dev" else "validation" if draw(name) < _VALIDATION else "train"
      item = Item(
        f"{folder}/{name} ({row.place})", split, image_id, _Row(f"{folder}/{name}", shapes),
        image_id, "FRONTAL", ((LABEL, int(bool(shapes or broken))),),
      )  # fmt: skip
      first = items.setdefault(item.row.file, item)
      if first is item:
        left_out += [(item.key, reason) for reason in broken]
        continue
      if replace(item, key=first.key) != first:
        raise SourceError(f"{table}: {item.key} contradicts {first.key}; remove one of the rows")
      twice += 1
  images = list(items.values())
  counts = Counter(item.split for item in images)
  drawn = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
  notes = [
    f"dev.csv is test; validation is a fifth of train.csv, drawn by file name ({drawn})",
    "no patients are named: every image counts as one of its own",
  ]
  if twice:
    notes.append(f"rows that say the same as an earlier one, dropped: {twice}")
  example = functools.partial(_read, root=root)
  return Source("object_cxr", images, example, tuple(notes), tuple(left_out))


def _shapes(row: tables.Row) -> tuple[tuple[_Shape, ...], list[str]]:
  """The shapes of a row, each once, and what is wrong with those that have no area."""
  shapes: dict[_Shape, None] = {}
  broken = []
  cell = row["annotation"]
  for text in [] if tables.is_blank(cell) else filter(str.strip, cell.split(";")):
    kind, *numbers = text.split()
    try:
      shape = _Shape(kind, tuple(map(float, numbers)))
    except ValueError:
      raise row.wrong("annotation", f"numbers with blanks between; {text!r} is not") from None
    count = len(numbers)
    fits = {
      _RECTANGLE: count == 4, _ELLIPSE: count == 4, _POLYGON: count >= 6 and count % 2 == 0,
    }  # fmt: skip
    if not fits.get(kind) or not all(map(math.isfinite, shape.numbers)):
      raise row.wrong(
        "annotation", f"shapes: 0 or 1 and four numbers, 2 and three points or more; not {text!r}"
      )
    x0, y0, x1, y1 = shape.corners if kind == _POLYGON else shape.numbers
    if x0 < x1 and y0 < y1:
      shapes[shape] = None
    else:
      broken.append(f"the shape {text.strip()!r} has no area")
  return tuple(shapes), broken


def _read(item: Item, *, root: Path) -> Example:
  image = folders.read_bytes(root, item.row.file)
  width, height = image_size(image)
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=item.image_id,
    patient_id=item.patient_id,
    view=item.view,
    labels=dict(item.labels),
    regions=_regions(item.row.shapes, width, height),
  )


def _regions(shapes: tuple[_Shape, ...], width: int, height: int) -> tuple[Region, ...]:
  """One region of all shapes, none where there is none."""
  clipped = [boxes.clip(shape.corners, width, height) for shape in shapes]
  for shape, corners in zip(shapes, clipped, strict=True):
    if corners is None:
      x0, y0, x1, y1 = shape.corners
      raise UnreadableError(
        f"the shape over x {x0:g} to {x1:g}, y {y0:g} to {y1:g} lies outside the {width} x {height}"
        " image"
      )
  if not shapes:
    return ()
  mask = b""
  if any(shape.kind != _RECTANGLE for shape in shapes):
    inside = np.zeros((height, width), np.uint8)
    for shape in shapes:
      _fill(inside, shape)
    mask = cv2.imencode(".png", inside)[1].tobytes() if inside.any() else b""
  return (Region(LABEL, LABEL, np.array(clipped, np.float32), mask),)


def _fill(inside: np.ndarray, shape: _Shape) -> None:
  """Sets the pixels (uint8 [H, W]) whose centres lie in the shape to 255."""
  if shape.kind == _POLYGON:
    corners = np.rint(np.array(shape.numbers) - 0.5).astype(np.int32).reshape(1, -1, 2)
    cv2.fillPoly(inside, corners, 255)  # OpenCV counts from centres, and fills the outline too
    return
  x0, y0, x1, y1 = shape.corners
  rows = slice(max(math.floor(y0), 0), math.ceil(y1))
  columns = slice(max(math.floor(x0), 0), math.ceil(x1))
  part = inside[rows, columns]
  y = (np.arange(part.shape[0]) + rows.start + 0.5)[:, None]
  x = (np.arange(part.shape[1]) + columns.start + 0.5)[None]
  # Offsets from the centre, in half axes.
  across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
  ellipse = shape.kind == _ELLIPSE
  within = np.hypot(across, down) <= 1 if ellipse else np.maximum(abs(across), abs(down)) <= 1
  part[within] = 255
