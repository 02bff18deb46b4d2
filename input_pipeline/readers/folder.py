"""Reader of any folder with a `manifest.csv`: one row an image.

Columns (UTF-8, first row names them; further columns are left aside):

  image        path of the image, relative to the folder
  text         the report, or empty
  text_kind    "report" (default), "labels" (a sentence made from labels) or "none" (text is empty)
  split        train, validation or test; without the column, 80/10/10 by a hash of patient_id
  patient_id   without the column, every image is a patient of its own
  study_id     without the column, every image is a study of its own
  image_id     unique; without the column, the image's path without its suffix
  view         "PA", "AP", ...
  labels       names with "|" between: "effusion" is present, "effusion=0" absent, "effusion=-1"
               uncertain
  boxes        JSON list of {"label", "x", "y", "w", "h"} in pixels of the image, and optionally
               "phrase" (default: the label); boxes of one phrase are one region
  mask         path of a lung-field mask, or a JSON list of {"label", "file"}, optionally with
               "phrase"; a mask has its image's size and is non-zero inside
"""

import csv
import functools
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.example import SPLITS, Example, Region, UnreadableError
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size, open_image
from input_pipeline.readers.source import Item, Source, draw_split
from input_pipeline.text import reports

MANIFEST = "manifest.csv"
_REQUIRED = ("image", "text")
_OPTIONAL = (
  "text_kind", "split", "patient_id", "study_id", "image_id", "view", "labels", "boxes", "mask",
)  # fmt: skip
_IDS = ("patient_id", "study_id", "image_id")
_TEXT_KINDS = ("report", "labels", "none")
_TOLERANCE_PX = 1.0  # by how much a rounded box may stick out of its image; it is clipped
_CELL_CHARACTERS = 1 << 24  # the csv module stops at 131,072, which a long list of boxes exceeds


@dataclass(frozen=True)
class _Box:
  phrase: str
  label: str
  corners: tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class _Mask:
  phrase: str
  label: str
  file: str


@dataclass(frozen=True)
class _Row:
  """A checked row of the manifest."""

  number: int  # as a spreadsheet counts: the column names are row 1
  image: str
  image_id: str
  study_id: str
  view: str
  text: str
  text_kind: str
  labels: tuple[tuple[str, int], ...]
  boxes: tuple[_Box, ...]
  masks: tuple[_Mask, ...]


class _CellError(Exception):
  """A cell says something it must not; `_rows` adds file and row."""

  def __init__(self, column: str, problem: str):
    super().__init__(f"column {column!r}: {problem}")


def open_source(source: str) -> Source:
  """Reads and checks the whole manifest; no image is touched.

  Args:
    source: the folder.

  Raises:
    SourceError: the folder or its manifest is missing, or a cell cannot be right; the message names
      file, row and column.
  """
  folder = Path(source)
  if not source:
    raise SourceError("the folder reader needs a source: the folder that holds manifest.csv")
  if not folder.is_dir():
    raise SourceError(
      f"{folder}: there is no such folder; name the raw folder (--source, config.data.source)"
    )
  manifest = folder / MANIFEST
  columns, cells = _read_manifest(manifest)
  items, first_row = [], {}
  for number, values in cells:
    try:
      row, split, patient_id = _parse(number, values)
      if row.image_id in first_row:
        raise _CellError(
          "image_id" if "image_id" in values else "image",
          f"the image id {row.image_id!r} is taken by row {first_row[row.image_id]}",
        )
    except _CellError as error:
      raise SourceError(f"{manifest}, row {number}, {error}") from None
    first_row[row.image_id] = number
    key = f"{row.image} ({MANIFEST} row {number})"
    items.append(Item(key, split, patient_id, row, row.image_id, row.view, row.labels))
  if not items:
    raise SourceError(f"{manifest}: there is no row below the column names")
  return Source("folder", items, functools.partial(_read, folder=folder), _notes(columns, items))


