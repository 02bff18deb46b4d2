"""Reader of the Indiana University chest X-rays of OpenI (Demner-Fushman et al. 2016).

The folder holds

  ecgen-radiology/1.xml, ...  the reports, or NLMCXR_reports.tgz as it comes
  NLMCXR_png/CXR1_1_IM-0001-3001.png, ...   the images, in any folder below; instead of a PNG, the
                              original DICOM (1/1_IM-0001-3001.dcm) or Kaggle's
                              1_IM-0001-3001.dcm.png
  indiana_projections.csv     optional: Kaggle's table that tells frontal from lateral

Every parentImage of a report is an image; the report is its study, and its patient, since the reports
name none (uId). The four AbstractText become sections; findings and impression the text. What was
removed to hide who it is stays as it stands, "XXXX".

Labels (1, nothing is known absent) are the headings of the MeSH terms that were assigned by hand
("Opacity" of "Opacity/lung/base/left") and the terms that were found automatically, as spelled.
"No Indexing" is none. Left aside: captions, image features, and the DICOM headers.

There is no official split: 80/10/10 is drawn by uId.
"""

import functools
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from input_pipeline.example import SPLITS, Example, UnreadableError
from input_pipeline.readers.raw import dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.readers.source import Item, Source, draw_split
from input_pipeline.text import reports

VIEWS = ("all", "frontal")
_FOLDER, _ARCHIVE, _PROJECTIONS = "ecgen-radiology", "NLMCXR_reports.tgz", "indiana_projections.csv"
_TEXT = ("findings", "impression")  # what a study's sentences are taken from
_COUNTED = {
  "without an image": "",
  "without findings and impression": "; their images have no text",
  "with XXXX in them": "",
}


@dataclass(frozen=True)
class _Row:
  file: str  # relative to the folder
  sections: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Report:
  uid: str
  image_ids: tuple[str, ...]
  sections: tuple[tuple[str, str], ...]
  labels: tuple[tuple[str, int], ...]


def open_source(source: str, *, views: str = "all") -> Source:
  """Lists the images of all reports.

  Args:
    source: the folder.
    views: "all", or "frontal", which needs indiana_projections.csv.

  Raises SourceError: no reports, a damaged archive or table, two reports with one uId or image.
  """
  root = folders.folder(source, "ecgen-radiology or NLMCXR_reports.tgz, and the images")
  if views not in VIEWS:
    raise SourceError(f"views is {views!r}; it must be one of {', '.join(VIEWS)}")
  view_of = _views(root)
  if views == "frontal" and view_of is None:
    raise SourceError(f"{root}: views='frontal' needs {_PROJECTIONS}, Kaggle's table of the views")
  png, dcm = folders.file_names(root, ".png"), folders.file_names(root, ".dcm")
  items: dict[str, Item] = {}
  left_out: list[tuple[str, str]] = []
  counts = Counter()
  for name, report in _reports(root, left_out):
    counts["reports"] += 1
    counts["without an image"] += not report.image_ids
    said = " ".join(text for section, text in report.sections if section in _TEXT)
    counts["without findings and impression"] += not said
    counts["with XXXX in them"] += "XXXX" in said
    for image_id in report.image_ids:
      short = _short(image_id)
      view = (view_of or {}).get(short, "")
      if views == "frontal" and view != "FRONTAL":
        counts["not frontal"] += 1
        continue
      file = png.get(f"{image_id}.png") or png.get(f"{short}.dcm.png") or dcm.get(f"{short}.dcm")
      item = Item(
        f"{image_id} ({name})", draw_split(report.uid), report.uid,
        _Row(file or f"NLMCXR_png/{image_id}.png", report.sections),
        image_id, view, report.labels,
      )  # fmt: skip
      if items.setdefault(image_id, item) is not item:
        raise SourceError(f"{root}: {item.key} is an image of {items[image_id].key} too")
  if not items:
    raise SourceError(f"{root}: the reports name no image")
  images = list(items.values())
  notes = _notes(images, counts, view_of)
  read = functools.partial(_read, root=root)
  return Source("openi", images, read, notes, tuple(left_out))


