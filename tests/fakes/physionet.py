"""A tiny PhysioNet download: MIMIC-CXR-JPG, MIMIC-CXR reports, MS-CXR and RadGraph.

Layout and columns are the publishers'; images, reports, labels, boxes and entities are the
phantom's, so that models trained on it learn something. Quirks: laterals, a study that the label
tables lack, a report without headings, an empty report, MS-CXR images of training patients.
"""

import csv
import gzip
import hashlib
import io
import json
import textwrap
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from fakes import radgraph
from fakes.images import png
from input_pipeline.example import Example, Region
from input_pipeline.images import decode
from input_pipeline.phantom import radiograph
from input_pipeline.readers.mimic_cxr import LABELS
from input_pipeline.text import reports

LABEL_OF = {
  "atelectasis": "Atelectasis",
  "cardiomegaly": "Cardiomegaly",
  "consolidation": "Consolidation",
  "edema": "Edema",
  "effusion": "Pleural Effusion",
  "fracture": "Fracture",
  "mass": "Lung Lesion",
  "nodule": "Lung Lesion",
  "pacemaker": "Support Devices",
  "pneumothorax": "Pneumothorax",
  "tube": "Support Devices",
}
# MS-CXR's eight, in the order of their ids in its JSON.
CATEGORIES = (
  "Cardiomegaly",
  "Lung Opacity",
  "Edema",
  "Consolidation",
  "Pneumonia",
  "Atelectasis",
  "Pneumothorax",
  "Pleural Effusion",
)
_CATEGORY_OF = {**LABEL_OF, "mass": "Lung Opacity", "nodule": "Lung Opacity"}
_IMAGE_SIZE = ("image_width", "image_height")
MS_CXR = ("dicom_id", "category_name", "label_text", "path", *"xywh", *_IMAGE_SIZE, "split")
_VIEW_MEANINGS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}
WITHOUT_HEADINGS, EMPTY, WITHOUT_LABELS = 2, 5, 3  # numbers of studies


@dataclass(frozen=True)
class Image:
  """Image as it was written; names and values as the tables have them."""

  dicom_id: str
  subject_id: str
  study_id: str
  split: str
  view: str
  number: int  # of the study, from 0
  width: int  # of the JPEG, as the boxes of `truth` are
  height: int
  truth: Example | None  # None for a lateral
  report: str
  ms_cxr: str  # its split, "" where the image is not in it

  @property
  def path(self) -> str:
    """Returns the path below mimic-cxr-jpg, as MS-CXR's tables have it."""
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
  jpg = root / "mimic-cxr-jpg" / ("2.0.0" if versions else "")
  text = root / "mimic-cxr" / ("2.0.0" if versions else "")
  ms_cxr = root / "ms-cxr" / ("1.1.0" if versions else "")
  graphs = root / "radgraph" / ("1.0.0" if versions else "")
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
    subject_id, study_id = str(10_000_032 + 977 * patient), str(50_000_014 + 1013 * number)
    # A part of the training patients is in MS-CXR too, as in the real one.
    boxed = any(map(category, truth.regions))
    in_ms_cxr = boxed and (split != "train" or patient % 6 == 0) and number != EMPTY
    ms_split = ("train", "val", "test")[patient % 3] if in_ms_cxr else ""
    frontal = Image(
      dicom_id=_dicom_id(seed, number, 0),
      subject_id=subject_id,
      study_id=study_id,
      split=split,
      view=truth.view,
      number=number,
      width=truth.width,
      height=truth.height,
      truth=truth,
      report=report,
      ms_cxr=ms_split,
    )
    images.append(frontal)
    _write(jpg / frontal.path, truth.image)
    if number % 3 == 1:
      size = {"width": size_px, "height": size_px}
      of_lateral = {"dicom_id": _dicom_id(seed, number, 1), "view": "LATERAL"} | size
      images.append(replace(frontal, **of_lateral, truth=None, ms_cxr=""))
      _write(jpg / images[-1].path, _lateral(drawn))
    if number != WITHOUT_LABELS:
      labels.append((subject_id, study_id, truth.labels, bool(truth.regions)))

  _write_tables(jpg, images, labels)
  _write_reports(text, images, zipped)
  frontals = [image for image in images if image.truth]
  write_ms_cxr(ms_cxr, frontals)
  entries = {f"{stem(i.subject_id, i.study_id)}.txt": radgraph.entry(i) for i in frontals}
  _write(graphs / "MIMIC-CXR_graphs.json", json.dumps(entries).encode())
  return images


def stem(subject_id: str, study_id: str) -> str:
  """p10/p10000032/s50000014."""
  return f"p{subject_id[:2]}/p{subject_id}/s{study_id}"