def _read_manifest(manifest: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
  """The column names and, for every row that is not blank, its number and cells."""
  csv.field_size_limit(_CELL_CHARACTERS)
  try:
    with open(manifest, encoding="utf-8-sig", newline="") as file:
      rows = list(csv.reader(file, strict=True))
  except FileNotFoundError:
    raise SourceError(
      f"{manifest}: there is no manifest; it needs the columns {', '.join(_REQUIRED)}"
    ) from None
  except UnicodeDecodeError as error:
    raise SourceError(f"{manifest}: not UTF-8 ({error}); save it as UTF-8") from None
  except csv.Error as error:
    raise SourceError(
      f"{manifest}: not a CSV file with commas and double quotes ({error})"
    ) from None
  columns = [name.strip() for name in rows[0]] if rows else []
  missing = [name for name in _REQUIRED if name not in columns]
  if missing:
    raise SourceError(
      f"{manifest}: no column {', '.join(map(repr, missing))};"
      f" the first row names {', '.join(map(repr, columns)) or 'nothing'}"
    )
  twice = [name for name, count in Counter(columns).items() if count > 1]
  if twice:
    raise SourceError(f"{manifest}: the first row names {', '.join(map(repr, twice))} twice")
  cells = []
  for number, values in enumerate(rows[1:], start=2):
    if not any(values):
      continue
    if len(values) != len(columns):
      raise SourceError(
        f"{manifest}, row {number}: {len(values)} cells for {len(columns)} columns; a text that"
        " holds a comma needs double quotes"
      )
    cells.append((number, dict(zip(columns, (value.strip() for value in values), strict=True))))
  return columns, cells


def _parse(number: int, values: dict[str, str]) -> tuple[_Row, str, str]:
  """Row, split and patient id of one line. Raises _CellError."""
  image = values["image"]
  if not image:
    raise _CellError("image", "is empty")
  for name in _IDS:
    if values.get(name) == "":
      raise _CellError(name, "is empty; fill it in every row, or leave the column out")
  image_id = values.get("image_id") or Path(image).with_suffix("").as_posix()
  patient_id = values.get("patient_id") or image_id
  split = _one_of("split", values["split"], SPLITS) if "split" in values else draw_split(patient_id)
  text_kind = _one_of("text_kind", values.get("text_kind") or "report", _TEXT_KINDS)
  if text_kind == "none" and values["text"]:
    raise _CellError("text", "must be empty where text_kind is 'none'")
  row = _Row(
    number=number,
    image=image,
    image_id=image_id,
    study_id=values.get("study_id") or f"{patient_id}/{image_id}",
    view=values.get("view", ""),
    text=values["text"],
    text_kind="labels" if text_kind == "labels" else "report",
    labels=_parse_labels(values.get("labels", "")),
    boxes=_parse_boxes(values.get("boxes", "")),
    masks=_parse_masks(values.get("mask", "")),
  )
  label_of = {}
  for column, part in [("boxes", b) for b in row.boxes] + [("mask", m) for m in row.masks]:
    if label_of.setdefault(part.phrase, part.label) != part.label:
      raise _CellError(
        column,
        f"the phrase {part.phrase!r} is one region, but has the labels"
        f" {label_of[part.phrase]!r} and {part.label!r}",
      )
  return row, split, patient_id


def _one_of(column: str, value: str, allowed: tuple[str, ...]) -> str:
  if value not in allowed:
    raise _CellError(column, f"is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
  return value


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
  """A JSON list of objects whose `text_keys` are texts that are not empty."""
  try:
    entries = json.loads(cell)
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
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
      raise _CellError("boxes", f"box {i}: x, y, w and h must be numbers: {json.dumps(entry)}")
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


def _notes(columns: list[str], items: list[Item]) -> tuple[str, ...]:
  notes = []
  extra = [name for name in columns if name not in _REQUIRED + _OPTIONAL]
  if extra:
    notes.append(f"columns left aside: {', '.join(extra)}")
  if "patient_id" not in columns:
    notes.append("no column patient_id: every image counts as a patient of its own")
  if "split" not in columns:
    counts = Counter(item.split for item in items)
    drawn = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    notes.append(f"no column split: drawn by patient_id ({drawn})")
  without = sum(not item.row.text for item in items)
  if without:
    notes.append(f"rows without text: {without} of {len(items)}")
  return tuple(notes)


def _read(item: Item, *, folder: Path) -> Example:
  """The study of a row. Raises UnreadableError; SourceError for boxes and masks that do not fit."""
  row = item.row
  image = _bytes(folder, row.image)
  width, height = image_size(image)
  sections = reports.sections(row.text)
  try:
    regions = _regions(row, folder, width, height)
  except _CellError as error:
    raise SourceError(f"{folder / MANIFEST}, row {row.number} ({row.image}), {error}") from None
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=row.image_id,
    study_id=row.study_id,
    patient_id=item.patient_id,
    view=row.view,
    sections=sections,
    sentences=tuple(reports.report_sentences(sections)),
    labels=dict(row.labels),
    regions=regions,
    text_kind=row.text_kind,
  )


def _bytes(folder: Path, file: str) -> bytes:
  try:
    return (folder / file).read_bytes()
  except OSError as error:
    raise UnreadableError(f"{folder / file}: {error.strerror or error}") from None


def _regions(row: _Row, folder: Path, width: int, height: int) -> tuple[Region, ...]:
  """Boxes and masks, united by phrase, in the order of their first mention."""
  parts: dict[str, tuple[str, list, list]] = {}
  for box in row.boxes:
    parts.setdefault(box.phrase, (box.label, [], []))[1].append(_inside(box, width, height))
  for mask in row.masks:
    pixels = _mask_pixels(mask.file, folder, width, height)
    parts.setdefault(mask.phrase, (mask.label, [], []))[2].append(pixels)
  return tuple(
    Region(
      phrase,
      label,
      np.array(boxes, np.float32).reshape(-1, 4),
      _png(np.logical_or.reduce(masks)) if masks else b"",
    )
    for phrase, (label, boxes, masks) in parts.items()
  )


def _inside(box: _Box, width: int, height: int) -> tuple[float, float, float, float]:
  x0, y0, x1, y1 = box.corners
  clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
  shift = max(abs(a - b) for a, b in zip(clipped, box.corners, strict=True))
  if shift > _TOLERANCE_PX or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
    raise _CellError(
      "boxes",
      f"the box of {box.label!r} (x {x0:g} to {x1:g}, y {y0:g} to {y1:g}) lies outside its"
      f" {width} x {height} image",
    )
  return clipped


def _mask_pixels(file: str, folder: Path, width: int, height: int) -> np.ndarray:
  """A mask file as bool [height, width]."""
  encoded = _bytes(folder, file)
  try:
    with open_image(encoded) as image:
      lossy, pixels = image.format == "JPEG", np.asarray(image)
      has_alpha = image.mode in ("LA", "RGBA")
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"{folder / file}: not a readable mask ({error})") from error
  if lossy:
    raise _CellError("mask", f"{file} is a JPEG, which blurs outlines; save it as PNG")
  if pixels.ndim == 3:
    pixels = (pixels[:, :, :-1] if has_alpha else pixels).any(axis=2)
  if pixels.shape != (height, width):
    raise _CellError(
      "mask",
      f"{file} is {pixels.shape[1]} x {pixels.shape[0]}, its image {width} x {height};"
      " they must have the same size",
    )
  if not pixels.any():
    raise _CellError("mask", f"{file} is empty; leave out a region that is not there")
  return pixels != 0


def _png(mask: np.ndarray) -> bytes:
  return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()
