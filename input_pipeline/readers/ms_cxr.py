"""Reader of MS-CXR: phrases of MIMIC-CXR's reports with the boxes that radiologists drew for them.

The source is a folder that holds the PhysioNet projects (see `mimic_cxr`):

  ms-cxr/         MS_CXR_Local_Alignment_v*.csv, with the columns dicom_id, category_name,
                  label_text, path, x, y, w, h, image_width, image_height and, from 1.1.0 on, split;
                  or, where there is no CSV, the COCO file MS_CXR_Local_Alignment_v*.json
  mimic-cxr-jpg/  files/p10/p10000032/s50414267/DICOM_ID.jpg

An image is a study; all boxes of one (category_name, label_text) are one region, whose phrase is
label_text and whose label is category_name. The same phrase with two categories makes two regions.
Categories are labels that are present; of others nothing is known. There is no report: the section
"findings" is the image's phrases, and so are its sentences. The view is not known.

Boxes are pixels of the original image (image_width x image_height); where the JPEG has another size,
they are scaled. Splits are MS-CXR's own; 1.0.0 has none, and all images are "test". They are not the
splits of MIMIC-CXR: its reader leaves the patients of MS-CXR out of training.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw import folders, physionet, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source
from input_pipeline.text import reports

_COLUMNS = (
  "dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width",
  "image_height",
)  # fmt: skip
_TABLES = ("MS_CXR_Local_Alignment_v*.csv", "MS_CXR_Local_Alignment_v*.json")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_PATH = re.compile(r"(?:files/)?(p\d\d/p(\d+)/s(\d+)/[^/]+\.jpg)")
_DISTORTION = 0.02  # by how much the JPEG's proportions may differ from the table's


@dataclass(frozen=True)
class Annotation:
  """A row of the table.

  Attributes:
    place: file and row, for errors.
    dicom_id, patient_id, study_id: of the image.
    path: of the image, below "files".
    phrase, category: label_text and category_name.
    box: x, y, w, h; None where the row has none.
    size: width and height of the original image.
    split: "train", "validation", "test"; "" where the table has no splits.
  """

  place: str
  dicom_id: str
  patient_id: str
  study_id: str
  path: str
  phrase: str
  category: str
  box: tuple[float, ...] | None
  size: tuple[float, ...]
  split: str


@dataclass(frozen=True)
class _Image:
  path: str
  study_id: str
  size: tuple[float, ...]
  regions: tuple[tuple[str, str, tuple[tuple[float, ...], ...]], ...]  # phrase, label, corners


def open_source(source: str) -> Source:
  """Lists the images of MS-CXR; no image is touched.

  Args:
    source: the folder that holds ms-cxr and mimic-cxr-jpg.

  Raises SourceError: a table is missing or cannot be right, or its rows contradict each other.
  """
  root = folders.folder(source, "ms-cxr and mimic-cxr-jpg")
  rows = annotations(root)
  images = physionet.find(root, "mimic-cxr-jpg", "files")
  first: dict[str, Annotation] = {}
  regions: dict[str, dict[tuple[str, str], list[tuple[float, ...]]]] = {}
  left_out, repeated = [], 0
  for row in rows:
    before = first.setdefault(row.dicom_id, row)
    if (before.path, before.size, before.split) != (row.path, row.size, row.split):
      raise SourceError(
        f"{before.place} and {row.place}: image {row.dicom_id} has two paths, sizes or splits"
      )
    corners = _corners(row)
    if isinstance(corners, str):
      left_out.append((f"{row.path} ({row.place})", corners))
      continue
    boxes = regions.setdefault(row.dicom_id, {}).setdefault((row.phrase, row.category), [])
    if corners in boxes:
      repeated += 1
    else:
      boxes.append(corners)
  items = []
  for dicom_id, of_image in regions.items():
    row = first[dicom_id]
    boxes = tuple((*names, tuple(corners)) for names, corners in of_image.items())
    image = _Image(row.path, row.study_id, row.size, boxes)
    labels = tuple((label, 1) for label in sorted({label for _, label in of_image}))
    split = row.split or "test"
    items.append(Item(f"files/{row.path}", split, row.patient_id, image, dicom_id, "", labels))
  if not items:
    raise SourceError(f"{root}: MS-CXR's table holds no box that can be used")
  pairs = sum(len(item.row.regions) for item in items)
  notes = [f"{pairs} phrases on {len(items)} images; sentences are the phrases, not the report"]
  if not rows[0].split:
    notes.append("MS-CXR's table has no splits (1.0.0 has none): every image is test")
  if repeated:
    notes.append(f"boxes that stand twice, taken once: {repeated}")
  read = functools.partial(_read, images=images)
  return Source("ms_cxr", items, read, tuple(notes), tuple(left_out))


def annotations(root: Path) -> list[Annotation]:
  """The rows of MS-CXR's table in a folder of PhysioNet projects. Raises SourceError."""
  path = physionet.find(root, "ms-cxr", *_TABLES)
  return list(_from_json(path) if path.suffix == ".json" else _from_csv(path))


