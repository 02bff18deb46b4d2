"""Reader of NIH ChestX-ray14 (Wang et al. 2017): labels, and the 984 boxes of its test images.

The folder holds

  Data_Entry_2017_v2020.csv   a row an image; the older Data_Entry_2017.csv will do
  train_val_list.txt, test_list.txt   the official split, a file name a line
  BBox_List_2017.csv          boxes, optional
  images/00000001_000.png, ... or images_001/images/..., as the archives unpack

Of the columns, Image Index names the file, Finding Labels holds names with "|" between, Patient ID
and View Position (PA or AP) are taken; age, sex, follow-up number and original size are left aside.
The labels were mined from reports that are not public: images have no text. A finding that is not
named counts as absent (0), as everywhere in the field. One image is one study.

Boxes are in pixels of the 1024 x 1024 images; on images of another size they are scaled along. Their
table says "Infiltrate" where the labels say "Infiltration", which is what its regions are called.

The official split knows no validation: an eighth of the patients of train_val_list.txt is drawn by
patient id, so that the shares are about 70, 10 and 20 percent of the images.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline.example import SPLITS, Example
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw

FINDINGS = (
  "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
  "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
LABELS = (*FINDINGS, "No Finding")
_VALIDATION = 1 / 8
_SIZE_PX = 1024
_ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_BOXES = "BBox_List_2017.csv"

_Boxes = tuple[tuple[str, boxes.Corners], ...]


@dataclass(frozen=True)
class _Row:
  file: str  # relative to the folder
  boxes: _Boxes  # label and corners, in an image of 1024 x 1024


def open_source(source: str) -> Source:
  """Lists the images.

  Args:
    source: the folder.

  Raises SourceError: a table or list is missing or damaged, a cell cannot be right, one image has
  two rows that differ or stands in both lists.
  """
  root = folders.folder(source, "NIH ChestX-ray14")
  entries = folders.find(root, *_ENTRIES, what="get it where the images came from")
  split_of = _split_lists(root)
  boxed, left_out, notes = _boxes(root)
  files = folders.file_names(root, ".png")
  items: dict[str, Item] = {}
  twice = 0
  labels: dict[str, tuple[tuple[str, int], ...]] = {}
  columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
  for row in tables.read(entries, columns):
    name, patient, cell = row.text("Image Index"), row.text("Patient ID"), row["Finding Labels"]
    if cell not in labels:
      labels[cell] = _labels(row)
    split = split_of.get(name)
    if split is None:
      left_out.append((f"{name} ({row.place})", f"is in neither {' nor '.join(_LISTS.values())}"))
      continue
    if split == "train" and draw(patient) < _VALIDATION:
      split = "validation"
    item = Item(
      f"{name} ({row.place})", split, patient,
      _Row(files.get(name, f"images/{name}"), boxed.get(name, ())),
      Path(name).stem, row["View Position"], labels[cell],
    )  # fmt: skip
    first = items.setdefault(name, item)
    if first is not item:
      if replace(item, key=first.key) != first:
        raise SourceError(f"{entries}: {item.key} contradicts {first.key}; remove one of the rows")
      twice += 1
  images = list(items.values())
  counts = Counter(item.split for item in images)
  drawn = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
  notes.insert(0, f"validation is an eighth of {_LISTS['train']}, drawn by patient id ({drawn})")
  if twice:
    notes.append(f"rows that say the same as an earlier one, dropped: {twice}")
  if lost := sum(len(found) for name, found in boxed.items() if name not in items):
    notes.append(f"boxes of images that are not listed, left aside: {lost}")
  example = functools.partial(_read, root=root)
  return Source("nih14", images, example, tuple(notes), tuple(left_out))


def _split_lists(root: Path) -> dict[str, str]:
  """File name -> "train" or "test". Raises SourceError where an image stands in both lists."""
  split_of: dict[str, str] = {}
  for split, name in _LISTS.items():
    path = folders.find(root, name, what="the lists of the official split come with the images")
    for line in folders.text(path.read_bytes()).split():
      if split_of.setdefault(line, split) != split:
        raise SourceError(f"{path}: {line} is in {_LISTS[split_of[line]]} too; take one away")
  return split_of


def _labels(row: tables.Row) -> tuple[tuple[str, int], ...]:
  """Every label, 1 where the row names it, else 0. Raises SourceError for an unknown name."""
  named = row["Finding Labels"].split("|")
  if not set(named) <= set(LABELS):
    raise row.wrong("Finding Labels", f"names with '|' between, of {', '.join(LABELS)}")
  return tuple((label, int(label in named)) for label in LABELS)


def _boxes(root: Path) -> tuple[dict[str, _Boxes], list[tuple[str, str]], list[str]]:
  """File name -> boxes; what was left out; notes."""
  path = root / _BOXES
  if not path.exists():
    return {}, [], [f"no {_BOXES}: no boxes"]
  found: dict[str, dict[tuple[str, boxes.Corners], None]] = {}
  left_out, twice = [], 0
  for row, label, (x, y, w, h) in _box_rows(path):
    name = row.text("Image Index")
    corners = boxes.clip((x, y, x + w, y + h), _SIZE_PX, _SIZE_PX)
    if corners is None:
      reason = f"the box x {x:g}, y {y:g}, w {w:g}, h {h:g} is empty or outside its image"
      left_out.append((f"{name} ({row.place})", reason))
      continue
    twice += (label, corners) in found.setdefault(name, {})
    found[name][label, corners] = None
  notes = [f"boxes given twice, dropped: {twice}"] if twice else []
  return {name: tuple(each) for name, each in found.items()}, left_out, notes


def _box_rows(path: Path) -> Iterator[tuple[tables.Row, str, tuple[float, ...]]]:
  """Row, label, and x, y, w, h; the table's own first row has commas inside its names."""
  columns = ("Image Index", "Finding Label", "x", "y", "w", "h")
  for row in tables.read(path, columns, names=columns):
    label = row["Finding Label"].replace("Infiltrate", "Infiltration")
    if label not in FINDINGS:
      raise row.wrong("Finding Label", f"one of {', '.join(FINDINGS)}")
    numbers = row.numbers("x", "y", "w", "h")
    if numbers is None:
      raise row.wrong("x", "a number")
    yield row, label, numbers


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
    regions=boxes.by_label(item.row.boxes, (width / _SIZE_PX, height / _SIZE_PX)),
  )
