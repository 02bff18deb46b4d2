"""Reader of CheXpert (Irvin et al. 2019), version 1.0, full size or -small.

The source is the folder that holds the tables, or its parent:

  train.csv            -> train: 14 labels an image, mined from its report (CheXpert labeler)
  valid.csv            -> validation: 234 images, labelled by radiologists
  test.csv             -> test: 668 images, labelled by radiologists; CheXlocalize calls the last
                          two val_labels.csv and test_labels.csv
  train/patient00001/study1/view1_frontal.jpg, valid/..., test/... (CheXlocalize: val/)
  df_chexpert_plus_240401.csv   reports of the same images (CheXpert Plus), optional; beside the
                                tables or in the folder above them

A table that is not there leaves its split empty; one must be there. The full-size training images
may stay in the archives' folders ("CheXpert-v1.0 batch 2 (train 1)", ...) beside the tables' one.

Column Path, by its end, names file, patient, study and view; AP/PA (where there) the projection;
the 14 label columns hold 1.0, 0.0, -1.0 (uncertain) or nothing (not mentioned: unknown). Findings
and impression of CheXpert Plus, else a column "Report Impression", become the text; without
either, images have none. Left aside: Sex, Age, and the other columns of CheXpert Plus.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.example import SPLITS, Example
from input_pipeline.readers.raw import folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, build_example
from input_pipeline.text import reports

LABELS = (
  "No Finding",
  "Enlarged Cardiomediastinum",
  "Cardiomegaly",
  "Lung Opacity",
  "Lung Lesion",
  "Edema",
  "Consolidation",
  "Pneumonia",
  "Atelectasis",
  "Pneumothorax",
  "Pleural Effusion",
  "Pleural Other",
  "Fracture",
  "Support Devices",
)
VIEWS = ("frontal", "all")
_TABLES = {
  "train": ("train.csv",),
  "validation": ("valid.csv", "val_labels.csv"),
  "test": ("test.csv", "test_labels.csv"),
}
_FOLDERS = (
  "",
  "CheXpert-v1.0/",
  "CheXpert-v1.0-small/",
  "CheXpert/",
  "CheXpert-v1.0 batch 1 (validate & csv)/",
)
_BATCHES = "CheXpert-v1.0 batch * (train *)"
_PLUS = "df_chexpert_plus_*.csv"
_STUDY = re.compile(r"(?:train|valid|val|test)/(patient\d+)/(study\d+)/")
_IMAGE = re.compile(rf"(?:^|/)({_STUDY.pattern}view\d+_(frontal|lateral))(\.\w+)$")

_Sections = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Row:
  """Path of an image, from "train/", "valid/" or "test/" on, its study, its report's sections."""

  file: str
  study_id: str
  sections: _Sections


def open_source(source: str, *, views: str = "frontal") -> Source:
  """Lists the images. Raises SourceError, also where two rows of an image contradict.

  Args:
    views: "frontal", as the field trains and tests, or "all", laterals too.
  """
  root = folders.folder(source, "CheXpert's train.csv, valid.csv or test.csv")
  folders.check_option("views", views, VIEWS)
  home, table_of = _find_tables(root)
  listing = Listing()
  sections_of = _plus_reports(root / home, listing)
  known_labels: dict[tuple, tuple] = {}
  for split, table in table_of.items():
    for row in tables.read(table, ("Path", *LABELS)):
      listing.counts["rows"] += 1
      labels = row.labels(LABELS)
      item = _parse(row, split, known_labels.setdefault(labels, labels), sections_of)
      if views == "frontal" and item.image_id.endswith("_lateral"):
        listing.counts["lateral"] += 1
      else:
        listing.add(item.image_id, item)
  for split in SPLITS:
    if split not in table_of:
      listing.note(f"no {' or '.join(_TABLES[split])}: no {split} images")
  counts, items = listing.counts, listing.items.values()
  listing.note("lateral views left aside: {} of {}", counts["lateral"], counts["rows"])
  listing.note_repeated()
  without = sum(not item.row.sections for item in items)
  listing.note("images without a report: {} of {}", without, len(items))
  batches = tuple(path.name for path in sorted(root.glob(_BATCHES)))
  return listing.source("chexpert", functools.partial(_read, root=root, home=home, batches=batches))


