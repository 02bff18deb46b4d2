"""A tiny PhysioNet download: MIMIC-CXR-JPG, MIMIC-CXR reports, MS-CXR and RadGraph.

Layout and columns are the publishers'; images, reports, labels, boxes and entities are the
phantom's, so what is trained on it learns something. Quirks: laterals, a study that the label
tables lack, a report without headings, an empty report, MS-CXR images of training patients.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from input_pipeline.example import Example, Region
from input_pipeline.phantom import radiograph
from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.text import reports

CHEXPERT = (
  "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
  "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other",
  "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
LABEL_OF = {
  "atelectasis": "Atelectasis", "cardiomegaly": "Cardiomegaly", "consolidation": "Consolidation",
  "edema": "Edema", "effusion": "Pleural Effusion", "fracture": "Fracture", "mass": "Lung Lesion",
  "nodule": "Lung Lesion", "pacemaker": "Support Devices", "pneumothorax": "Pneumothorax",
  "tube": "Support Devices",
}  # fmt: skip
# MS-CXR's eight, in the order of their ids in its JSON.
CATEGORIES = (
  "Cardiomegaly", "Lung Opacity", "Edema", "Consolidation", "Pneumonia", "Atelectasis",
  "Pneumothorax", "Pleural Effusion",
)  # fmt: skip
_CATEGORY_OF = {**LABEL_OF, "mass": "Lung Opacity", "nodule": "Lung Opacity"}
METADATA = (
  "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition",
  "Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
  "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
MS_CXR = (
  "dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width",
  "image_height", "split",
)  # fmt: skip
WITHOUT_HEADINGS, EMPTY, WITHOUT_LABELS = 2, 5, 3  # numbers of studies


@dataclass(frozen=True)
class Image:
  """What was written of one image.

  Attributes:
    dicom_id, subject_id, study_id: as in the tables.
    split: "train", "validate" or "test", of the patient.
    view: "PA", "AP" or "LATERAL".
    number: of the study, from 0.
    width, height: of the JPEG.
    truth: the phantom's study; its boxes are in pixels of the JPEG. None for a lateral.
    report: as the text file holds it.
    ms_cxr: MS-CXR's split, "" where the image is not in it.
  """

  dicom_id: str
  subject_id: str
  study_id: str
  split: str
  view: str
  number: int
  width: int
  height: int
  truth: Example | None
  report: str
  ms_cxr: str

  @property
  def path(self) -> str:
    """As MS-CXR's tables say it: below mimic-cxr-jpg."""
    return f"files/{stem(self.subject_id, self.study_id)}/{self.dicom_id}.jpg"


