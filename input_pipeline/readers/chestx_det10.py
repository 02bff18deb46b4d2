"""Reader of ChestX-Det10 (Liu, Lian and Yu 2020): ten findings boxed on images of NIH ChestX-ray14.

The folder holds train.json and test.json, and the images (PNG) in any folder below. Each entry is

  {"file_name": "00000042_006.png", "syms": ["Fibrosis", ...], "boxes": [[x1, y1, x2, y2], ...]}

with one box a finding, in pixels of the 1024 x 1024 images (on images of another size they are
scaled along), and empty lists on an image without any. All ten findings were sought: a finding
that is not named is absent (0). There are no reports.

The newer tables call the images as NIH does, so their first eight digits name the patient; the
older ones ("36199.png", with train_data.zip and test_data.zip) tell no patients, and every image
counts as one. The official split tears patients apart: images of train.json whose patient is in
test.json too are left aside. A tenth of the rest, drawn by patient, is validation.
"""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from input_pipeline.readers import nih14
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, draw_validation

FINDINGS = (
  "Atelectasis",
  "Calcification",
  "Consolidation",
  "Effusion",
  "Emphysema",
  "Fibrosis",
  "Fracture",
  "Mass",
  "Nodule",
  "Pneumothorax",
)
_VALIDATION = 1 / 10
_NIH_NAME = re.compile(r"(\d{8})_\d{3}\.png")


def open_source(source: str) -> Source:
  """Lists the images of both tables. Raises SourceError, also where two entries contradict."""
  root = folders.folder(source, "ChestX-Det10's train.json and test.json")
  files = folders.file_names(root, ".png")
  listing = Listing()
  for split in ("test", "train"):
    _list_images(root, split, files, listing)
  test = [item for item in listing.items.values() if item.split == "test"]
  train = [item for item in listing.items.values() if item.split == "train"]
  tested = {item.patient_id for item in test}
  kept = [
    replace(item, split=draw_validation(item.patient_id, _VALIDATION))
    for item in train
    if item.patient_id not in tested
  ]
  listing.items = {item.key: item for item in (*kept, *test)}
  listing.note_split("validation is a tenth of train.json, drawn by patient")
  listing.note(
    "images of train.json whose patient is in test.json, left aside: {} of {}",
    len(train) - len(kept),
    len(train),
  )
  listing.note_repeated("entries")
  listing.note("boxes given twice on an image, dropped: {}", listing.counts["boxes"])
  return listing.source("chestx_det10", functools.partial(nih14.read_boxed, root=root))


def _list_images(root: Path, split: str, files: dict[str, str], listing: Listing) -> None:
  """Lists the images of a table."""
  path = folders.find(root, f"{split}.json", hint="both tables are needed")
  for number, entry in enumerate(tables.read_list(path, "images")):
    entry = entry if isinstance(entry, dict) else {}
    name, syms, corners = entry.get("file_name"), entry.get("syms"), entry.get("boxes")
    lists = isinstance(syms, list) and isinstance(corners, list) and len(syms) == len(corners)
    if not lists or not isinstance(name, str) or not name:
      raise SourceError(
        f"{path}, image {number}: must have a file_name, and syms and boxes of one length"
      )
    key = f"{path.name} image {number}"
    labelled, broken, repeated = _parse_boxes(entry, f"{path}, {key}")
    listing.counts["boxes"] += repeated
    match, image_id = _NIH_NAME.fullmatch(name), Path(name).stem
    patient = match.group(1) if match else image_id
    row = nih14.BoxedImage(files.get(name, name), labelled)
    labels = tuple((finding, int(finding in syms)) for finding in FINDINGS)
    item = Item(f"{name} ({key})", split, patient, row, image_id=image_id, labels=labels)
    if listing.add(f"{split}/{name}", item):
      listing.left_out += [(item.key, reason) for reason in broken]


def _parse_boxes(
  entry: dict[str, Any], place: str
) -> tuple[tuple[boxes.Labelled, ...], list[str], int]:
  """Parses an entry's boxes: each once, the reasons against broken ones, how many were repeated."""
  labelled: list[boxes.Labelled] = []
  broken = []
  for name, box in zip(entry["syms"], entry["boxes"], strict=True):
    if name not in FINDINGS:
      raise SourceError(f"{place}: {name!r} must be one of {', '.join(FINDINGS)}")
    if not boxes.is_box(box):
      raise SourceError(f"{place}: the box {box!r} must be four {boxes.NUMBERS}, x1, y1, x2, y2")
    corners = boxes.clip(tuple(box), nih14.SIZE_PX, nih14.SIZE_PX)
    if corners is None:
      broken.append(f"the box {box} of {name} is empty or outside its image")
    else:
      labelled.append((name, corners))
  unique = tuple(dict.fromkeys(labelled))
  return unique, broken, len(labelled) - len(unique)
