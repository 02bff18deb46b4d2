"""Reader of PadChest-GR (Castro et al. 2024): reports in single sentences, boxed where positive.

The folder holds

  grounded_reports_20240819.json   a study each: StudyID, ImageID, and findings with sentence_en,
                       sentence_es, abnormal, labels, boxes [[x1, y1, x2, y2], ...] in 0 to 1
  master_table.csv     or master_table.csv.zip: a row a sentence and label, of which StudyID,
                       ImageID, PatientID, split, sentence_en and label_group are taken
  Padchest_GR_files/   the images (PNG of 16 bits) in it or below; without that folder, anywhere

Every finding is a sentence of the text, which is not split further. Its boxes are a region, with
the sentence as the phrase and, as label, the table's label_group, else its own first label.
Findings of an image with the same sentence are one, with the boxes of both. Labels (1) are those of
abnormal findings; what the others deny has no name in the table and stays unknown. Left aside:
extra_boxes (a second outline), locations, progression, prior studies, and all about the patient.

Images are windowed from the 0.5th to the 99.5th percentile to 8 bits; 8-bit copies stay as they are.
"""

import functools
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.example import SPLITS, Example, Region, UnreadableError
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size, open_image
from input_pipeline.readers.source import Item, Source

LANGUAGES = ("en", "es")
_REPORTS, _TABLE, _IMAGES = "grounded_reports_*.json", "master_table.csv", "Padchest_GR_files"
_WINDOW = (0.5, 99.5)  # percentiles


@dataclass(frozen=True)
class _Finding:
  sentence: str
  label: str
  boxes: tuple[boxes.Corners, ...]  # in 0 to 1


@dataclass(frozen=True)
class _Row:
  file: str  # relative to the folder
  study_id: str
  findings: tuple[_Finding, ...]


@dataclass
class _Image:
  """What the table says of an image."""

  place: str
  study_id: str
  patient_id: str
  split: str
  groups: dict[str, str]  # English sentence -> label_group


def open_source(source: str, *, language: str = "en") -> Source:
  """Lists the images of the reports.

  Args:
    source: the folder.
    language: of the sentences, "en" (a translation) or "es".

  Raises SourceError: a file is missing or damaged, a study or a row lacks what it must say, or two
  of one image contradict each other.
  """
  root = folders.folder(source, "PadChest-GR's grounded_reports_20240819.json and master_table.csv")
  if language not in LANGUAGES:
    raise SourceError(f"language is {language!r}; it must be one of {', '.join(LANGUAGES)}")
  path = folders.find(root, _REPORTS)
  images = _table(root)
  home = _IMAGES if (root / _IMAGES).is_dir() else ""
  files = folders.file_names(root / home, ".png")
  items: dict[str, Item] = {}
  first: dict[str, dict] = {}
  left_out: list[tuple[str, str]] = []
  counts = Counter()
  for number, example in enumerate(_examples(path)):
    name, key = example["ImageID"], f"{example['ImageID']} ({path.name} study {number})"
    if first.setdefault(name, example) != example:
      raise SourceError(f"{path}: {key} contradicts {items[name].key}; remove one of the two")
    if name in items:
      counts["twice"] += 1
      continue
    if name not in images:
      left_out.append((key, f"has no row in {_TABLE}"))
      continue
    image = images[name]
    findings, labels = _findings(example, image, language, key, left_out, counts)
    file = Path(home, files.get(name, name)).as_posix()
    items[name] = Item(
      key, image.split, image.patient_id, _Row(file, image.study_id, findings), Path(name).stem,
      labels=labels,
    )  # fmt: skip
  notes = [
    f"{what}: {counts[name]}"
    for name, what in (
      ("twice", "studies given twice, dropped"),
      ("same", "findings with the sentence of another on the image, united"),
      ("silent", "findings without a sentence and boxes, left aside"),
      ("extra", "extra boxes left aside"),
    )
    if counts[name]
  ]
  if lost := sum(name not in first for name in images):
    notes.append(f"images of {_TABLE} without a report, left aside: {lost}")
  read = functools.partial(_read, root=root)
  return Source("padchest_gr", list(items.values()), read, tuple(notes), tuple(left_out))


def _table(root: Path) -> dict[str, _Image]:
  """ImageID -> what the table says. Raises SourceError where its rows contradict each other."""
  path = folders.find(root, _TABLE, f"{_TABLE}.zip", what="it tells splits and patients")
  images: dict[str, _Image] = {}
  columns = ("StudyID", "ImageID", "PatientID", "split", "sentence_en", "label_group")
  for row in tables.read(path, columns):
    image = _Image(
      row.place, row.text("StudyID"), row.text("PatientID"), row.one_of("split", SPLITS), {}
    )
    image = images.setdefault(row.text("ImageID"), image)
    for column, said in (
      ("StudyID", image.study_id), ("PatientID", image.patient_id), ("split", image.split),
    ):  # fmt: skip
      if row[column] != said:
        raise row.wrong(column, f"{said!r}, as in {image.place}, for the same image")
    if not tables.is_blank(row["label_group"]):
      image.groups.setdefault(_fold(row["sentence_en"]), row["label_group"])
  return images