def _notes(images: list[Item], counts: Counter, view_of: dict | None) -> tuple[str, ...]:
  splits = Counter(item.split for item in images)
  drawn = ", ".join(f"{split} {splits[split]}" for split in SPLITS)
  notes = [f"no official split: drawn by uId ({drawn})"]
  for what, why in _COUNTED.items():
    if counts[what]:
      notes.append(f"reports {what}: {counts[what]} of {counts['reports']}{why}")
  if aside := counts["not frontal"]:
    notes.append(f"views left aside that are not frontal: {aside} of {aside + len(images)}")
  if view_of is None:
    notes.append(f"no {_PROJECTIONS}: views are unknown, laterals are among the images")
  return tuple(notes)


def _short(image_id: str) -> str:
  """The name of an image's DICOM file, without the suffix: "CXR1_1_IM-0001" -> "1_IM-0001"."""
  return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", image_id)


def _views(root: Path) -> dict[str, str] | None:
  """Short name -> "FRONTAL" or "LATERAL"; None where there is no table."""
  path = root / _PROJECTIONS
  if not path.exists():
    return None
  view_of = {}
  for row in tables.read(path, ("filename", "projection")):
    view = row.one_of("projection", ("Frontal", "Lateral"))
    view_of[row.text("filename").removesuffix(".png").removesuffix(".dcm")] = view.upper()
  return view_of


def _reports(root: Path, left_out: list[tuple[str, str]]) -> Iterator[tuple[str, _Report]]:
  """File name and report, by number; damaged ones are added to `left_out`."""
  name_of: dict[str, str] = {}
  for name, data in _files(root, left_out):
    try:
      report = _parse(data)
    except (ElementTree.ParseError, UnreadableError) as error:
      left_out.append((name, f"not a report: {error}"))
      continue
    if report.uid in name_of:
      raise SourceError(f"{root}: {name_of[report.uid]} and {name} have the uId {report.uid}")
    name_of[report.uid] = name
    yield name, report


def _files(root: Path, left_out: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
  """The XML files, by number, from the folder or else the archive."""
  folder, archive = root / _FOLDER, root / _ARCHIVE
  if folder.is_dir():
    for name in sorted((path.name for path in folder.glob("*.xml")), key=_number):
      try:
        yield name, folders.read_bytes(root, f"{_FOLDER}/{name}")
      except UnreadableError as error:
        left_out.append((name, str(error)))
    return
  try:
    with tarfile.open(folders.find(root, _ARCHIVE, what=f"or unpack it: {_FOLDER}")) as tar:
      members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".xml")]
      found = [(Path(member.name).name, tar.extractfile(member).read()) for member in members]
  except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
    raise SourceError(
      f"{archive}: cannot be read to its end ({error}); download it again"
    ) from None
  yield from sorted(found, key=lambda each: _number(each[0]))


def _number(name: str) -> tuple[int, str]:
  return len(name), name


def _parse(data: bytes) -> _Report:
  """Raises ParseError, and UnreadableError where the XML is no report."""
  xml = ElementTree.fromstring(data)
  uid = xml.find("uId")
  if uid is None or not uid.get("id"):
    raise UnreadableError("it has no uId")
  sections: dict[str, str] = {}
  for text in xml.iter("AbstractText"):
    name, words = text.get("Label", "").lower(), " ".join("".join(text.itertext()).split())
    if words:
      sections[name] = f"{sections[name]} {words}" if name in sections else words
  terms = [(node.text or "").split("/")[0].strip() for node in xml.iter("major")]
  terms += [(node.text or "").strip() for node in xml.iter("automatic")]
  labels = {term: 1 for term in terms if term not in ("", "No Indexing")}
  image_ids = dict.fromkeys(node.get("id", "") for node in xml.iter("parentImage"))
  if "" in image_ids:
    raise UnreadableError("a parentImage has no id")
  return _Report(uid.get("id"), tuple(image_ids), tuple(sections.items()), tuple(labels.items()))


def _read(item: Item, *, root: Path) -> Example:
  image = folders.read_bytes(root, item.row.file)
  if item.row.file.endswith(".dcm"):
    image = dicom.to_pgm(image)
  width, height = image_size(image)
  sections = dict(item.row.sections)
  said = {name: text for name, text in sections.items() if name in _TEXT}
  return Example(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=item.patient_id,
    patient_id=item.patient_id,
    view=item.view,
    sections=sections,
    sentences=tuple(reports.report_sentences(said)),
    labels=dict(item.labels),
  )
