"""Reader of the Indiana University chest X-rays of OpenI (Demner-Fushman et al. 2016).

The folder holds

  ecgen-radiology/1.xml, ...  the reports, or NLMCXR_reports.tgz as it comes
  NLMCXR_png/CXR1_1_IM-0001-3001.png, ...   the images, in any folder below; instead of a PNG, the
                              original DICOM (1/1_IM-0001-3001.dcm) or Kaggle's
                              1_IM-0001-3001.dcm.png
  indiana_projections.csv     optional: Kaggle's table that tells frontal from lateral

Every parentImage of a report is an image; the report is its study, and its patient, since the
reports name none (uId). The four AbstractText become sections, split at headings in their text;
findings and impression the text. What was removed to hide who it is stays, "XXXX".

Labels (1, nothing is known absent) are the headings of the MeSH terms that were assigned by hand
("Opacity" of "Opacity/lung/base/left") and the terms that were found automatically, as spelled.
"No Indexing" is none. labels="carzero" has instead the 18 findings that CARZero and RadZero are
evaluated on: 1 where an automatic term holds the name or its other word, as their code has it, else
0. Left aside: captions, image features, and the DICOM headers.

There is no official split: 80/10/10 is drawn by uId.
"""

import functools
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from input_pipeline.example import Example, UnreadableError
from input_pipeline.readers.raw import dicom, folders, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, build_example, draw_split
from input_pipeline.text import reports

VIEWS, LABELS = ("all", "frontal"), ("terms", "carzero")
# Finding -> words, any of which an automatic term holds where it is present.
CARZERO = {
  name: (name.lower(), *more)
  for name, *more in (
    ("Atelectasis", "atelectases"),
    ("Cardiomegaly",),
    ("Effusion",),
    ("Infiltration", "infiltrate"),
    ("Mass",),
    ("Nodule",),
    ("Pneumonia",),
    ("Pneumothorax",),
    ("Edema",),
    ("Emphysema",),
    ("Fibrosis",),
    ("Pleural_Thickening", "pleural thickening"),
    ("Hernia",),
    ("Fracture",),
    ("Opacity",),
    ("Lesion",),
    ("Calcified Granuloma",),
    ("Granuloma",),
  )
}
_FOLDER, _ARCHIVE, _PROJECTIONS = "ecgen-radiology", "NLMCXR_reports.tgz", "indiana_projections.csv"
_TEXT = ("findings", "impression")  # the sections that training reads


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
  automatic: str  # its automatic terms, in lower case


def open_source(source: str, *, views: str = "all", labels: str = "terms") -> Source:
  """Lists the images of all reports. Raises SourceError, also for one uId or image twice.

  Args:
    views: "all", or "frontal", which needs indiana_projections.csv.
    labels: "terms", or "carzero": the findings of `CARZERO`, 1 or 0.
  """
  root = folders.folder(source, "ecgen-radiology or NLMCXR_reports.tgz, and the images")
  folders.check_option("views", views, VIEWS)
  folders.check_option("labels", labels, LABELS)
  view_of = _views(root)
  if views == "frontal" and view_of is None:
    raise SourceError(f"{root}: views='frontal' needs {_PROJECTIONS}, Kaggle's table of the views")
  png, dcm = folders.file_names(root, ".png"), folders.file_names(root, ".dcm")
  listing = Listing()
  items, counts = listing.items, listing.counts
  for name, report in _reports(root, listing):
    text = " ".join(text for section, text in report.sections if section in _TEXT)
    counts["reports"] += 1
    counts["without an image"] += not report.image_ids
    counts["without findings and impression"] += not text
    counts["with XXXX in them"] += "XXXX" in text
    for image_id in report.image_ids:
      short = _short(image_id)
      view = (view_of or {}).get(short, "")
      if views == "frontal" and view != "FRONTAL":
        counts["not frontal"] += 1
        continue
      file = png.get(f"{image_id}.png") or png.get(f"{short}.dcm.png") or dcm.get(f"{short}.dcm")
      key, split = f"{image_id} ({name})", draw_split(report.uid)
      row = _Row(file or f"NLMCXR_png/{image_id}.png", report.sections)
      known = report.labels if labels == "terms" else _carzero(report.automatic)
      item = Item(key, split, report.uid, row, image_id, view, known)
      if items.setdefault(image_id, item) is not item:
        raise SourceError(f"{root}: {item.key} is an image of {items[image_id].key} too")
  if not items:
    raise SourceError(f"{root}: the reports name no image")
  _add_notes(listing, views_known=view_of is not None)
  return listing.source("openi", functools.partial(_read, root=root))