def _examples(path: Path) -> list[dict[str, Any]]:
  """The studies of the file. Raises SourceError, naming the study's number, from 0."""
  try:
    examples = json.loads(path.read_text(encoding="utf-8-sig"))
  except ValueError as error:
    raise SourceError(f"{path}: not JSON in UTF-8 ({error}); download it again") from None
  if not isinstance(examples, list):
    raise SourceError(f"{path}: must be a list of studies")
  for number, example in enumerate(examples):
    fits = (
      isinstance(example, dict) and isinstance(example.get("ImageID"), str) and example["ImageID"]
    )
    findings = example.get("findings") if fits else None
    if not isinstance(findings, list) or not all(isinstance(each, dict) for each in findings):
      raise SourceError(f"{path}, study {number}: must have an ImageID and a list of findings")
  return examples


def _findings(
  example: dict[str, Any],
  image: _Image,
  language: str,
  key: str,
  left_out: list[tuple[str, str]],
  counts: Counter,
) -> tuple[tuple[_Finding, ...], tuple[tuple[str, int], ...]]:
  """Findings, one a sentence, and labels; adds to `left_out` and `counts`."""
  united: dict[str, _Finding] = {}
  labels: dict[str, int] = {}
  for number, finding in enumerate(example["findings"]):
    place = f"{key} finding {number}"
    sentence = _fold(_of_type(finding, f"sentence_{language}", str, place))
    names = [str(name) for name in _of_type(finding, "labels", list, place)]
    corners = _corners(finding, place, left_out)
    counts["extra"] += len(_of_type(finding, "extra_boxes", list, place))
    if finding.get("abnormal"):
      labels |= dict.fromkeys(names, 1)
    if not sentence:
      if corners:
        left_out.append((place, f"has boxes, but no sentence_{language}"))
      counts["silent"] += not corners
      continue
    english = _fold(_of_type(finding, "sentence_en", str, place))
    label = image.groups.get(english) or (names[0] if names else "finding")
    before = united.get(sentence)
    if before:
      counts["same"] += 1
      label, corners = before.label, before.boxes + corners
    united[sentence] = _Finding(sentence, label, tuple(dict.fromkeys(corners)))
  return tuple(united.values()), tuple(labels.items())


def _corners(
  finding: dict[str, Any], place: str, left_out: list[tuple[str, str]]
) -> tuple[boxes.Corners, ...]:
  """The boxes of a finding, clipped to the image; adds those without area to `left_out`."""
  found = []
  for box in _of_type(finding, "boxes", list, place):
    if not isinstance(box, list) or not [type(n) in (int, float) for n in box] == [True] * 4:
      raise SourceError(f"{place}: the box {box!r} must be four numbers, x1, y1, x2, y2")
    if not all(map(math.isfinite, box)):
      raise SourceError(f"{place}: the box {box!r} must be of finite numbers")
    corners = boxes.clip(tuple(box), 1, 1)
    if corners is None:
      left_out.append((place, f"the box {box} is empty or outside its image"))
    else:
      found.append(corners)
  return tuple(found)


def _of_type(finding: dict[str, Any], name: str, kind: type, place: str) -> Any:
  """A value, or an empty one where there is none. Raises SourceError for another type."""
  value = finding.get(name)
  value = kind() if value is None else value
  if not isinstance(value, kind):
    raise SourceError(f"{place}: {name} is {value!r}; it must be a {kind.__name__}")
  return value


def _fold(text: str) -> str:
  return " ".join(text.split())


def _read(item: Item, *, root: Path) -> Example:
  row = item.row
  image = _windowed(folders.read_bytes(root, row.file))
  width, height = image_size(image)
  size = np.array([width, height] * 2)
  sentences = tuple(finding.sentence for finding in row.findings)
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=row.study_id,
    patient_id=item.patient_id,
    sections={"findings": " ".join(sentences)} if sentences else {},
    sentences=sentences,
    labels=dict(item.labels),
    regions=tuple(
      Region(each.sentence, each.label, (np.array(each.boxes) * size).astype(np.float32))
      for each in row.findings
      if each.boxes
    ),
  )


def _windowed(data: bytes) -> bytes:
  """A 16-bit image as binary PGM, which Pillow reads; any other as it is."""
  try:
    with open_image(data) as image:
      if not image.mode.startswith("I"):
        return data
      pixels = np.asarray(image).astype(np.float32)
  except UnreadableError:
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a whole image ({error})") from error
  low, high = np.percentile(pixels, _WINDOW)
  if low == high:  # nearly all of one grey
    low, high = pixels.min(), pixels.max()
  grey = np.clip((pixels - low) * (255 / (high - low) if high > low else 0), 0, 255)
  height, width = grey.shape
  return b"P5\n%d %d\n255\n" % (width, height) + np.rint(grey).astype(np.uint8).tobytes()
