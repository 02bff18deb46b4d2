"""Reader of MS-CXR: phrases of MIMIC-CXR's reports with the boxes that radiologists drew for them.

The source is a folder that holds the PhysioNet projects (see `mimic_cxr`):

  ms-cxr/         MS_CXR_Local_Alignment_v*.csv, with the columns dicom_id, category_name,
                  label_text, path, x, y, w, h, image_width, image_height and, from 1.1.0 on, split;
                  or, where there is no CSV, the COCO file MS_CXR_Local_Alignment_v*.json
  mimic-cxr-jpg/  files/p10/p10000032/s50414267/DICOM_ID.jpg

An image is an example; all boxes of one (category_name, label_text) are one region, whose phrase is
label_text and whose label is category_name. The same phrase with two categories makes two regions.
Categories are labels that are present; of others nothing is known. There is no report: the section
"findings" is the image's phrases, and so are its sentences. The view is not known.

Boxes are pixels of the original image (image_width x image_height); where the JPEG has another
size, they are scaled. Splits are MS-CXR's own; 1.0.0 has none, and all images are "test". They are
not the splits of MIMIC-CXR: its reader leaves the patients of MS-CXR out of training.
boxes="single" keeps the phrases of one box alone, as supervised phrase grounding does.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.example import Example, Region, UnreadableError
from input_pipeline.readers.raw import folders, physionet, tables
from input_pipeline.readers.raw.boxes import Corners, clip
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, build_example

BOXES = ("all", "single")
_SIZE = ("image_width", "image_height")
_BOX = ("x", "y", "w", "h")
_COLUMNS = ("dicom_id", "category_name", "label_text", "path", *_BOX, *_SIZE)
_TABLES = ("MS_CXR_Local_Alignment_v*.csv", "MS_CXR_Local_Alignment_v*.json")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_PATH = re.compile(r"(?:files/)?(p\d\d/p(\d+)/s(\d+)/[^/]+\.jpg)")
_DISTORTION = 0.02  # by how much the JPEG's proportions may differ from the table's


@dataclass(frozen=True)
class Annotation:
  """Row of the table; `phrase` is its label_text, `size` that of the original image."""

  place: str  # file and row, for errors
  dicom_id: str
  patient_id: str
  study_id: str
  path: str  # below "files"
  phrase: str
  category: str
  box: tuple[float, ...] | None  # x, y, w, h
  size: tuple[float, ...] | None
  split: str  # "" where the table has no splits


@dataclass(frozen=True)
class _Image:
  path: str
  study_id: str
  size: tuple[float, ...]
  regions: tuple[tuple[str, str, tuple[Corners, ...]], ...]  # phrase, label, corners


def open_source(source: str, *, boxes: str = "all") -> Source:
  """Lists the images of MS-CXR. Raises SourceError, also where two rows contradict.

  Args:
    boxes: "all", or "single", which leaves phrases of several boxes aside.
  """
  root = folders.folder(source, "ms-cxr and mimic-cxr-jpg")
  folders.check_option("boxes", boxes, BOXES)
  rows = annotations(root)
  images = physionet.find(root, "mimic-cxr-jpg", "files")
  listing = Listing()
  first: dict[str, Annotation] = {}
  regions_of: dict[str, dict[tuple[str, str], list[Corners]]] = {}
  for row in rows:
    before = first.setdefault(row.dicom_id, row)
    if (before.path, before.size, before.split) != (row.path, row.size, row.split):
      raise SourceError(
        f"{before.place} and {row.place}: image {row.dicom_id} has two paths, sizes or splits"
      )
    corners = _corners(row)
    if isinstance(corners, str):
      listing.leave_out(f"{row.path} ({row.place})", corners)
      continue
    known = regions_of.setdefault(row.dicom_id, {}).setdefault((row.phrase, row.category), [])
    if corners in known:
      listing.counts["repeated"] += 1
    else:
      known.append(corners)
  if boxes == "single":
    regions_of = _single(regions_of, listing)
  for dicom_id, regions in regions_of.items():
    row = first[dicom_id]
    boxed = tuple((*names, tuple(corners)) for names, corners in regions.items())
    listing.items[dicom_id] = Item(
      key=f"files/{row.path}",
      split=row.split or "test",
      patient_id=row.patient_id,
      row=_Image(row.path, row.study_id, row.size, boxed),
      image_id=dicom_id,
      labels=tuple((label, 1) for label in sorted({label for _, label in regions})),
    )
  if not listing.items:
    raise SourceError(f"{root}: MS-CXR's table holds no box that can be used")
  pairs = sum(map(len, regions_of.values()))
  listing.note(
    f"{pairs} phrases on {len(listing.items)} images; sentences are the phrases, not the report"
  )
  if not rows[0].split:
    listing.note("MS-CXR's table has no splits (1.0.0 has none): every image is test")
  listing.note("boxes that stand twice, taken once: {}", listing.counts["repeated"])
  return listing.source("ms_cxr", functools.partial(_read, images=images))


def _single(
  regions_of: dict[str, dict[tuple[str, str], list[Corners]]], listing: Listing
) -> dict[str, dict[tuple[str, str], list[Corners]]]:
  """Keeps the phrases of one box, also over several categories, and the images that have such."""
  kept, aside = {}, 0
  for dicom_id, regions in regions_of.items():
    counts = Counter(phrase for (phrase, _), corners in regions.items() for _ in corners)
    single = {names: each for names, each in regions.items() if counts[names[0]] == 1}
    aside += len({phrase for phrase, count in counts.items() if count > 1})
    if single:
      kept[dicom_id] = single
  listing.note("phrases of several boxes left aside: {}", aside)
  return kept


def annotations(root: Path) -> list[Annotation]:
  """Reads MS-CXR's table in a folder of PhysioNet projects. Raises SourceError."""
  path = physionet.find(root, "ms-cxr", *_TABLES)
  return list(_from_json(path) if path.suffix == ".json" else _from_csv(path))