def _add_notes(listing: Listing, *, views_known: bool) -> None:
  listing.note_split("no official split: drawn by uId")
  counts = listing.counts
  for name, remark in (
    ("without an image", ""),
    ("without findings and impression", "; their images have no text"),
    ("with XXXX in them", ""),
  ):
    listing.note(f"reports {name}: {{}} of {{}}{remark}", counts[name], counts["reports"])
  aside = counts["not frontal"]
  total = aside + len(listing.items)
  listing.note("views left aside that are not frontal: {} of {}", aside, total)
  if not views_known:
    listing.note(f"no {_PROJECTIONS}: views are unknown, laterals are among the images")


def _short(image_id: str) -> str:
  """Returns the name of an image's DICOM file: "1_IM-0001" of "CXR1_1_IM-0001"."""
  return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", image_id)


def _views(root: Path) -> dict[str, str] | None:
  """Maps short names to "FRONTAL" or "LATERAL"; None where there is no table."""
  path = root / _PROJECTIONS
  if not path.exists():
    return None
  view_of = {}
  for row in tables.read(path, ("filename", "projection")):
    view = row.one_of("projection", ("Frontal", "Lateral"))
    view_of[row.text("filename").removesuffix(".png").removesuffix(".dcm")] = view.upper()
  return view_of


def _reports(root: Path, listing: Listing) -> Iterator[tuple[str, _Report]]:
  """Reads file name and report, by number; lists damaged ones as left out."""
  name_of: dict[str, str] = {}
  for name, data in _files(root, listing):
    try:
      report = _parse(data)
    except (ElementTree.ParseError, UnreadableError) as error:
      listing.leave_out(name, f"not a report: {error}")
      continue
    if report.uid in name_of:
      raise SourceError(f"{root}: {name_of[report.uid]} and {name} have the uId {report.uid}")
    name_of[report.uid] = name
    yield name, report


def _files(root: Path, listing: Listing) -> Iterator[tuple[str, bytes]]:
  """Reads the XML files, by number, from the folder or else the archive."""
  folder, archive = root / _FOLDER, root / _ARCHIVE
  if folder.is_dir():
    for name in sorted((path.name for path in folder.glob("*.xml")), key=_number):
      try:
        yield name, folders.read_bytes(root, f"{_FOLDER}/{name}")
      except UnreadableError as error:
        listing.leave_out(name, str(error))
    return
  try:
    with tarfile.open(folders.find(root, _ARCHIVE, hint=f"or unpack it: {_FOLDER}")) as tar:
      members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".xml")]
      files = [(Path(member.name).name, tar.extractfile(member).read()) for member in members]
  except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
    raise SourceError(
      f"{archive}: cannot be read to its end ({error}); download it again"
    ) from None
  yield from sorted(files, key=lambda file: _number(file[0]))


def _number(name: str) -> tuple[int, str]:
  return len(name), name


def _parse(data: bytes) -> _Report:
  """Parses a report. Raises ParseError, and UnreadableError where the XML is no report."""
  xml = ElementTree.fromstring(data)
  uid = xml.find("uId")
  if uid is None or not uid.get("id"):
    raise UnreadableError("it has no uId")
  texts = (
    (node.get("Label", "").lower(), " ".join("".join(node.itertext()).split()))
    for node in xml.iter("AbstractText")
  )
  sections = reports.named_sections(texts)
  automatic = [(node.text or "").strip() for node in xml.iter("automatic")]
  terms = [(node.text or "").split("/")[0].strip() for node in xml.iter("major")] + automatic
  labels = {term: 1 for term in terms if term not in ("", "No Indexing")}
  image_ids = dict.fromkeys(node.get("id", "") for node in xml.iter("parentImage"))
  if "" in image_ids:
    raise UnreadableError("a parentImage has no id")
  return _Report(
    uid.get("id"),
    tuple(image_ids),
    tuple(sections.items()),
    tuple(labels.items()),
    "|".join(automatic).lower(),
  )


def _carzero(automatic: str) -> tuple[tuple[str, int], ...]:
  """Labels the findings of `CARZERO` by the automatic terms of a report."""
  return tuple(
    (name, int(any(word in automatic for word in words))) for name, words in CARZERO.items()
  )


def _read(item: Item, *, root: Path) -> Example:
  image = folders.read_bytes(root, item.row.file)
  if item.row.file.endswith(".dcm"):
    image, _ = dicom.to_image(image)
  sections = dict(item.row.sections)
  text = {name: text for name, text in sections.items() if name in _TEXT}
  return build_example(
    item,
    image,
    study_id=item.patient_id,
    sections=sections,
    sentences=tuple(reports.report_sentences(text)),
  )
