"""Reader of Object-CXR (JF Healthcare 2020): foreign objects on frontal images, outlined.

The folder holds train.csv and dev.csv, and the images in train/ and dev/. Columns:

  image_name   file in train/ or dev/
  annotation   shapes with ";" between, in pixels; empty on a clean image:
               "0 x1 y1 x2 y2" a rectangle, "1 x1 y1 x2 y2" the ellipse in it,
               "2 x1 y1 x2 y2 ... xn yn" a polygon

The objects of an image are one region, "foreign object": a box each, and where one of them is an
ellipse or a polygon, a mask of them all. The label of that name is 1 or 0 for every image. There
are no reports. The tables name no patients: every image counts as one.

dev.csv is test, as the field uses it, for the outlines of the challenge's own test images were not
given out (test/ is left aside). A fifth of train.csv, drawn by file name, is validation (the shares
of LoVT: 6,400, 1,600 and 1,000 images).
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.stored_images import encode_mask
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_validation

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
  """Lists the images of both tables. Raises SourceError, also where two rows contradict."""
  root = folders.folder(source, "Object-CXR's train.csv and dev.csv")
  listing = Listing()
  for folder in ("train", "dev"):
    table = folders.find(root, f"{folder}.csv", hint="both tables are needed")
    for row in tables.read(table, ("image_name", "annotation")):
      name = row.text("image_name")
      shapes, broken = _shapes(row)
      image_id = f"{folder}/{Path(name).stem}"
      item = Item(
        key=f"{folder}/{name} ({row.place})",
        split="test" if folder == "dev" else draw_validation(name, _VALIDATION),
        patient_id=image_id,
        row=_Row(f"{folder}/{name}", shapes),
        image_id=image_id,
        view="FRONTAL",
        labels=((LABEL, int(bool(shapes or broken))),),
      )
      if listing.add(item.row.file, item):
        listing.left_out += [(item.key, reason) for reason in broken]
  listing.note_split("dev.csv is test; validation is a fifth of train.csv, drawn by file name")
  listing.note("no patients are named: every image counts as one of its own")
  listing.note_repeated()
  return listing.source("object_cxr", functools.partial(_read, root=root))


def _shapes(row: tables.Row) -> tuple[tuple[_Shape, ...], list[str]]:
  """Parses a row's shapes: each once, and the reasons against those without area."""
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
    fits = count >= 6 and count % 2 == 0 if kind == _POLYGON else count == 4
    known = kind in (_RECTANGLE, _ELLIPSE, _POLYGON)
    if not (known and fits and all(map(math.isfinite, shape.numbers))):
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
  return build_example(item, image, regions=functools.partial(_regions, item.row.shapes))


def _regions(shapes: tuple[_Shape, ...], width: int, height: int) -> tuple[Region, ...]:
  """Unites the shapes to one region, none where there is none."""
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
  inside = np.zeros((height, width), np.uint8)
  if any(shape.kind != _RECTANGLE for shape in shapes):
    for shape in shapes:
      _fill(inside, shape)
  mask = encode_mask(inside) if inside.any() else b""
  return (Region(LABEL, LABEL, np.array(clipped, np.float32), mask),)


def _fill(inside: np.ndarray, shape: _Shape) -> None:
  """Sets the pixels (uint8 [H, W]) whose centres lie in the shape."""
  if shape.kind == _POLYGON:
    corners = np.rint(np.array(shape.numbers) - 0.5).astype(np.int32).reshape(1, -1, 2)
    cv2.fillPoly(inside, corners, 1)  # OpenCV counts from centres, and fills the outline too
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
  part[within] = 1
