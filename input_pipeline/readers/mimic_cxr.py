"""Reader of MIMIC-CXR: the images of MIMIC-CXR-JPG with the reports of MIMIC-CXR.

The source is a folder that holds PhysioNet's projects, each with or without its version's folder
(`mimic-cxr-jpg/2.0.0/...`), or the folder in which "wget -r" made `physionet.org/files`:

  mimic-cxr-jpg/  mimic-cxr-*-metadata.csv.gz, -split.csv.gz, -chexpert.csv.gz, -negbio.csv.gz,
                  files/p10/p10000032/s50414267/DICOM_ID.jpg
  mimic-cxr/      mimic-cxr-reports.zip (read in place), or files/p10/p10000032/s50414267.txt
  ms-cxr/         optional: whose patients to leave out of training (see `ms_cxr`)
  radgraph/       optional: MIMIC-CXR_graphs.json, whose entities come along

Tables may also lie there unpacked (.csv). A project, or its "files", may be a link to another disk.

An image is an example, with its study's report; sections and sentences are `mimic_reports`',
entities `radgraph`'s. Splits are the official ones. Labels are the study's, by published names;
what its row leaves blank is unknown, as are all of a study without a row. An image without a row in
the table of splits is left out and listed. One without its report's file cannot be read; a report
without words is legal. Left aside: views that the option does not name, and acquisition data.
"""

import functools
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline.example import Example, UnreadableError
from input_pipeline.readers import chexpert
from input_pipeline.readers import ms_cxr as ms_cxr_reader
from input_pipeline.readers.raw import folders, physionet, radgraph, tables
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, Source, build_example
from input_pipeline.text import mimic_reports

LABELS = tuple(sorted(chexpert.LABELS))
_FRONTAL = ("AP", "PA")
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_IDS = ("subject_id", "study_id")


@dataclass(frozen=True, slots=True)
class _Image:
  study_id: str
  graph: radgraph.Place | None


def open_source(
  source: str, *, views: str = "frontal", labels: str = "chexpert", ms_cxr: str = "exclude"
) -> Source:
  """Lists the images. Raises SourceError, also where two rows contradict.

  Args:
    views: "frontal" (AP and PA) or "all".
    labels: labeler of the table, "chexpert" or "negbio".
    ms_cxr: "exclude" leaves the patients of MS-CXR out of the training split, "keep" keeps them.
  """
  folders.check_option("views", views, ("frontal", "all"))
  folders.check_option("labels", labels, ("chexpert", "negbio"))
  folders.check_option("ms_cxr", ms_cxr, ("exclude", "keep"))
  root = folders.folder(source, "mimic-cxr-jpg and mimic-cxr")
  images = physionet.find(root, "mimic-cxr-jpg", "files")
  texts = physionet.find(root, "mimic-cxr", "mimic-cxr-reports.zip", "files")
  if texts.suffix == ".zip":
    _open_archive(texts)  # for its errors; those who read reports open it for themselves
  rows = _unique(_table(root, "metadata"), ("dicom_id", "ViewPosition", *_IDS), _view)
  splits = _unique(_table(root, "split"), ("dicom_id", "split", *_IDS), _split)
  labels_of = _unique(_table(root, labels), (*_IDS, *LABELS), _labels)
  listing = Listing()
  excluded = _patients_of_ms_cxr(root, listing) if ms_cxr == "exclude" else set()
  aside, in_ms_cxr = Counter(), Counter()
  for dicom_id, (patient_id, study_id, view) in rows.items():
    path = f"files/{physionet.stem(patient_id, study_id)}/{dicom_id}.jpg"
    if views == "frontal" and view not in _FRONTAL:
      aside[view or "not known"] += 1
      continue
    if dicom_id not in splits:
      listing.leave_out(path, "the table of splits has no row for it")
      continue
    *ids, split = splits[dicom_id]
    if ids != [patient_id, study_id]:
      raise SourceError(
        f"{root}: image {dicom_id} is of patient {patient_id}, study {study_id} by the metadata, of"
        f" patient {ids[0]}, study {ids[1]} by the table of splits"
      )
    if split == "train" and patient_id in excluded:
      in_ms_cxr[patient_id] += 1
      continue
    row, study_labels = _Image(study_id, None), labels_of.get((patient_id, study_id), ())
    listing.items[dicom_id] = Item(path, split, patient_id, row, dicom_id, view, study_labels)
  graphs = _add_graphs(root, listing)
  studies = {(item.patient_id, item.row.study_id) for item in listing.items.values()}
  listed = ", ".join(f"{view} {count}" for view, count in aside.most_common())
  listing.note("views left aside: {} of {} images ({})", aside.total(), len(rows), listed)
  if excluded:
    listing.note(
      f"left out of train, for MS-CXR has images of theirs: {in_ms_cxr.total()} images of"
      f" {len(in_ms_cxr)} patients (ms_cxr=keep keeps them)"
    )
  unlabelled = len(studies - labels_of.keys())
  listing.note(f"studies that {labels} does not label: {{}} of {{}}", unlabelled, len(studies))
  unknown = len(splits.keys() - rows.keys())
  listing.note("images in the table of splits that the metadata lacks: {}", unknown)
  read = functools.partial(_read, images=images, texts=texts, graphs=graphs)
  return listing.source("mimic_cxr", read)


