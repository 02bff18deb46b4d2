"""Reader of any folder with a `manifest.csv`: one row an image.

Columns (UTF-8, first row names them; further columns are left aside):

  image        path of the image, relative to the folder; it, or a link, must not lead out of there
  text         the report, or empty
  text_kind    "report" (default), "labels" (a sentence made from labels) or "none" (text is empty)
  split        train, validation or test; without the column, 80/10/10 by a hash of patient_id
  patient_id   without the column, every image is a patient of its own
  study_id     without the column, every image is a study of its own
  image_id     unique; without the column, the image's path without its suffix
  view         "PA", "AP", ...
  labels       names with "|" between: "effusion" is present, "effusion=0" absent, "effusion=-1"
               uncertain
  boxes        JSON list of {"label", "x", "y", "w", "h"} in pixels of the file, before an EXIF
               orientation turns image and boxes, and optionally "phrase" (default: the label);
               boxes of one phrase are one region
  mask         path of a lung-field mask (as an image's), or a JSON list of {"label", "file"},
               optionally with "phrase"; a mask has the size of its image's file, is turned with
               it, and is black (or transparent) outside
"""

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.example import SPLITS, Example, Region, UnreadableError
from input_pipeline.readers.raw import folders, tables
from input_pipeline.readers.raw.boxes import NUMBERS, Corners, clip, is_box
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import decode_mask, encode_mask
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_split
from input_pipeline.text import reports

MANIFEST = "manifest.csv"
_REQUIRED = ("image", "text")
_IDS = ("patient_id", "study_id", "image_id")
_OPTIONAL = ("text_kind", "split", *_IDS, "view", "labels", "boxes", "mask")
_TEXT_KINDS = ("report", "labels", "none")
_TOLERANCE_PX = 1.0  # by how much a rounded box may stick out of its image; it is clipped


@dataclass(frozen=True)
class _Box:
  phrase: str
  label: str
  corners: Corners


@dataclass(frozen=True)
class _Mask:
  phrase: str
  label: str
  file: str


@dataclass(frozen=True)
class _Row:
  """Checked row of the manifest; `number` counts as a spreadsheet does, column names first."""

  number: int
  image: str
  study_id: str
  text: str
  text_kind: str
  boxes: tuple[_Box, ...]
  masks: tuple[_Mask, ...]


class _CellError(Exception):
  """Wrong cell: column and problem; file and row are added later."""


def open_source(source: str) -> Source:
  """Lists the images of the manifest, which is checked whole. Raises SourceError."""
  root = folders.folder(source, MANIFEST)
  manifest = folders.find(root, MANIFEST, hint=f"it needs the columns {', '.join(_REQUIRED)}")
  listing = Listing()
  columns: tuple[str, ...] = ()
  unknown, silent = Counter(), 0
  for row in tables.read(manifest, _REQUIRED):
    columns = tuple(row)
    sections = reports.sections(row["text"])
    unknown.update(reports.unknown_headings(sections))
    silent += bool(row["text"]) and not reports.report_sentences(sections)
    try:
      item = _parse(row)
      if (first := listing.items.setdefault(item.image_id, item)) is not item:
        raise _CellError(
          "image_id" if "image_id" in row else "image",
          f"the image id {item.image_id!r} is taken by row {first.row.number}",
        )
    except _CellError as error:
      raise row.error(*error.args) from None
  if not listing.items:
    raise SourceError(f"{manifest}: there is no row below the column names")
  extra = [name for name in columns if name not in _REQUIRED + _OPTIONAL]
  listing.note("columns left aside: {}", ", ".join(extra))
  if "patient_id" not in columns:
    listing.note("no column patient_id: every image counts as a patient of its own")
  if "split" not in columns:
    listing.note_split("no column split: drawn by patient_id")
  without = sum(not item.row.text for item in listing.items.values())
  listing.note("rows without text: {} of {}", without, len(listing.items))
  listing.note("rows whose text gives no sentence: {} of {}", silent, len(listing.items))
  listed = ", ".join(f"{heading}: ({count})" for heading, count in unknown.most_common(8))
  listing.note("headings that are not known, in sections that training does not read: {}", listed)
  return listing.source("folder", functools.partial(_read, root=root))


def _parse(row: tables.Row) -> Item:
  """Makes the item of a row. Raises _CellError."""
  image = row["image"]
  if not Path(image).name:
    raise _CellError("image", f"{image!r} names no file" if image else "is empty")
  for name in _IDS:
    if row.get(name) == "":
      raise _CellError(name, "is empty; fill it in every row, or leave the column out")
  image_id = row.get("image_id") or Path(image).with_suffix("").as_posix()
  patient_id = row.get("patient_id") or image_id
  split = row.one_of("split", SPLITS) if "split" in row else draw_split(patient_id)
  text_kind = row.one_of("text_kind", _TEXT_KINDS) if row.get("text_kind") else "report"
  if text_kind == "none" and row["text"]:
    raise _CellError("text", "must be empty where text_kind is 'none'")
  labels = _parse_labels(row.get("labels", ""))
  boxes, masks = _parse_boxes(row.get("boxes", "")), _parse_masks(row.get("mask", ""))
  label_of = {}
  for column, part in [("boxes", box) for box in boxes] + [("mask", mask) for mask in masks]:
    if label_of.setdefault(part.phrase, part.label) != part.label:
      raise _CellError(
        column,
        f"the phrase {part.phrase!r} is one region, but has the labels"
        f" {label_of[part.phrase]!r} and {part.label!r}",
      )
  return Item(
    key=f"{image} ({row.place})",
    split=split,
    patient_id=patient_id,
    row=_Row(
      number=row.number,
      image=image,
      study_id=row.get("study_id") or f"{patient_id}/{image_id}",
      text=row["text"],
      text_kind="labels" if text_kind == "labels" else "report",
      boxes=boxes,
      masks=masks,
    ),
    image_id=image_id,
    view=row.get("view", ""),
    labels=labels,
  )


