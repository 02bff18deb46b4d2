"""Reader of CheXpert (Irvin et al. 2019), version 1.0, full size or -small.

The source is the folder that holds the tables, or its parent:

  train.csv            -> train: 14 labels an image, mined from its report (CheXpert labeler)
  valid.csv            -> validation: 234 images, labelled by radiologists
  test.csv             -> test: 668 images, labelled by radiologists; CheXlocalize calls the last two
                          val_labels.csv and test_labels.csv
  train/patient00001/study1/view1_frontal.jpg, valid/..., test/... (CheXlocalize: val/)
  df_chexpert_plus_240401.csv   reports of the same images (CheXpert Plus), optional

A table that is not there leaves its split empty; one must be there. The full-size training images
may stay in the archives' folders ("CheXpert-v1.0 batch 2 (train 1)", ...) beside the tables' one.

Column Path, by its end, names file, patient, study and view; AP/PA (where there) the projection;
the 14 label columns hold 1.0, 0.0, -1.0 (uncertain) or nothing (not mentioned: unknown). Findings
and impression of CheXpert Plus, else a column "Report Impression", become the text; without
either, images have none. Left aside: Sex, Age, and the other columns of CheXpert Plus.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline.example import SPLITS, Example
from input_pipeline.readers.raw import folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source
from input_pipeline.text import reports

LABELS = (
  "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
  "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
  "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
VIEWS = ("frontal", "all")
_TABLES = {
  "train": ("train.csv",),
  "validation": ("valid.csv", "val_labels.csv"),
  "test": ("test.csv", "test_labels.csv"),
}
_FOLDERS = (
  "", "CheXpert-v1.0/", "CheXpert-v1.0-small/", "CheXpert/",
  "CheXpert-v1.0 batch 1 (validate & csv)/",
)  # fmt: skip
_BATCHES = "CheXpert-v1.0 batch * (train *)"
_PLUS = "df_chexpert_plus_*.csv"
_EXAMPLE = re.compile(r"(?:train|valid|val|test)/(patient\d+)/(study\d+)/")
_IMAGE = re.compile(rf"(?:^|/)({_EXAMPLE.pattern}view\d+_(frontal|lateral))(\.\w+)$")

_Sections = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Row:
  """A row: the image's path, from "train/", "valid/" or "test/" on, and what its report says."""

  file: str
  study_id: str
  sections: _Sections


def open_source(source: str, *, views: str = "frontal") -> Source:
  """Lists the images.

  Args:
    source: the folder of the tables, or its parent.
    views: "frontal", as the field trains and tests, or "all", laterals too.

  Raises SourceError: no table, a column missing, a cell that cannot be right, one image twice with
  different rows.
  """
  root = folders.folder(source, "CheXpert's train.csv, valid.csv or test.csv")
  if views not in VIEWS:
    raise SourceError(f"views is {views!r}; it must be one of {', '.join(VIEWS)}")
  home, found = _find(root)
  said = _plus_reports(root, home)
  items: dict[str, Item] = {}
  read, twice = 0, 0
  labels_of = _label_parser()
  for split, table in found.items():
    for row in tables.read(table, ("Path", *LABELS)):
      read += 1
      item, view = _item(row, split, labels_of, said)
      if view == "lateral" and views == "frontal":
        continue
      first = items.setdefault(item.image_id, item)
      if first is not item:
        if replace(item, key=first.key) != first:
          raise SourceError(f"{table}: {item.key} contradicts {first.key}; remove one of the rows")
        twice += 1
  images = list(items.values())
  notes = [f"no {' or '.join(_TABLES[s])}: no {s} images" for s in SPLITS if s not in found]
  if aside := read - twice - len(images):
    notes.append(f"lateral views left aside: {aside} of {read}")
  if twice:
    notes.append(f"rows that say the same as an earlier one, dropped: {twice}")
  if without := sum(not item.row.sections for item in images):
    notes.append(f"images without a report: {without} of {len(images)}")
  batches = tuple(path.name for path in sorted(root.glob(_BATCHES)))
  example = functools.partial(_read, root=root, home=home, batches=batches)
  return Source("chexpert", images, example, tuple(notes))


