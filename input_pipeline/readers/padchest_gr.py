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

Images are windowed from the 0.5th to the 99.5th percentile to 8 bits; 8-bit copies stay as they
are.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.example import SPLITS, Example, Region, UnreadableError
from input_pipeline.readers.raw import boxes, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import encode_pgm, open_image
from input_pipeline.readers.source import Item, Listing, Source, build_example

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
  """Content of the table for an image."""

  place: str
  study_id: str
  patient_id: str
  split: str
  groups: dict[str, str]  # English sentence -> label_group


def open_source(source: str, *, language: str = "en") -> Source:
  """Lists the images of the reports. Raises SourceError, also where two contradict.

  Args:
    language: of the sentences, "en" (a translation) or "es".
  """
  root = folders.folder(source, "PadChest-GR's grounded_reports_20240819.json and master_table.csv")
  folders.check_option("language", language, LANGUAGES)
  path = folders.find(root, _REPORTS)
  images = _read_table(root)
  home = _IMAGES if (root / _IMAGES).is_dir() else ""
  files = folders.file_names(root / home, ".png")
  listing = Listing()
  first: dict[str, dict] = {}
  for number, study in enumerate(_read_studies(path)):
    name, key = study["ImageID"], f"{study['ImageID']} ({path.name} study {number})"
    if first.setdefault(name, study) != study:
      earlier = listing.items[name].key
      raise SourceError(f"{path}: {key} contradicts {earlier}; remove one of the two")
    if name in listing.items:
      listing.counts["studies given twice, dropped"] += 1
    elif name not in images:
      listing.leave_out(key, f"has no row in {_TABLE}")
    else:
      image = images[name]
      findings, labels = _parse_findings(study, image, language, key, listing)
      listing.items[name] = Item(
        key=key,
        split=image.split,
        patient_id=image.patient_id,
        row=_Row(Path(home, files.get(name, name)).as_posix(), image.study_id, findings),
        image_id=Path(name).stem,
        labels=labels,
      )
  for text in (
    "studies given twice, dropped",
    "findings with the sentence of another on the image, united",
    "findings without a sentence and boxes, left aside",
    "extra boxes left aside",
  ):
    listing.note(f"{text}: {{}}", listing.counts[text])
  lost = sum(name not in first for name in images)
  listing.note(f"images of {_TABLE} without a report, left aside: {{}}", lost)
  return listing.source("padchest_gr", functools.partial(_read, root=root))


def _read_table(root: Path) -> dict[str, _Image]:
  """Reads the table by ImageID. Raises SourceError where its rows contradict each other."""
  path = folders.find(root, _TABLE, f"{_TABLE}.zip", hint="it tells splits and patients")
  images: dict[str, _Image] = {}
  columns = ("StudyID", "ImageID", "PatientID", "split", "sentence_en", "label_group")
  for row in tables.read(path, columns):
    image = _Image(
      row.place, row.text("StudyID"), row.text("PatientID"), row.one_of("split", SPLITS), {}
    )
    image = images.setdefault(row.text("ImageID"), image)
    earlier = {"StudyID": image.study_id, "PatientID": image.patient_id, "split": image.split}
    for column, value in earlier.items():
      if row[column] != value:
        raise row.wrong(column, f"{value!r}, as in {image.place}, for the same image")
    if not tables.is_blank(row["label_group"]):
      image.groups.setdefault(_fold(row["sentence_en"]), row["label_group"])
  return images


def _read_studies(path: Path) -> list[dict[str, Any]]:
  """Reads the studies of the file. Raises SourceError, naming the study's number, from 0."""
  studies = tables.read_list(path, "studies")
  for number, study in enumerate(studies):
    fits = isinstance(study, dict) and isinstance(study.get("ImageID"), str) and study["ImageID"]
    findings = study.get("findings") if fits else None
    if not isinstance(findings, list) or not all(isinstance(each, dict) for each in findings):
      raise SourceError(f"{path}, study {number}: must have an ImageID and a list of findings")
  return studies


def _parse_findings(
  study: dict[str, Any], image: _Image, language: str, key: str, listing: Listing
) -> tuple[tuple[_Finding, ...], tuple[tuple[str, int], ...]]:
  """Parses findings, united by sentence, and labels."""
  united: dict[str, _Finding] = {}
  labels: dict[str, int] = {}
  for number, finding in enumerate(study["findings"]):
    place = f"{key} finding {number}"
    sentence = _fold(_of_type(finding, f"sentence_{language}", str, place))
    names = [str(name) for name in _of_type(finding, "labels", list, place)]
    corners = _parse_boxes(finding, place, listing)
    extra = _of_type(finding, "extra_boxes", list, place)
    listing.counts["extra boxes left aside"] += len(extra)
    if finding.get("abnormal"):
      labels |= dict.fromkeys(names, 1)
    if not sentence:
      if corners:
        listing.leave_out(place, f"has boxes, but no sentence_{language}")
      else:
        listing.counts["findings without a sentence and boxes, left aside"] += 1
      continue
    english = _fold(_of_type(finding, "sentence_en", str, place))
    label = image.groups.get(english) or (names[0] if names else "finding")
    if before := united.get(sentence):
      listing.counts["findings with the sentence of another on the image, united"] += 1
      label, corners = before.label, before.boxes + corners
    united[sentence] = _Finding(sentence, label, tuple(dict.fromkeys(corners)))
  return tuple(united.values()), tuple(labels.items())


def _parse_boxes(
  finding: dict[str, Any], place: str, listing: Listing
) -> tuple[boxes.Corners, ...]:
  """Parses a finding's boxes, clipped to the image; lists those without area as left out."""
  clipped = []
  for box in _of_type(finding, "boxes", list, place):
    if not boxes.is_box(box):
      raise SourceError(f"{place}: the box {box!r} must be four {boxes.NUMBERS}, x1, y1, x2, y2")
    corners = boxes.clip(tuple(box), 1, 1)
    if corners is None:
      listing.leave_out(place, f"the box {box} is empty or outside its image")
    else:
      clipped.append(corners)
  return tuple(clipped)


def _of_type(finding: dict[str, Any], name: str, kind: type, place: str) -> Any:
  """Returns a value, an empty one where there is none. Raises SourceError for another type."""
  value = finding.get(name)
  value = kind() if value is None else value
  if not isinstance(value, kind):
    raise SourceError(f"{place}: {name} is {value!r}; it must be a {kind.__name__}")
  return value


def _fold(text: str) -> str:
  return " ".join(text.split())


def _read(item: Item, *, root: Path) -> Example:
  findings = item.row.findings
  sentences = tuple(finding.sentence for finding in findings)

  def regions(width: int, height: int) -> tuple[Region, ...]:
    size = np.array([width, height] * 2)
    return tuple(
      Region(each.sentence, each.label, (np.array(each.boxes) * size).astype(np.float32))
      for each in findings
      if each.boxes
    )

  return build_example(
    item,
    windowed(folders.read_bytes(root, item.row.file)),
    study_id=item.row.study_id,
    sections={"findings": " ".join(sentences)} if sentences else {},
    sentences=sentences,
    regions=regions,
  )


def windowed(data: bytes) -> bytes:
  """Brings a 16-bit image to binary PGM, which Pillow reads; returns any other as it is."""
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
  return encode_pgm(np.rint(grey).astype(np.uint8))
