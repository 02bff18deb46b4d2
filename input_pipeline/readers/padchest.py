"""Reader of PadChest (Bustos et al. 2020): images, and the findings that their reports name.

The folder holds

  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv   or .csv.gz: a row an image, of which
                ImageID, PatientID, Projection, Labels and MethodLabel are taken
  0/, 1/, ...   the images (PNG of 16 bits), in any folder below

Labels is a list of names, "['cardiomegaly', 'pleural effusion']"; MethodLabel says whether a
"Physician" named them or a network, "RNN_model". The findings are all names but "normal" that any
image here has, without case and outer blanks; one that an image does not name is absent (0). Rows
without labels are left aside. The reports are in Spanish, and left aside, as are the terms of
place, UMLS codes, and all about the patient.

There is no official split: 80/10/10 is drawn by PatientID. Images are windowed as PadChest-GR's.
"""

import functools
import re
from dataclasses import replace
from pathlib import Path

from input_pipeline.example import Example
from input_pipeline.readers import padchest_gr
from input_pipeline.readers.raw import folders, tables
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_split

LABELS = ("physician", "all")
_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_*.csv"
_COLUMNS = ("ImageID", "PatientID", "Projection", "Labels", "MethodLabel")
_METHODS = ("Physician", "RNN_model")
_NORMAL = "normal"
_NAME = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_LIST = re.compile(rf"\[\s*(?:(?:{_NAME.pattern})\s*,?\s*)*\]")


def open_source(source: str, *, labels: str = "physician") -> Source:
  """Lists the images. Raises SourceError, also where two rows of an image contradict.

  Args:
    labels: "physician", images whose labels a physician gave, or "all".
  """
  root = folders.folder(source, "PadChest's table of labels and its images")
  folders.check_option("labels", labels, LABELS)
  table = folders.find(root, _TABLE, f"{_TABLE}.gz", hint="it comes with the images")
  files = folders.file_names(root, ".png")
  listing = Listing()
  names_of: dict[str, frozenset[str]] = {}
  for row in tables.read(table, _COLUMNS):
    name, patient = row.text("ImageID"), row.text("PatientID")
    if labels == "physician" and row.one_of("MethodLabel", _METHODS) != "Physician":
      listing.counts["by a network"] += 1
      continue
    if tables.is_blank(row["Labels"]):
      listing.counts["without labels"] += 1
      continue
    item = Item(
      key=f"{name} ({row.place})",
      split=draw_split(patient),
      patient_id=patient,
      row=(files.get(name, name), row["Labels"]),
      image_id=Path(name).stem,
      view=row["Projection"],
    )
    names = _names(row)
    if listing.add(name, item):
      names_of[name] = names
  findings = sorted(frozenset().union(*names_of.values()) - {_NORMAL})
  known: dict[frozenset[str], tuple[tuple[str, int], ...]] = {}
  for name, names in names_of.items():
    if names not in known:
      known[names] = tuple((finding, int(finding in names)) for finding in findings)
    listing.items[name] = replace(listing.items[name], labels=known[names])
  listing.note_split("no official split: drawn by PatientID")
  listing.note_repeated()
  listing.note("images labelled by a network, left aside: {}", listing.counts["by a network"])
  listing.note("images without labels, left aside: {}", listing.counts["without labels"])
  return listing.source("padchest", functools.partial(_read, root=root))


def _names(row: tables.Row) -> frozenset[str]:
  """Parses the names of a row. Raises SourceError where they are no list."""
  if not _LIST.fullmatch(row["Labels"]):
    raise row.wrong("Labels", "a list of names in quotes, as ['cardiomegaly', 'edema']")
  names = ("".join(groups).strip().lower() for groups in _NAME.findall(row["Labels"]))
  return frozenset(filter(None, names))


def _read(item: Item, *, root: Path) -> Example:
  file, _ = item.row
  return build_example(item, padchest_gr.windowed(folders.read_bytes(root, file)))