def _patients_of_ms_cxr(root: Path, listing: Listing) -> set[str]:
  """Reads the patients of MS-CXR, where the download holds it."""
  if physionet.has(root, "ms-cxr"):
    return {row.patient_id for row in ms_cxr_reader.annotations(root)}
  listing.note(
    "there is no ms-cxr: its patients could not be left out of training, so that an evaluation on"
    " MS-CXR would leak"
  )
  return set()


def _add_graphs(root: Path, listing: Listing) -> Path | None:
  """Adds the places of RadGraph's entries to the items; returns its file, None without one."""
  if not physionet.has(root, "radgraph"):
    return None
  file = physionet.find(root, "radgraph", "MIMIC-CXR_graphs.json")
  report_of = {
    name: f"{physionet.stem(item.patient_id, item.row.study_id)}.txt"
    for name, item in listing.items.items()
  }
  reports = set(report_of.values())
  places = radgraph.places(file, reports)
  listing.note(f"studies with RadGraph's entities: {len(places)} of {len(reports)}")
  for name, item in listing.items.items():
    if place := places.get(report_of[name]):
      listing.items[name] = replace(item, row=_Image(item.row.study_id, place))
  return file


def _table(root: Path, name: str) -> Path:
  return physionet.find(
    root, "mimic-cxr-jpg", f"mimic-cxr-*-{name}.csv.gz", f"mimic-cxr-*-{name}.csv"
  )


def _unique(path: Path, columns: Sequence[str], parse: Callable[[tables.Row], tuple]) -> dict:
  """Reads a table by its key. `parse` makes key and value of a row.

  A row that stands twice counts once. Raises SourceError where two rows of a key differ.
  """
  values = {}
  for row in tables.read(path, columns):
    key, value = parse(row)
    if values.setdefault(key, value) != value:
      first = next(other.number for other in tables.read(path, columns) if parse(other)[0] == key)
      raise SourceError(
        f"{path}: rows {first} and {row.number} say different things of"
        f" {key if isinstance(key, str) else ', '.join(key)}"
      )
  if not values:
    raise SourceError(f"{path}: there is no row below the column names")
  return values


def _view(row: tables.Row) -> tuple[str, tuple[str, str, str]]:
  return _name(row, "dicom_id"), (*_ids(row), sys.intern(row["ViewPosition"]))


def _split(row: tables.Row) -> tuple[str, tuple[str, str, str]]:
  return _name(row, "dicom_id"), (*_ids(row), _SPLITS[row.one_of("split", tuple(_SPLITS))])


def _labels(row: tables.Row) -> tuple[tuple[str, str], tuple[tuple[str, int], ...]]:
  return _ids(row), _shared(row.labels(LABELS))


def _ids(row: tables.Row) -> tuple[str, ...]:
  return tuple(_name(row, column) for column in _IDS)


def _name(row: tables.Row, column: str) -> str:
  # Three tables name each image and study: one copy of a name is enough.
  return sys.intern(row.text(column))


@functools.cache
def _shared(labels: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
  """Returns the first of all equal labels, of which there are some thousand, one copy."""
  return labels


def _read(item: Item, *, images: Path, texts: Path, graphs: Path | None) -> Example:
  """Reads an example. Raises UnreadableError; SourceError where RadGraph's file has changed."""
  stem = physionet.stem(item.patient_id, item.row.study_id)
  image = folders.read_bytes(images, f"{stem}/{item.image_id}.jpg")
  sections = mimic_reports.sections(folders.text(_read_report(texts, f"{stem}.txt")))
  sentences = tuple(mimic_reports.sentences(sections))
  entities = ()
  if item.row.graph:
    entities, _ = radgraph.entities(radgraph.entry(graphs, item.row.graph), sentences)
  return build_example(
    item,
    image,
    study_id=item.row.study_id,
    sections=sections,
    sentences=sentences,
    entities=entities,
  )


def _read_report(texts: Path, name: str) -> bytes:
  """Reads a report from the zip or the folder. Raises UnreadableError."""
  if texts.suffix != ".zip":
    return folders.read_bytes(texts, name)
  archive, files = _archive(texts)
  try:
    return archive.read(files + name)
  except KeyError:
    raise UnreadableError(f"{texts} holds no {files}{name}") from None
  except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
    raise UnreadableError(f"{texts}: {files}{name} cannot be read ({error})") from error


def _open_archive(path: Path) -> tuple[zipfile.ZipFile, str]:
  """Opens the reports' archive, and finds its "files/". Raises SourceError."""
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError) as error:
    raise SourceError(f"{path}: cannot be opened ({error}); download it again") from None
  for name in archive.namelist():
    before, folder, _ = name.partition("files/p")
    if folder:
      return archive, f"{before}files/"
  raise SourceError(f"{path}: holds no files/p10/p10000032/s50414267.txt; download it again")


_archive = functools.lru_cache(maxsize=1)(_open_archive)  # once a process