def _find(root: Path) -> tuple[str, dict[str, Path]]:
  """The tables' folder, relative to the root, and split -> table."""
  found: dict[str, dict[str, Path]] = {}
  for folder in _FOLDERS:
    for split, names in _TABLES.items():
      there = [root / folder / name for name in names if (root / folder / name).is_file()]
      if len(there) > 1:
        raise SourceError(f"{root / folder}: {' and '.join(names)} are both there; keep one")
      if there:
        found.setdefault(folder, {})[split] = there[0]
  if len(found) != 1:
    where = " and ".join(folder or "." for folder in found)
    problem = f"has tables in {where}; name one of them" if found else "there is no table"
    raise SourceError(
      f"{root}: {problem}; the source is the folder of CheXpert's train.csv, valid.csv or test.csv,"
      " or its parent"
    )
  return next(iter(found.items()))


def _label_parser() -> Callable[[tables.Row], tuple[tuple[str, int], ...]]:
  """Reads a row's labels; rows that say the same share one tuple, and are parsed once."""
  known: dict[tuple[str, ...], tuple[tuple[str, int], ...]] = {}

  def labels(row: tables.Row) -> tuple[tuple[str, int], ...]:
    cells = tuple(row[name] for name in LABELS)
    if cells not in known:
      values = [(name, row.label(name)) for name in LABELS]
      known[cells] = tuple((name, value) for name, value in values if value is not None)
    return known[cells]

  return labels


def _item(
  row: tables.Row, split: str, labels_of: Callable, said: dict[str, _Sections]
) -> tuple[Item, str]:
  """The item of a row, and whether it is a "frontal" or a "lateral" one."""
  match = _IMAGE.search(row["Path"])
  if not match:
    raise row.wrong("Path", "a path that ends like train/patient00001/study1/view1_frontal.jpg")
  image_id, patient, example, view, suffix = match.groups()
  study_id = f"{patient}/{example}"
  impression = row.get("Report Impression", "")
  sections = said.get(study_id, ())
  if not sections and not tables.is_blank(impression):
    sections = (("impression", impression),)
  projection = "LATERAL" if view == "lateral" else row.get("AP/PA", "")
  item = Item(
    f"{image_id}{suffix} ({row.place})", split, patient,
    _Row(image_id + suffix, study_id, sections), image_id, projection, labels_of(row),
  )  # fmt: skip
  return item, view


def _plus_reports(root: Path, home: str) -> dict[str, _Sections]:
  """Study id -> findings and impression, where CheXpert Plus lies beside the tables or above."""
  there = sorted({*root.glob(_PLUS), *(root / home).glob(_PLUS)})
  said: dict[str, _Sections] = {}
  columns = ("path_to_image", "section_findings", "section_impression")
  for row in tables.read(folders.find(there[0].parent, _PLUS), columns) if there else ():
    match = _EXAMPLE.search(row["path_to_image"])
    if not match:
      raise row.wrong("path_to_image", "a path like train/patient00001/study1/view1_frontal.jpg")
    parts = {"findings": row["section_findings"], "impression": row["section_impression"]}
    sections = tuple((name, text) for name, text in parts.items() if not tables.is_blank(text))
    if sections:  # the images of a study share its report
      said.setdefault("/".join(match.groups()), sections)
  return said


def _read(item: Item, *, root: Path, home: str, batches: tuple[str, ...]) -> Example:
  row = item.row
  folder, below = row.file.split("/", 1)
  places = [home + row.file]
  if folder == "train":
    places += [f"{batch}/{below}" for batch in batches]
  image = folders.read_bytes(root, next((p for p in places if (root / p).exists()), places[0]))
  width, height = image_size(image)
  sections = dict(row.sections)
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=row.study_id,
    patient_id=item.patient_id,
    view=item.view,
    sections=sections,
    sentences=tuple(reports.report_sentences(sections)),
    labels=dict(item.labels),
  )