def category(region: Region) -> str:
  """Returns MS-CXR's category of a phantom's region, "" for none of its eight."""
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
    entry = {
      "file_name": f"{image.dicom_id}.jpg",
      "width": size[0],
      "height": size[1],
      "num_annotations": 0,
      "id": len(entries) + 1,
      "path": image.path,
    }
    entries.append(entry)
    for region in image.truth.regions:
      if not (name := category(region)):
        continue
      for x0, y0, x1, y1 in (region.boxes * scale).astype(int).tolist():
        box = (x0, y0, x1 - x0, y1 - y0)
        split = [image.ms_cxr] if version >= "1.1" else []
        rows.append((image.dicom_id, name, region.phrase, image.path, *box, *size, *split))
        annotation = {
          "area": box[2] * box[3],
          "iscrowd": 0,
          "image_id": entry["id"],
          "bbox": box,
          "category_id": CATEGORIES.index(name) + 1,
          "id": len(annotations) + 1,
          "width": size[0],
          "height": size[1],
          "label_text": region.phrase,
        }
        annotations.append(annotation | ({"split": image.ms_cxr} if split else {}))
        entry["num_annotations"] += 1
  columns = MS_CXR if version >= "1.1" else MS_CXR[:-1]
  table(folder / f"MS_CXR_Local_Alignment_v{version}.csv", columns, rows)
  categories = [
    {"id": number, "name": name, "supercategory": "disease"}
    for number, name in enumerate(CATEGORIES, 1)
  ]
  content = {"info": {}, "licenses": [], "categories": categories}
  content |= {"images": entries, "annotations": annotations}
  _write(folder / f"MS_CXR_Local_Alignment_v{version}.json", json.dumps(content).encode())


def _report(example: Example, number: int) -> str:
  """The phantom's report in MIMIC's form."""
  if number == EMPTY:
    return "\n"
  findings, impression = example.sections["findings"], example.sections["impression"]
  title = " " * 33 + "FINAL REPORT\n"
  if number == WITHOUT_HEADINGS:
    return f"{title} CHEST RADIOGRAPH\n \n{_folded(findings)} \n{_folded(impression)}"
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
  """Brings an example to a JPEG of another width."""
  pixels = cv2.resize(decode(example.image), (width, example.height))
  factor = np.array([width / example.width, 1] * 2)
  regions = tuple(
    Region(region.phrase, region.label, np.rint(region.boxes * factor).astype(np.float32))
    for region in example.regions
  )
  return replace(example, image=png(pixels, ".jpg"), width=width, regions=regions, entities=())


def _lateral(example: Example) -> bytes:
  """Draws an image that is no frontal one: the left half, squeezed."""
  half = np.ascontiguousarray(decode(example.image)[:, : example.width // 2])
  return png(cv2.resize(half, (example.width, example.height)), ".jpg")


def _dicom_id(seed: int, number: int, image: int) -> str:
  digits = hashlib.blake2b(f"{seed} {number} {image}".encode(), digest_size=20).hexdigest()
  return "-".join(digits[i : i + 8] for i in range(0, 40, 8))


def _write(path: Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def _write_tables(folder: Path, images: list[Image], labels) -> None:
  name = "mimic-cxr-2.0.0"
  metadata = [
    {
      "dicom_id": image.dicom_id,
      "subject_id": image.subject_id,
      "study_id": image.study_id,
      "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
      "ViewPosition": image.view,
      "Rows": image.height,
      "Columns": image.width,
      "StudyDate": "21800506",
      "StudyTime": "213014.531",
      "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
      "ViewCodeSequence_CodeMeaning": _VIEW_MEANINGS[image.view],
      "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }
    for image in images
  ]
  table(folder / f"{name}-metadata.csv.gz", metadata[0], (row.values() for row in metadata))
  split = [(image.dicom_id, image.study_id, image.subject_id, image.split) for image in images]
  columns = ("dicom_id", "study_id", "subject_id", "split")
  table(folder / f"{name}-split.csv.gz", columns, split)
  for labeler in ("chexpert", "negbio"):
    rows = []
    for subject_id, study_id, truth, positive in labels:
      values = {LABEL_OF[name]: value for name, value in truth.items() if name in LABEL_OF}
      # One label for two findings: present counts more than denied.
      present = (name for name, value in truth.items() if value and name in LABEL_OF)
      values |= {LABEL_OF[name]: truth[name] for name in present}
      if not positive:
        values["No Finding"] = 1
      if labeler == "negbio":  # which hears fewer hedges
        values = {label: abs(value) for label, value in values.items()}
      cells = (f"{values[label]:.1f}" if label in values else "" for label in LABELS)
      rows.append((subject_id, study_id, *cells))
    table(folder / f"{name}-{labeler}.csv.gz", ("subject_id", "study_id", *LABELS), rows)


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