def _find_tables(root: Path) -> tuple[str, dict[str, Path]]:
  """Finds the tables' folder, relative to the root, and the table of each split."""
  tables_of: dict[str, dict[str, Path]] = {}
  for folder in _FOLDERS:
    for split, names in _TABLES.items():
      paths = [root / folder / name for name in names if (root / folder / name).is_file()]
      if len(paths) > 1:
        raise SourceError(f"{root / folder}: {' and '.join(names)} are both there; keep one")
      if paths:
        tables_of.setdefault(folder, {})[split] = paths[0]
  if len(tables_of) != 1:
    where = " and ".join(folder or "." for folder in tables_of)
    problem = f"has tables in {where}; name one of them" if tables_of else "there is no table"
    raise SourceError(
      f"{root}: {problem}; the source is the folder of CheXpert's train.csv, valid.csv or test.csv,"
      " or its parent"
    )
  return next(iter(tables_of.items()))


def _parse(
  row: tables.Row,
  split: str,
  labels: tuple[tuple[str, int], ...],
  sections_of: dict[str, _Sections],
) -> Item:
  """Makes the item of a row."""
  match = _IMAGE.search(row["Path"])
  if not match:
    raise row.wrong("Path", "a path that ends like train/patient00001/study1/view1_frontal.jpg")
  image_id, patient, study, view, suffix = match.groups()
  study_id = f"{patient}/{study}"
  impression = row.get("Report Impression", "")
  sections = sections_of.get(study_id, ())
  if not sections and not tables.is_blank(impression):
    sections = tuple(reports.named_sections([("impression", impression)]).items())
  return Item(
    key=f"{image_id}{suffix} ({row.place})",
    split=split,
    patient_id=patient,
    row=_Row(image_id + suffix, study_id, sections),
    image_id=image_id,
    view="LATERAL" if view == "lateral" else row.get("AP/PA", ""),
    labels=labels,
  )


def _plus_reports(home: Path, listing: Listing) -> dict[str, _Sections]:
  """Reads findings and impression by study, where CheXpert Plus lies beside the tables or above."""
  home = home.resolve()
  paths = [path for folder in (home, home.parent) for path in sorted(folder.glob(_PLUS))]
  if len(paths) > 1:
    raise SourceError(f"{paths[0]} and {paths[1]} are both there; keep one")
  sections_of: dict[str, _Sections] = {}
  columns = ("path_to_image", "section_findings", "section_impression")
  for row in tables.read(paths[0], columns) if paths else ():
    match = _STUDY.search(row["path_to_image"])
    if not match:
      raise row.wrong("path_to_image", "a path like train/patient00001/study1/view1_frontal.jpg")
    parts = {"findings": row["section_findings"], "impression": row["section_impression"]}
    texts = [(name, text) for name, text in parts.items() if not tables.is_blank(text)]
    sections = tuple(reports.named_sections(texts).items())
    if sections:  # the images of a study share its report
      first = sections_of.setdefault("/".join(match.groups()), sections)
      listing.counts["another report"] += first != sections
  listing.note(
    "rows of CheXpert Plus with another report than an earlier row of the study, left aside: {}",
    listing.counts["another report"],
  )
  return sections_of


def _read(item: Item, *, root: Path, home: str, batches: tuple[str, ...]) -> Example:
  row = item.row
  files = [home + row.file]
  if row.file.startswith("train/"):
    files += [f"{batch}/{row.file.removeprefix('train/')}" for batch in batches]
  image = folders.read_bytes(root, *files)
  return build_example(item, image, study_id=row.study_id, sections=dict(row.sections))