def _parse_labels(cell: str) -> tuple[tuple[str, int], ...]:
  labels = {}
  for part in filter(None, (part.strip() for part in cell.split("|"))):
    name, equals, value = part.rpartition("=")
    if not equals:
      name, value = part, "1"
    if not name or value not in ("1", "0", "-1"):
      raise _CellError("labels", f"{part!r} must be a name, or a name with =1, =0 or =-1 behind it")
    if labels.setdefault(name, int(value)) != int(value):
      raise _CellError("labels", f"{name!r} has two values")
  return tuple(labels.items())


def _parse_list(column: str, cell: str, text_keys: tuple[str, ...]) -> list[dict]:
  """Parses a JSON list of objects whose `text_keys` are texts that are not empty."""
  try:
    entries = tables.parse_json(cell)
  except ValueError as error:
    raise _CellError(column, f"not JSON ({error})") from None
  if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
    raise _CellError(column, "must be a JSON list of objects: [{...}, {...}]")
  for i, entry in enumerate(entries):
    entry.setdefault("phrase", entry.get("label"))
    for key in (*text_keys, "phrase"):
      if not isinstance(entry.get(key), str) or not entry[key].strip():
        raise _CellError(column, f"entry {i}: {key!r} is missing or no text: {json.dumps(entry)}")
  return entries


def _parse_boxes(cell: str) -> tuple[_Box, ...]:
  boxes = []
  for i, entry in enumerate(_parse_list("boxes", cell, ("label",)) if cell else []):
    numbers = [entry.get(key) for key in ("x", "y", "w", "h")]
    if not is_box(numbers):
      problem = f"x, y, w and h must be {NUMBERS}: {json.dumps(entry)}"
      raise _CellError("boxes", f"box {i}: {problem}")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
      raise _CellError("boxes", f"box {i}: w and h must be above 0, they are {w:g} and {h:g}")
    boxes.append(_Box(entry["phrase"], entry["label"], (x, y, x + w, y + h)))
  return tuple(boxes)


def _parse_masks(cell: str) -> tuple[_Mask, ...]:
  if cell and not cell.startswith("["):
    return (_Mask("lungs", "lungs", cell),)
  entries = _parse_list("mask", cell, ("label", "file")) if cell else []
  return tuple(_Mask(entry["phrase"], entry["label"], entry["file"]) for entry in entries)


def _read(item: Item, *, root: Path) -> Example:
  """Reads an example. Raises UnreadableError; SourceError for boxes and masks that do not fit."""
  row = item.row
  try:
    return build_example(
      item,
      folders.read_bytes(root, row.image),
      study_id=row.study_id,
      sections=reports.sections(row.text),
      regions=functools.partial(_regions, row, root),
      text_kind=row.text_kind,
    )
  except _CellError as error:
    column, problem = error.args
    place = f"{root / MANIFEST}, row {row.number} ({row.image})"
    raise SourceError(f"{place}, column {column!r}: {problem}") from None


def _regions(row: _Row, root: Path, width: int, height: int) -> tuple[Region, ...]:
  """Unites boxes and masks by phrase, in the order of their first mention."""
  parts: dict[str, tuple[str, list, list]] = {}
  for box in row.boxes:
    parts.setdefault(box.phrase, (box.label, [], []))[1].append(_clip(box, width, height))
  for mask in row.masks:
    pixels = _read_mask(mask.file, root, width, height)
    parts.setdefault(mask.phrase, (mask.label, [], []))[2].append(pixels)
  return tuple(
    Region(
      phrase,
      label,
      np.array(boxes, np.float32).reshape(-1, 4),
      encode_mask(np.logical_or.reduce(masks)) if masks else b"",
    )
    for phrase, (label, boxes, masks) in parts.items()
  )


def _clip(box: _Box, width: int, height: int) -> Corners:
  x0, y0, x1, y1 = box.corners
  clipped = clip(box.corners, float(width), float(height))
  if not clipped or np.abs(np.subtract(clipped, box.corners)).max() > _TOLERANCE_PX:
    raise _CellError(
      "boxes",
      f"the box of {box.label!r} (x {x0:g} to {x1:g}, y {y0:g} to {y1:g}) lies outside its"
      f" {width} x {height} image, or is next to nothing",
    )
  return clipped


def _read_mask(file: str, root: Path, width: int, height: int) -> np.ndarray:
  """Reads a mask file as bool [height, width]."""
  encoded = folders.read_bytes(root, file)
  try:
    pixels = decode_mask(encoded)
  except UnreadableError as error:
    raise UnreadableError(f"{root / file}: {error}") from error
  except ValueError as error:
    raise _CellError("mask", f"{file} {error}") from None
  if pixels.shape != (height, width):
    raise _CellError(
      "mask",
      f"{file} is {pixels.shape[1]} x {pixels.shape[0]}, its image {width} x {height};"
      " they must have the same size",
    )
  if not pixels.any():
    raise _CellError("mask", f"{file} is empty; leave out a region that is not there")
  return pixels
