"""Reader of ChestX-Det10 (Liu, Lian and Yu 2020): ten findings boxed on images of NIH ChestX-ray14.

The folder holds train.json and test.json, and the images (PNG) in any folder below. Each entry is

  {"file_name": "00000042_006.png", "syms": ["Fibrosis", ...], "boxes": [[x1, y1, x2, y2], ...]}

with one box a finding, in pixels of the 1024 x 1024 images (on images of another size they are scaled
along), and empty lists on an image without any. All ten findings were looked for: a finding that is
not named is absent (0). There are no reports.

The newer tables call the images as NIH does, so their first eight digits name the patient; the
older ones ("36199.png", with train_data.zip and test_data.zip) tell no patients, and every image
counts as one. The official split tears patients apart: images of train.json whose patient is in
test.json too are left aside. A tenth of the rest, drawn by patient, is validation.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from input_pipeline.example import SPLITS, Example
from input_pipeline.readers.raw import boxes, folders
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw

FINDINGS = (
  "Atelectasis", "Calcification", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Fracture",
  "Mass", "Nodule", "Pneumothorax",
)  # fmt: skip
_VALIDATION = 1 / 10
_SIZE_PX = 1024
_NIH_NAME = re.compile(r"(\d{8})_\d{3}\.png")


@dataclass(frozen=True)
class _Row:
  file: str  # relative to the folder
  boxes: tuple[tuple[str, boxes.Corners], ...]  # in an image of 1024 x 1024


def open_source(source: str) -> Source:
  """Lists the images of both tables.

  Args:
    source: the folder.

  Raises SourceError: a table is missing or no JSON, an entry lacks what it must say, or an image has
  two entries that differ.
  """
  root = folders.folder(source, "ChestX-Det10's train.json and test.json")
  files = folders.file_names(root, ".png")
  left_out: list[tuple[str, str]] = []
  counts = Counter()
  test: dict[str, Item] = {}
  train: dict[str, Item] = {}
  for split, items in (("test", test), ("train", train)):
    path = folders.find(root, f"{split}.json", what="both tables are needed")
    for key, entry in _entries(path):
      name = entry["file_name"]
      found, labels, broken = _boxes(entry, f"{path}, {key}", counts)
      match = _NIH_NAME.fullmatch(name)
      patient = match.group(1) if match else Path(name).stem
      item = Item(
        f"{name} ({key})", split, patient, _Row(files.get(name, name), found), Path(name).stem,
        labels=labels,
      )  # fmt: skip
      first = items.setdefault(name, item)
      if first is item:
        left_out += [(item.key, reason) for reason in broken]
      elif replace(item, key=first.key) == first:
        counts["twice"] += 1
      else:
        raise SourceError(f"{path}: {item.key} contradicts {first.key}; remove one of the entries")
  tested = {item.patient_id for item in test.values()}
  kept = [
    replace(item, split="validation") if draw(item.patient_id) < _VALIDATION else item
    for item in train.values()
    if item.patient_id not in tested
  ]
  images = [*kept, *test.values()]
  splits = Counter(item.split for item in images)
  drawn = ", ".join(f"{split} {splits[split]}" for split in SPLITS)
  notes = [f"validation is a tenth of train.json, drawn by patient ({drawn})"]
  if aside := len(train) - len(kept):
    notes.append(
      f"images of train.json whose patient is in test.json, left aside: {aside} of {len(train)}"
    )
  if counts["twice"]:
    notes.append(f"entries that say the same as an earlier one, dropped: {counts['twice']}")
  if counts["boxes"]:
    notes.append(f"boxes given twice on an image, dropped: {counts['boxes']}")
  read = functools.partial(_read, root=root)
  return Source("chestx_det10", images, read, tuple(notes), tuple(left_out))


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Where an entry stands, and the entry, whose lists have one length. Raises SourceError."""
  try:
    entries = json.loads(path.read_text(encoding="utf-8-sig"))
  except ValueError as error:
    raise SourceError(f"{path}: not JSON in UTF-8 ({error}); download it again") from None
  if not isinstance(entries, list):
    raise SourceError(f"{path}: must be a list of images")
  for number, entry in enumerate(entries):
    entry = entry if isinstance(entry, dict) else {}
    name, syms, found = entry.get("file_name"), entry.get("syms"), entry.get("boxes")
    lists = isinstance(syms, list) and isinstance(found, list) and len(syms) == len(found)
    if not lists or not isinstance(name, str) or not name:
      raise SourceError(
        f"{path}, image {number}: must have a file_name, and syms and boxes of one length"
      )
    yield f"{path.name} image {number}", entry


def _boxes(
  entry: dict[str, Any], place: str, counts: Counter
) -> tuple[tuple[tuple[str, boxes.Corners], ...], tuple[tuple[str, int], ...], list[str]]:
  """Boxes, labels, and what is wrong with boxes that have no area."""
  found: dict[tuple[str, boxes.Corners], None] = {}
  broken = []
  for name, box in zip(entry["syms"], entry["boxes"], strict=True):
    if name not in FINDINGS:
      raise SourceError(f"{place}: {name!r} must be one of {', '.join(FINDINGS)}")
    numbers = box if isinstance(box, list) and len(box) == 4 else ["none"]
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
      raise SourceError(f"{place}: the box {box!r} must be four numbers, x1, y1, x2, y2")
    corners = boxes.clip(tuple(numbers), _SIZE_PX, _SIZE_PX)
    if corners is None:
      broken.append(f"the box {box} of {name} is empty or outside its image")
      continue
    counts["boxes"] += (name, corners) in found
    found[name, corners] = None
  labels = tuple((name, int(name in entry["syms"])) for name in FINDINGS)
  return tuple(found), labels, broken


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
    labels=dict(item.labels),
    regions=boxes.by_label(item.row.boxes, (width / _SIZE_PX, height / _SIZE_PX)),
  )