def write(
  folder: str | Path,
  patients: int = 24,
  seed: int = 0,
  *,
  size_px: int = 128,
  zipped: bool = False,
  versions: bool = True,
  prefix: str = "",
) -> list[Image]:
  """Writes the download of so many patients (3 or more), two studies each.

  Args:
    folder: made where it is not there.
    patients: the last eighth is the test split, the eighth before it "validate".
    seed: of the phantom.
    size_px: height of the images, 64 to 256; widths differ.
    zipped: reports in mimic-cxr-reports.zip instead of text files.
    versions: whether a version's folder stands between a project and its files.
    prefix: where the projects stand in the folder, such as "physionet.org/files".
  """
  root = Path(folder) / prefix
  jpg, text, ms_cxr, radgraph = (
    root / name / (version if versions else "")
    for name, version in (
      ("mimic-cxr-jpg", "2.0.0"), ("mimic-cxr", "2.0.0"), ("ms-cxr", "1.1.0"), ("radgraph", "1.0.0")
    )
  )  # fmt: skip
  images, labels = [], []
  eighth = max(1, patients // 8)
  for number in range(patients * radiograph.IMAGES_PER_PATIENT):
    patient = number // radiograph.IMAGES_PER_PATIENT
    split = ("train", "validate", "test")[
      (patient >= patients - 2 * eighth) + (patient >= patients - eighth)
    ]
    drawn = radiograph.example(seed, number, size_px)
    truth = _stretched(drawn, size_px + (number % 4) * size_px // 16)
    report = _report(truth, number)
    ids = (str(10_000_032 + 977 * patient), str(50_000_014 + 1013 * number), split)
    # A part of the training patients is in MS-CXR too, as in the real one.
    boxed = any(map(category, truth.regions))
    in_ms_cxr = boxed and (split != "train" or patient % 6 == 0) and number != EMPTY
    ms_split = ("train", "val", "test")[patient % 3] if in_ms_cxr else ""
    images.append(
      Image(_dicom_id(seed, number, 0), *ids, truth.view, number, truth.width, truth.height,
           truth, report, ms_split)
    )  # fmt: skip
    _write(jpg / images[-1].path, truth.image)
    if number % 3 == 1:
      dicom_id = _dicom_id(seed, number, 1)
      images.append(
        Image(dicom_id, *ids, "LATERAL", number, size_px, size_px, None, report, "")
      )  # fmt: skip
      _write(jpg / images[-1].path, _lateral(drawn))
    if number != WITHOUT_LABELS:
      labels.append((*ids[:2], truth.labels, bool(truth.regions)))

  _write_tables(jpg, images, labels)
  _write_reports(text, images, zipped)
  frontal = [image for image in images if image.truth]
  write_ms_cxr(ms_cxr, frontal)
  _write(radgraph / "MIMIC-CXR_graphs.json", json.dumps(dict(map(graph, frontal))).encode())
  return images


def stem(subject_id: str, study_id: str) -> str:
  """p10/p10000032/s50000014."""
  return f"p{subject_id[:2]}/p{subject_id}/s{study_id}"


def category(region: Region) -> str:
  """Which of MS-CXR's eight a phantom's region is, "" for none of them."""
  name = _CATEGORY_OF.get(region.label, "")
  return name if name in CATEGORIES else ""


def table(path: Path, columns, rows) -> None:
  """Writes a CSV file, gzipped where its name says so."""
  text = io.StringIO()
  csv.writer(text).writerows([columns, *rows])
  data = text.getvalue().encode()
  _write(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_ms_cxr(folder: Path, images, version: str = "1.1.0", scale: int = 1) -> None:
  """MS-CXR's CSV and JSON; with a scale, as if the images had been that much larger before."""
  rows, entries, annotations = [], [], []
  for image in images:
    if not image.ms_cxr:
      continue
    size = (image.width * scale, image.height * scale)
    entries.append(
      {"file_name": f"{image.dicom_id}.jpg", "width": size[0], "height": size[1],
       "num_annotations": 0, "id": len(entries) + 1, "path": image.path}
    )  # fmt: skip
    for region in image.truth.regions:
      if not (name := category(region)):
        continue
      for x0, y0, x1, y1 in (region.boxes * scale).astype(int).tolist():
        box = (x0, y0, x1 - x0, y1 - y0)
        split = [image.ms_cxr] if version >= "1.1" else []
        rows.append((image.dicom_id, name, region.phrase, image.path, *box, *size, *split))
        annotations.append(
          {"area": box[2] * box[3], "iscrowd": 0, "image_id": entries[-1]["id"], "bbox": box,
           "category_id": CATEGORIES.index(name) + 1, "id": len(annotations) + 1,
           "width": size[0], "height": size[1], "label_text": region.phrase}
        )  # fmt: skip
        if split:
          annotations[-1]["split"] = image.ms_cxr
        entries[-1]["num_annotations"] += 1
  columns = MS_CXR if version >= "1.1" else MS_CXR[:-1]
  table(folder / f"MS_CXR_Local_Alignment_v{version}.csv", columns, rows)
  categories = [
    {"id": number, "name": name, "supercategory": "disease"}
    for number, name in enumerate(CATEGORIES, 1)
  ]
  content = {"info": {}, "licenses": [], "categories": categories}
  content |= {"images": entries, "annotations": annotations}
  _write(folder / f"MS_CXR_Local_Alignment_v{version}.json", json.dumps(content).encode())


def tokens(report: str) -> list[str]:
  """A report as RadGraph's text holds it: punctuation apart, but hyphens and decimals whole."""
  apart = re.sub(r"(?<=\d)([.,])(?=\d)|([.,:;/!?()]|'s\b|___)", _apart, report)
  return apart.split()


def graph(image: Image) -> tuple[str, dict]:
  """RadGraph's key and value of a report: entities in all its sections, "end_ix" inclusive."""
  text = tokens(image.report)
  lower = [token.lower() for token in text]
  found, at = [], 0
  for sentence in image.truth.sentences:
    words = tokens(sentence)
    at = _find(lower, [word.lower() for word in words], at)
    if at < 0:
      break  # an empty report
    labels = _labels(sentence, words)
    i = 0
    while i < len(words):
      end = i + 1
      while end < len(words) and labels[i] and labels[end] == labels[i] == "OBS-DP" and end < i + 2:
        end += 1  # now and then, an entity of two tokens
      if labels[i]:
        found.append((labels[i], at + i, at + end - 1))
      i = end
    at += len(words)
  found += [("OBS-U", i, i) for i, word in enumerate(lower) if word == "pneumonia"]
  entities = {
    str(number): {
      "tokens": " ".join(text[start : end + 1]),
      "label": label,
      "start_ix": start,
      "end_ix": end,
      "relations": [["located_at", "1"]] if number == 2 else [],
    }
    for number, (label, start, end) in enumerate(sorted(found, key=lambda e: e[1]), 1)
  }
  key = f"{stem(image.subject_id, image.study_id)}.txt"
  return key, {"text": " ".join(text), "entities": entities, "data_source": None, "data_split": ""}


def _labels(sentence: str, words: list[str]) -> list[str]:
  """RadGraph's label of each token, "" for none."""
  kinds = phantom_reports.word_kinds(sentence)
  kind_of = {}
  for (start, end), kind in zip(reports.words(sentence), kinds, strict=True):
    kind_of.setdefault(sentence[start:end].lower(), kind)
  out = []
  denied = sentence.lower().startswith(("no ", "there is no "))
  for word in words:
    kind = kind_of.get(word.lower(), "other")
    if denied:
      out.append("OBS-DA" if word.lower() in ("pneumothorax", "effusion", "edema") else "")
    else:
      out.append({"finding": "OBS-DP", "attribute": "ANAT-DP"}.get(kind, ""))
  return out


def _find(text: list[str], words: list[str], start: int) -> int:
  for at in range(start, len(text) - len(words) + 1):
    if text[at : at + len(words)] == words:
      return at
  return -1


def _apart(match: re.Match) -> str:
  return match.group(1) or f" {match.group(2)} "


def _report(example: Example, number: int) -> str:
  """The phantom's report in MIMIC's form."""
  if number == EMPTY:
    return "\n"
  findings, impression = example.sections["findings"], example.sections["impression"]
  title = " " * 33 + "FINAL REPORT\n"
  if number == WITHOUT_HEADINGS:
    body = f" CHEST RADIOGRAPH\n \n{_folded(findings)} \n{_folded(impression)}"
    return title + body
  age = "___ year old woman with cough, SOB // r/o pneumonia"
  parts = {
    "EXAMINATION": f" CHEST ({'PA AND LAT' if example.view == 'PA' else 'PORTABLE AP'})",
    "INDICATION": f" {age}" if number % 2 else " History: ___F with 1.5 weeks' fever // pneumonia?",
    "COMPARISON": f" {example.sections.get('comparison', 'None.')}",
    "TECHNIQUE": " Chest radiograph, single view; film 1/2.",
  }
  heads = "".join(f" {name}: {text}\n \n" for name, text in parts.items())
  body = f" FINDINGS: \n \n{_folded(findings)} \n IMPRESSION: \n \n{_numbered(impression)}"
  return title + heads + body


def _folded(text: str) -> str:
  return textwrap.fill(text, 72, initial_indent=" ", subsequent_indent=" ") + "\n"


def _numbered(text: str) -> str:
  """An impression of several statements counts them."""
  statements = reports.sentences(text)
  if len(statements) < 2:
    return _folded(text)
  return " \n".join(_folded(f"{i}. {s}") for i, s in enumerate(statements, 1))


def _stretched(example: Example, width: int) -> Example:
  """The study as a JPEG of that width."""
  pixels = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
  pixels = cv2.resize(pixels, (width, example.height), interpolation=cv2.INTER_LINEAR)
  factor = np.array([width / example.width, 1] * 2)
  regions = tuple(
    Region(region.phrase, region.label, np.rint(region.boxes * factor).astype(np.float32))
    for region in example.regions
  )  # fmt: skip
  return Example(
    image=_jpeg(pixels), width=width, height=example.height, image_id=example.image_id,
    study_id=example.study_id, patient_id=example.patient_id, view=example.view,
    sections=example.sections, sentences=example.sentences, labels=example.labels, regions=regions,
  )  # fmt: skip


def _lateral(example: Example) -> bytes:
  """A picture that is no frontal image: the left half, squeezed."""
  pixels = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
  half = np.ascontiguousarray(pixels[:, : example.width // 2])
  return _jpeg(cv2.resize(half, (example.width, example.height)))


def _jpeg(pixels: np.ndarray) -> bytes:
  return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _dicom_id(seed: int, number: int, image: int) -> str:
  digits = hashlib.blake2b(f"{seed} {number} {image}".encode(), digest_size=20).hexdigest()
  return "-".join(digits[i : i + 8] for i in range(0, 40, 8))


def _write(path: Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def _write_tables(folder: Path, images: list[Image], labels) -> None:
  name = "mimic-cxr-2.0.0"
  meanings = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}
  metadata = [
    (image.dicom_id, image.subject_id, image.study_id, "CHEST (PA AND LAT)", image.view, image.height,
     image.width, "21800506", "213014.531", "CHEST (PA AND LAT)", meanings[image.view], "Erect")
    for image in images
  ]  # fmt: skip
  table(folder / f"{name}-metadata.csv.gz", METADATA, metadata)
  split = [(image.dicom_id, image.study_id, image.subject_id, image.split) for image in images]
  columns = ("dicom_id", "study_id", "subject_id", "split")
  table(folder / f"{name}-split.csv.gz", columns, split)
  for labeler in ("chexpert", "negbio"):
    rows = []
    for subject_id, study_id, truth, positive in labels:
      values = {LABEL_OF[name]: value for name, value in truth.items() if name in LABEL_OF}
      # One label for two findings: what is there counts more than what is denied.
      values |= {LABEL_OF[name]: value for name, value in truth.items()
                 if value and name in LABEL_OF}  # fmt: skip
      if not positive:
        values["No Finding"] = 1
      if labeler == "negbio":  # which hears fewer hedges
        values = {label: abs(value) for label, value in values.items()}
      cells = (f"{values[label]:.1f}" if label in values else "" for label in CHEXPERT)
      rows.append((subject_id, study_id, *cells))
    table(folder / f"{name}-{labeler}.csv.gz", ("subject_id", "study_id", *CHEXPERT), rows)


def _write_reports(folder: Path, images: list[Image], zipped: bool) -> None:
  texts = {f"files/{stem(image.subject_id, image.study_id)}.txt": image for image in images}
  if zipped:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
      for name, image in texts.items():
        archive.writestr(zipfile.ZipInfo(name), image.report, zipfile.ZIP_DEFLATED)
  else:
    for name, image in texts.items():
      _write(folder / name, image.report.encode())
  examples = [(image.subject_id, image.study_id, name) for name, image in texts.items()]
  table(folder / "cxr-study-list.csv.gz", ("subject_id", "study_id", "path"), examples)
  records = [
    (image.subject_id, image.study_id, image.dicom_id, image.path.replace(".jpg", ".dcm"))
    for image in images
  ]
  columns = ("subject_id", "study_id", "dicom_id", "path")
  table(folder / "cxr-record-list.csv.gz", columns, records)