def _from_csv(path: Path) -> Iterator[Annotation]:
  for row in tables.read(path, _COLUMNS):
    yield _annotation(
      row.place,
      dicom_id=row.text("dicom_id"),
      path=row.text("path"),
      names=(row.text("label_text"), row.text("category_name")),
      box=row.numbers(*_BOX),
      size=row.numbers(*_SIZE),
      split=row.one_of("split", tuple(_SPLITS)) if "split" in row else "",
    )


def _from_json(path: Path) -> Iterator[Annotation]:
  """Reads a COCO file: the split, where there is one, is the annotation's."""
  number = 0
  try:
    content = tables.read_json(path)
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
        dicom_id=Path(image["path"]).stem,
        path=image["path"],
        names=(entry["label_text"], categories[entry["category_id"]]),
        box=box,
        size=(float(image["width"]), float(image["height"])),
        split=split,
      )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise SourceError(
      f"{path}, annotation {number}: not as MS-CXR's COCO file has it"
      f" ({type(error).__name__}: {error})"
    ) from None


def _annotation(place: str, *, path: str, names: Iterable[str], split: str, **fields) -> Annotation:
  match = _PATH.fullmatch(path)
  if not match:
    raise SourceError(
      f"{place}: path is {path!r}; it must be files/p10/p10000032/s50414267/DICOM_ID.jpg"
    )
  fields |= zip(("path", "patient_id", "study_id"), match.groups(), strict=True)
  phrase, category = (" ".join(name.split()) for name in names)
  split = _SPLITS.get(split, "")
  return Annotation(place=place, phrase=phrase, category=category, split=split, **fields)


def _corners(row: Annotation) -> Corners | str:
  """Returns the box's corners within the original image, or the reason why there are none."""
  if row.box is None or row.size is None:
    return "the row has no box, or no size of the image"
  (x, y, w, h), (width, height) = row.box, row.size
  if not all(map(math.isfinite, (*row.box, *row.size))) or not (w > 0 and h > 0):
    return f"the box of {row.phrase!r} is {w:g} x {h:g} pixels"
  clipped = clip((x, y, x + w, y + h), width, height)
  return clipped or f"the box of {row.phrase!r} lies outside its {width:g} x {height:g} image"


def _read(item: Item, *, images: Path) -> Example:
  row = item.row
  # A blank line between phrases ends a sentence.
  sections = {"findings": "\n\n".join(dict.fromkeys(phrase for phrase, _, _ in row.regions))}
  return build_example(
    item,
    folders.read_bytes(images, row.path),
    study_id=row.study_id,
    sections=sections,
    regions=functools.partial(_regions, row),
  )


def _regions(row: _Image, width: int, height: int) -> tuple[Region, ...]:
  """Scales the boxes to the JPEG. Raises UnreadableError where its proportions differ."""
  scale = np.array([width / row.size[0], height / row.size[1]] * 2)
  if abs(scale[0] / scale[1] - 1) > _DISTORTION:
    raise UnreadableError(
      f"the image is {width} x {height}, MS-CXR's boxes are of one of"
      f" {row.size[0]:g} x {row.size[1]:g}: it was cut or distorted"
    )
  size = [width, height] * 2
  return tuple(
    Region(phrase, label, np.minimum(np.array(boxes) * scale, size).astype("f4"))
    for phrase, label, boxes in row.regions
  )