def _from_csv(path: Path) -> Iterator[Annotation]:
  for row in tables.read(path, _COLUMNS):
    yield _annotation(
      row.place,
      row.text("dicom_id"),
      row.text("path"),
      (row.text("label_text"), row.text("category_name")),
      row.numbers("x", "y", "w", "h"),
      row.numbers("image_width", "image_height"),
      row.one_of("split", tuple(_SPLITS)) if "split" in row else "",
    )


def _from_json(path: Path) -> Iterator[Annotation]:
  """COCO: the split, where there is one, is the annotation's."""
  number = 0
  try:
    content = json.loads(path.read_bytes())
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    for number, entry in enumerate(content["annotations"]):
      image = images[entry["image_id"]]
      split = entry.get("split", "")
      if split and split not in _SPLITS:
        raise ValueError(f"split is {split!r}, not one of {', '.join(_SPLITS)}")
      box = tuple(map(float, entry["bbox"]))
      if len(box) != 4:
        raise ValueError(f"bbox is {entry['bbox']}, not four numbers")
      yield _annotation(
        f"{path.name} annotation {number}",
        Path(image["path"]).stem,
        image["path"],
        (entry["label_text"], categories[entry["category_id"]]),
        box,
        (float(image["width"]), float(image["height"])),
        split,
      )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise SourceError(
      f"{path}, annotation {number}: not as MS-CXR's COCO file has it"
      f" ({type(error).__name__}: {error})"
    ) from None


def _annotation(place, dicom_id, path, names, box, size, split) -> Annotation:
  match = _PATH.fullmatch(path)
  if not match:
    raise SourceError(
      f"{place}: path is {path!r}; it must be files/p10/p10000032/s50414267/DICOM_ID.jpg"
    )
  phrase, category = (" ".join(name.split()) for name in names)
  patient_id, study_id = match.group(2, 3)
  split = _SPLITS.get(split, "")
  below = match.group(1)
  return Annotation(
    place, dicom_id, patient_id, study_id, below, phrase, category, box, size, split
  )


def _corners(row: Annotation) -> tuple[float, ...] | str:
  """x0, y0, x1, y1 within the original image, or why there are none."""
  if row.box is None or row.size is None:
    return "the row has no box, or no size of the image"
  (x, y, w, h), (width, height) = row.box, row.size
  if not all(map(math.isfinite, (*row.box, *row.size))) or not (w > 0 and h > 0):
    return f"the box of {row.phrase!r} is {w:g} x {h:g} pixels"
  x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
  if x0 >= x1 or y0 >= y1:
    return f"the box of {row.phrase!r} lies outside its {width:g} x {height:g} image"
  return x0, y0, x1, y1


def _read(item: Item, *, images: Path) -> Example:
  """The study of an image. Raises UnreadableError."""
  image = item.row
  encoded = folders.read_bytes(images, image.path)
  width, height = image_size(encoded)
  scale = np.array([width / image.size[0], height / image.size[1]] * 2)
  if abs(scale[0] / scale[1] - 1) > _DISTORTION:
    raise UnreadableError(
      f"the image is {width} x {height}, MS-CXR's boxes are of one of"
      f" {image.size[0]:g} x {image.size[1]:g}: it was cut or distorted"
    )
  regions = tuple(
    Region(phrase, label, np.minimum(np.array(boxes) * scale, [width, height] * 2).astype("f4"))
    for phrase, label, boxes in image.regions
  )
  # Apart by a blank line, which ends a sentence.
  sections = {"findings": "\n\n".join(dict.fromkeys(phrase for phrase, _, _ in image.regions))}
  return Example(
    image=encoded,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=image.study_id,
    patient_id=item.patient_id,
    sections=sections,
    sentences=tuple(reports.report_sentences(sections)),
    labels=dict(item.labels),
    regions=regions,
  )
