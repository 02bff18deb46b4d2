"""Reader of VinDr-CXR (Nguyen et al. 2022), and of VinBigData, its training part on Kaggle.

PhysioNet's folder:

  annotations/annotations_train.csv   image_id, rad_id, class_name, x_min, y_min, x_max, y_max
  annotations/annotations_test.csv    the same without rad_id: the consensus of five readers
  annotations/image_labels_train.csv, image_labels_test.csv   a row an image (and reader), 0 or 1 a
                                      finding; optional
  train/*.dicom, test/*.dicom

Kaggle's folder: train.csv (as annotations_train.csv, with class_id) and train/*.dicom or *.dcm.

Each training image was read by three radiologists. A finding is 1 where two or more of them name
it, -1 (uncertain) where one does, else 0; of the test images, as the consensus says. "No finding"
is a label like the others, but no label of a reader who names a finding of the same image. The test
images' "Other disease" takes the name that training gives it, "Other diseases". The boxes of an
image and finding are fused (`fusion`) to one region; boxes of a finding that is uncertain are left
aside, since a region is what a phrase truly speaks of. Every image is a patient of its own, as far
as the data tell. Of the training images, a tenth, drawn by image_id, is validation; Kaggle's
folder, whose test images have no labels, gives test images by draw too (80/10/10).
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw import box_fusion, boxes, dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import (
  Item,
  Listing,
  Source,
  build_example,
  draw_split,
  draw_validation,
)

NO_FINDING = "No finding"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_VALIDATION = 0.1
_READER = ("rad_id", "rad_ID")
_SPELLINGS = {"Other disease": "Other diseases"}
_SUFFIXES = (".dicom", ".dcm")

_Box = tuple[str, str, boxes.Corners]  # label, reader, corners


@dataclass(frozen=True)
class _Row:
  folder: str
  fusion: str
  boxes: tuple[_Box, ...]


@dataclass
class _Image:
  """Readings of one image."""

  place: str
  readers_of: dict[str, set[str]] = field(default_factory=dict)  # finding -> who names it
  readers: set[str] = field(default_factory=set)
  boxes: dict[_Box, None] = field(default_factory=dict)

  def label(self, name: str) -> int:
    """Returns 1, 0, or -1 where one of several readers names the finding."""
    count = len(self.readers_of.get(name, ()))
    return -1 if count == 1 < len(self.readers) else int(count > 0)

  def settle_doubts(self) -> int:
    """Takes "No finding" from readers who name a finding too; returns how many they are."""
    nothing = self.readers_of.get(NO_FINDING, set())
    findings = self.readers_of.keys() - {NO_FINDING}
    doubted = nothing & set().union(*(self.readers_of[name] for name in findings))
    nothing -= doubted
    return len(doubted)


def open_source(source: str, *, fusion: str = "weighted") -> Source:
  """Lists the images. Raises SourceError.

  Args:
    fusion: a name of box_fusion.FUSIONS: "weighted", "largest" or "every".
  """
  root = folders.folder(source, "VinDr-CXR's annotations, or VinBigData's train.csv")
  folders.check_option("fusion", fusion, tuple(box_fusion.FUSIONS))
  kaggle = not (root / "annotations").is_dir()
  if kaggle:
    parts = {"train": folders.find(root, "train.csv", hint="or annotations/, see the module")}
  else:
    names = {part: f"annotations/annotations_{part}.csv" for part in ("train", "test")}
    parts = {part: folders.find(root, name) for part, name in names.items()}
  listing = Listing()
  for part, table in parts.items():
    images = _read_images(table, root, part, listing)
    findings = sorted({name for image in images.values() for name in image.readers_of})
    for image_id, image in images.items():
      split = part
      if kaggle:
        split = draw_split(image_id)
      elif part == "train":
        split = draw_validation(image_id, _VALIDATION)
      labels = {name: image.label(name) for name in findings}
      certain = tuple(box for box in image.boxes if labels[box[0]] == 1)
      listing.counts["uncertain"] += len(image.boxes) - len(certain)
      key = f"{image_id} ({image.place})"
      row, values = _Row(part, fusion, certain), tuple(labels.items())
      listing.items[key] = Item(key, split, image_id, row, image_id=image_id, labels=values)
  aside = listing.counts["uncertain"]
  listing.note("boxes of findings that one reader alone names, left aside: {}", aside)
  drawn = "splits" if kaggle else "validation"
  listing.note_split(f"{drawn} drawn by image_id")
  return listing.source("vindr", functools.partial(_read, root=root))


def _read_images(table: Path, root: Path, part: str, listing: Listing) -> dict[str, _Image]:
  """Reads the readings of every image, by its id; lists boxes without area as left out."""
  images: dict[str, _Image] = {}
  repeated = 0
  for row in tables.read(table, ("image_id", "class_name", *_CORNERS)):
    image_id, name, reader = row.text("image_id"), row.text("class_name"), _reader(row, part)
    image = images.setdefault(image_id, _Image(row.place))
    image.readers.add(reader)
    numbers = row.numbers(*_CORNERS)
    if (numbers is None) != (name == NO_FINDING):
      raise row.wrong("x_min", f"empty for {NO_FINDING!r}, and a number for all else")
    image.readers_of.setdefault(name, set()).add(reader)
    if numbers is None:
      continue
    x0, y0, x1, y1 = numbers
    if x0 >= x1 or y0 >= y1:
      reason = f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {name} is empty"
      listing.leave_out(f"{image_id} ({row.place})", reason)
      continue
    box = (name, reader, numbers)
    repeated += box in image.boxes
    image.boxes[box] = None
  listing.note(f"{table.name}: boxes given twice by a reader, dropped: {{}}", repeated)
  labels = root / "annotations" / f"image_labels_{part}.csv"
  if labels.exists():
    _add_labels(labels, images, part)
  doubts = sum(image.settle_doubts() for image in images.values())
  listing.note(f"{table.name}: readers who name a finding and {NO_FINDING!r}: {{}}", doubts)
  return images


def _reader(row: tables.Row, part: str) -> str:
  """Returns the reader of a row. The consensus of the test images counts as one reader."""
  column = next((name for name in _READER if name in row), None)
  if column:
    return row.text(column)
  if part == "train":  # the first to name a finding would pass for all three
    raise SourceError(
      f"{row.file}: no column {_READER[0]!r}; the training images need their readers"
    )
  return "consensus"


def _add_labels(table: Path, images: dict[str, _Image], part: str) -> None:
  """Adds findings that have no box, such as "Pneumonia", from the labels of whole images."""
  for row in tables.read(table, ("image_id",)):
    image = images.setdefault(row.text("image_id"), _Image(row.place))
    reader = _reader(row, part)
    image.readers.add(reader)
    for name in row:
      if name not in ("image_id", *_READER):
        readers = image.readers_of.setdefault(_SPELLINGS.get(name, name), set())
        if row.label(name) == 1:
          readers.add(reader)


def _read(item: Item, *, root: Path) -> Example:
  files = (f"{item.row.folder}/{item.image_id}{suffix}" for suffix in _SUFFIXES)
  image, view = dicom.to_image(folders.read_bytes(root, *files))
  return build_example(item, image, view=view, regions=functools.partial(_regions, item.row))


def _regions(row: _Row, width: int, height: int) -> tuple[Region, ...]:
  """Fuses the boxes of each finding."""
  readings: dict[str, list[tuple[str, boxes.Corners]]] = {}
  for label, reader, corners in row.boxes:
    clipped = boxes.clip(corners, width, height)
    if clipped is None:
      raise UnreadableError(
        f"the box {corners} of {label} lies outside its {width} x {height} image"
      )
    readings.setdefault(label, []).append((reader, clipped))
  fuse = box_fusion.FUSIONS[row.fusion]
  fused = []
  for label, pairs in readings.items():
    readers, corners = map(np.array, zip(*pairs, strict=True))
    fused += [(label, tuple(box)) for box in fuse(corners, readers).tolist()]
  return boxes.by_label(fused)
