"""Single radiologists who read CheXpert's test set, in the labels that its authors released.

https://github.com/rajpurkarlab/cheXpert-test-set-labels holds

  groundtruth.csv                      a row a study: the majority of five radiologists
  radiologists/groundtruth/*_gt.csv    each of these five
  radiologists/benchmark_radiologists/bc4.csv, bc6.csv, bc8.csv   three others, to compare with

Every table has Study ("CheXpert-v1.0/test/patient64741/study1") and the 14 labels, 0 or 1, in
columns of its own order. Only the last three are read: the other five make the truth.
"""

import re
from pathlib import Path

from input_pipeline.readers.chexpert import LABELS
from input_pipeline.readers.raw import tables
from input_pipeline.readers.raw.folders import SourceError

FOLDER = "radiologists/benchmark_radiologists"
_STUDY = re.compile(r"(?:^|/)test/(patient\d+/study\d+)/?$")

Readings = dict[str, dict[str, int]]  # study_id of the examples -> finding -> 1 or 0


def find(folder: Path) -> Path | None:
  """Finds the tables of radiologists in a folder that the release's `radiologists` lies in."""
  path = folder / FOLDER
  return path if path.is_dir() else None


def read(folder: Path) -> dict[str, Readings]:
  """Reads the readings of each radiologist, by the table's file name, in their order.

  Raises SourceError where there is no table, or a study or label is not as it must be.
  """
  paths = sorted(folder.glob("[!.]*.csv"))
  if not paths:
    raise SourceError(f"{folder}: there is no table of a radiologist, such as bc4.csv")
  return {path.name: _read(path) for path in paths}


def _read(path: Path) -> Readings:
  readings: Readings = {}
  for row in tables.read(path, ("Study", *LABELS)):
    match = _STUDY.search(row["Study"])
    if not match:
      raise row.wrong("Study", "a path that ends like test/patient64741/study1")
    if match[1] in readings:
      raise row.wrong("Study", "in one row only")
    labels = {name: row.label(name) for name in LABELS}
    if wrong := [name for name, value in labels.items() if value not in (0, 1)]:
      raise row.wrong(wrong[0], "0 or 1")
    readings[match[1]] = labels
  return readings
