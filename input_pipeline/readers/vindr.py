"""Reader of VinDr-CXR (Nguyen et al. 2022), and of VinBigData, its training part on Kaggle.

PhysioNet's folder:

  annotations/annotations_train.csv   image_id, rad_id, class_name, x_min, y_min, x_max, y_max
  annotations/annotations_test.csv    the same without rad_id: the consensus of five readers
  annotations/image_labels_train.csv, image_labels_test.csv   a row an image (and reader), 0 or 1 a
                                      finding; optional
  train/*.dicom, test/*.dicom

Kaggle's folder: train.csv (as annotations_train.csv, with class_id) and train/*.dicom or *.dcm.

Each training image was read by three radiologists. A finding is 1 where two or more of them name it,
-1 (uncertain) where one does, else 0; of the test images, as the consensus says. "No finding" is a
label like the others, but no label of a reader who names a finding of the same image. The test
images' "Other disease" takes the name that training gives it, "Other diseases". The boxes of an image
and finding are fused (`fusion`) to one region; boxes of a finding that is uncertain are left aside,
since a region is what a phrase truly speaks of. Every image is a patient of its own, as far as the
data tell. Of the training images, a tenth, drawn by image_id, is validation; Kaggle's folder, whose
test images have no labels, gives test images by draw too (80/10/10).
"""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.example import Example, UnreadableError
from input_pipeline.readers.raw import box_fusion, boxes, dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw, draw_split

NO_FINDING = "No finding"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_VALIDATION = 0.1
_READER = ("rad_id", "rad_ID")
_SPELLINGS = {"Other disease": "Other diseases"}
_SUFFIXES = (".dicom", ".dcm")


@dataclass(frozen=True)
class _Row:
  folder: str
  fusion: str
  boxes: tuple[tuple[str, str, boxes.Corners], ...]  # label, reader, corners


class _Image:
  """What the tables say of one image: finding -> its readers, and boxes."""

  def __init__(self, place: str):
    self.place = place
    self.named: dict[str, set[str]] = {}
    self.readers: set[str] = set()
    self.boxes: dict[tuple[str, str, boxes.Corners], None] = {}


def open_source(source: str, *, fusion: str = "weighted") -> Source:
  """Lists the images.

  Args:
    source: the folder.
    fusion: a name of box_fusion.FUSIONS: "weighted", "largest" or "every".

  Raises SourceError: a table is missing or damaged, or a cell cannot be right.
  """
  root = folders.folder(source, "VinDr-CXR's annotations, or VinBigData's train.csv")
  if fusion not in box_fusion.FUSIONS:
    raise SourceError(f"fusion is {fusion!r}; it must be one of {', '.join(box_fusion.FUSIONS)}")
  kaggle = not (root / "annotations").is_dir()
  parts = {"train": folders.find(root, "train.csv", what="or annotations/, see the module") if kaggle
           else folders.find(root, "annotations/annotations_train.csv")}  # fmt: skip
  if not kaggle:
    parts["test"] = folders.find(root, "annotations/annotations_test.csv")
  items, left_out, notes, aside = [], [], [], 0
  for part, table in parts.items():
    images, broken, told = _images(table, root, part)
    left_out += broken
    notes += told
    names = sorted({name for image in images.values() for name in image.named})
    for image_id, image in images.items():
      split = part
      if kaggle:
        split = draw_split(image_id)
      elif part == "train" and draw(image_id) < _VALIDATION:
        split = "validation"
      labels = {name: _label(image, name) for name in names}
      kept = tuple(box for box in image.boxes if labels[box[0]] == 1)
      aside += len(image.boxes) - len(kept)
      items.append(
        Item(
          f"{image_id} ({image.place})", split, image_id, _Row(part, fusion, kept),
          image_id, "", tuple(labels.items()),
        )
      )  # fmt: skip
  if aside:
    notes.append(f"boxes of findings that one reader alone names, left aside: {aside}")
  counts = Counter(item.split for item in items)
  shares = ", ".join(f"{split} {count}" for split, count in sorted(counts.items()))
  notes.append(f"{'splits' if kaggle else 'validation'} drawn by image_id ({shares})")
  example = functools.partial(_read, root=root)
  return Source("vindr", items, example, tuple(notes), tuple(left_out))


