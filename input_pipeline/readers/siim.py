"""Reader of SIIM-ACR Pneumothorax Segmentation (Kaggle 2019).

The folder holds

  train-rle.csv, or stage_2_train.csv   ImageId, EncodedPixels: a row a mask, "-1" for none
  *.dcm                                 the images at any depth (dicom-images-train/UID/UID/ID.dcm),
                                        named by ImageId

A mask is run lengths over the image of 1024 x 1024 pixels, column by column: pairs of a gap since
the end of the run before and a length (not start and length, as elsewhere). The masks of an image
are united to one region, "pneumothorax". Label: "Pneumothorax", 1 or 0.

The table knows no patients, so every image is one of its own; it has several rows of some images,
which splits by row tear apart. 80/10/10 is drawn by ImageId; the selection `siim_images` is
70/15/15. Images without a row are left aside. The view is read from the images.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw import dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import encode_mask, resize_mask
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_split

_TABLES = ("train-rle.csv", "stage_2_train.csv")
_SIZE_PX = 1024


@dataclass(frozen=True)
class _Row:
  file: str
  runs: tuple[tuple[int, ...], ...]  # of each mask


def open_source(source: str) -> Source:
  """Lists the images of the table. Raises SourceError, also where two rows contradict."""
  root = folders.folder(source, f"SIIM's {_TABLES[0]} and its DICOM images")
  table = folders.find(
    root, *_TABLES, *(f"*/{name}" for name in _TABLES), hint="get it from Kaggle"
  )
  listing = Listing()
  masks: dict[str, dict[tuple[int, ...], None]] = {}
  first: dict[str, tables.Row] = {}
  for row in tables.read(table, ("ImageId", "EncodedPixels")):
    name, runs = row.text("ImageId"), _runs(row)
    before = first.setdefault(name, row)
    own = masks.setdefault(name, {})
    if before is not row and bool(runs) != bool(own):
      raise SourceError(
        f"{table}: row {row.number} and row {before.number} say that {name} has a mask and none;"
        " remove one"
      )
    listing.counts["repeated"] += before is not row and (not runs or runs in own)
    if runs:
      own[runs] = None
  files = folders.file_names(root, ".dcm")
  for name, row in first.items():
    key, labels = f"{name} ({row.place})", (("Pneumothorax", int(bool(masks[name]))),)
    image = _Row(files.get(f"{name}.dcm", f"{name}.dcm"), tuple(masks[name]))
    listing.items[name] = Item(key, draw_split(name), name, image, image_id=name, labels=labels)
  listing.note("no patients and no official split: drawn by ImageId (80/10/10); see the selections")
  listing.note_repeated()
  aside = sum(Path(file).stem not in first for file in files)
  listing.note("images without a row, left aside: {}", aside)
  return listing.source("siim", functools.partial(_read, root=root))


def decode_runs(runs: tuple[int, ...]) -> np.ndarray:
  """Decodes gaps and lengths in turn to a mask, bool [1024, 1024]."""
  flat = np.zeros(_SIZE_PX * _SIZE_PX, bool)
  ends = np.cumsum(runs)
  for start, end in zip(ends[::2], ends[1::2], strict=True):
    flat[start:end] = True
  return flat.reshape(_SIZE_PX, _SIZE_PX).T


def _runs(row: tables.Row) -> tuple[int, ...]:
  """Parses the numbers of a row's mask; () for none. Raises SourceError."""
  cell = row.text("EncodedPixels")
  if cell == "-1":
    return ()
  try:
    runs = tuple(map(int, cell.split()))
  except ValueError:
    raise row.wrong("EncodedPixels", "-1, or whole numbers") from None
  if len(runs) % 2 or min(runs) < 0 or not sum(runs[1::2]):
    raise row.wrong("EncodedPixels", "pairs of a gap and a length, with a pixel at least")
  if sum(runs) > _SIZE_PX * _SIZE_PX:
    raise row.wrong("EncodedPixels", f"runs that end within {_SIZE_PX} x {_SIZE_PX} pixels")
  return runs


def _read(item: Item, *, root: Path) -> Example:
  image, view = dicom.to_image(folders.read_bytes(root, item.row.file))
  return build_example(item, image, view=view, regions=functools.partial(_regions, item.row.runs))


def _regions(masks: tuple[tuple[int, ...], ...], width: int, height: int) -> tuple[Region, ...]:
  """Unites the masks to one region, none where there is none."""
  if not masks:
    return ()
  if width != height:
    raise UnreadableError(f"the image is {width} x {height}, its mask is of a square one")
  mask = encode_mask(np.logical_or.reduce([decode_runs(runs) for runs in masks]))
  if width != _SIZE_PX:
    mask = resize_mask(mask, (width, height))
  return (Region("pneumothorax", "pneumothorax", np.zeros((0, 4), np.float32), mask),)