def _images(
  table: Path, root: Path, part: str
) -> tuple[dict[str, _Image], list[tuple[str, str]], list[str]]:
  """Image id -> image, what was left out, and notes."""
  images: dict[str, _Image] = {}
  left_out, twice = [], 0
  for row in tables.read(table, ("image_id", "class_name", *_CORNERS)):
    image_id, name, reader = row.text("image_id"), row.text("class_name"), _reader(row, part)
    image = images.setdefault(image_id, _Image(row.place))
    image.readers.add(reader)
    numbers = row.numbers(*_CORNERS)
    if (numbers is None) != (name == NO_FINDING):
      raise row.wrong("x_min", f"empty for {NO_FINDING!r}, and a number for all else")
    image.named.setdefault(name, set()).add(reader)
    if numbers is None:
      continue
    x0, y0, x1, y1 = numbers
    if x0 >= x1 or y0 >= y1:
      reason = f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {name} is empty"
      left_out.append((f"{image_id} ({row.place})", reason))
      continue
    box = (name, reader, numbers)
    twice += box in image.boxes
    image.boxes[box] = None
  notes = [f"{table.name}: boxes given twice by a reader, dropped: {twice}"] if twice else []
  labels = root / "annotations" / f"image_labels_{part}.csv"
  if labels.exists():
    _add_labels(labels, images, part)
  if doubted := sum(map(_doubt, images.values())):
    notes.append(f"{table.name}: readers who name a finding and {NO_FINDING!r}: {doubted}")
  return images, left_out, notes


def _reader(row: tables.Row, part: str) -> str:
  """Who read the image. The consensus of the test images counts as one reader."""
  column = next((name for name in _READER if name in row), None)
  if column:
    return row.text(column)
  if part == "train":  # the first to name a finding would pass for all three
    raise SourceError(
      f"{row.file}: no column {_READER[0]!r}; the training images need their readers"
    )
  return "consensus"


def _add_labels(table: Path, images: dict[str, _Image], part: str) -> None:
  """Findings that have no box, such as "Pneumonia", from the labels of whole images."""
  for row in tables.read(table, ("image_id",)):
    image = images.setdefault(row.text("image_id"), _Image(row.place))
    reader = _reader(row, part)
    image.readers.add(reader)
    for name in row:
      if name not in ("image_id", *_READER):
        readers = image.named.setdefault(_SPELLINGS.get(name, name), set())
        if row.label(name) == 1:
          readers.add(reader)


def _doubt(image: _Image) -> int:
  """Takes "No finding" from the readers who name a finding; how many they are."""
  nothing = image.named.get(NO_FINDING, set())
  something = set().union(*(image.named[name] for name in image.named if name != NO_FINDING))
  doubted = nothing & something
  nothing -= doubted
  return len(doubted)


def _label(image: _Image, name: str) -> int:
  """1, 0, or -1 where one of several readers names the finding."""
  count = len(image.named.get(name, ()))
  return -1 if count == 1 < len(image.readers) else int(count > 0)


def _read(item: Item, *, root: Path) -> Example:
  row = item.row
  names = [f"{row.folder}/{item.image_id}{suffix}" for suffix in _SUFFIXES]
  image, view = dicom.to_image(
    folders.read_bytes(root, next((name for name in names if (root / name).exists()), names[0]))
  )
  width, height = image_size(image)
  found: dict[str, tuple[list[boxes.Corners], list[str]]] = {}
  for label, reader, corners in row.boxes:
    clipped = boxes.clip(corners, width, height)
    if clipped is None:
      raise UnreadableError(
        f"the box {corners} of {label} lies outside its {width} x {height} image"
      )
    found.setdefault(label, ([], []))[0].append(clipped)
    found[label][1].append(reader)
  fuse = box_fusion.FUSIONS[row.fusion]
  fused = [
    (label, tuple(box))
    for label, (corners, readers) in found.items()
    for box in fuse(np.array(corners), np.array(readers)).tolist()
  ]
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=item.image_id,
    patient_id=item.patient_id,
    view=view,
    labels=dict(item.labels),
    regions=boxes.by_label(fused),
  )
