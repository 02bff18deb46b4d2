"""Reader of VinDr-CXR (Nguyen et al. 2022), and of VinBigData, its training part on Kaggle.

PhysioNet's folder:

  annotations/annotations_train.csv   image_id, rad_id, class_name, x_min, y_min, x_max, y_max
  annotations/annotations_test.csv    the same without rad_id: the consensus of five readers
  annotations/image_labels_train.csv, image_labels_test.csv   a row a film (and reader), 0 or 1 a
                                      finding; optional
  train/*.dicom, test/*.dicom

Kaggle's folder: train.csv (as annotations_train.csv, with class_id) and train/*.dicom or *.dcm.

Each training film was read by three radiologists. A finding is 1 where two or more of them name it,
-1 (uncertain) where one does, else 0; of the test films, as the consensus says. "No finding" is a
label like the others, but no label of a reader who names a finding of the same film. The test
films' "Other disease" takes the name that training gives it, "Other diseases". The boxes of a film
and finding are fused (`fusion`) to one region; boxes of a finding that is uncertain are left aside,
since a region is what a phrase truly speaks of. Every film is a patient of its own, as far as the
data tell. Of the training films, a tenth, drawn by image_id, is validation; Kaggle's folder, whose
test films have no labels, gives test films by draw too (80/10/10).
"""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline import box_fusion, dicom, raw, tables
from input_pipeline.raw import SourceError
from input_pipeline.readers import boxes
from input_pipeline.source import Item, Source, draw, draw_split
from input_pipeline.stored import image_size
from input_pipeline.study import Study, UnreadableError

NO_FINDING = "No finding"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_VALIDATION = 0.1
_READER = ("rad_id", "rad_ID")
_SPELLINGS = {"Other disease": "Other diseases"}
_SUFFIXES = (".dicom", ".dcm")


@dataclass(frozen=True)
class _Row:
  folder: str
  fusion: str
  boxes: tuple[tuple[str, str, boxes.Corners], ...]  # label, reader, corners


class _Film:
  """What the tables say of one film: finding -> its readers, and boxes."""

  def __init__(self, place: str):
    self.place = place
    self.named: dict[str, set[str]] = {}
    self.readers: set[str] = set()
    self.boxes: dict[tuple[str, str, boxes.Corners], None] = {}


def open_source(source: str, *, fusion: str = "weighted") -> Source:
  """Lists the films.

  Args:
    source: the folder.
    fusion: a name of box_fusion.FUSIONS: "weighted", "largest" or "every".

  Raises SourceError: a table is missing or damaged, or a cell cannot be right.
  """
  root = raw.folder(source, "VinDr-CXR's annotations, or VinBigData's train.csv")
  if fusion not in box_fusion.FUSIONS:
    raise SourceError(f"fusion is {fusion!r}; it must be one of {', '.join(box_fusion.FUSIONS)}")
  kaggle = not (root / "annotations").is_dir()
  parts = {"train": raw.find(root, "train.csv", what="or annotations/, see the module") if kaggle
           else raw.find(root, "annotations/annotations_train.csv")}  # fmt: skip
  if not kaggle:
    parts["test"] = raw.find(root, "annotations/annotations_test.csv")
  items, left_out, notes, aside = [], [], [], 0
  for part, table in parts.items():
    films, broken, told = _films(table, root, part)
    left_out += broken
    notes += told
    names = sorted({name for film in films.values() for name in film.named})
    for image_id, film in films.items():
      split = part
      if kaggle:
        split = draw_split(image_id)
      elif part == "train" and draw(image_id) < _VALIDATION:
        split = "validation"
      labels = {name: _label(film, name) for name in names}
      kept = tuple(box for box in film.boxes if labels[box[0]] == 1)
      aside += len(film.boxes) - len(kept)
      items.append(
        Item(
          f"{image_id} ({film.place})", split, image_id, _Row(part, fusion, kept),
          image_id, "", tuple(labels.items()),
        )
      )  # fmt: skip
  if aside:
    notes.append(f"boxes of findings that one reader alone names, left aside: {aside}")
  counts = Counter(item.split for item in items)
  shares = ", ".join(f"{split} {count}" for split, count in sorted(counts.items()))
  notes.append(f"{'splits' if kaggle else 'validation'} drawn by image_id ({shares})")
  study = functools.partial(_read, root=root)
  return Source("vindr", items, study, tuple(notes), tuple(left_out))


def _films(
  table: Path, root: Path, part: str
) -> tuple[dict[str, _Film], list[tuple[str, str]], list[str]]:
  """Image id -> film, what was left out, and notes."""
  films: dict[str, _Film] = {}
  left_out, twice = [], 0
  for row in tables.read(table, ("image_id", "class_name", *_CORNERS)):
    image_id, name, reader = row.text("image_id"), row.text("class_name"), _reader(row, part)
    film = films.setdefault(image_id, _Film(row.place))
    film.readers.add(reader)
    numbers = row.numbers(*_CORNERS)
    if (numbers is None) != (name == NO_FINDING):
      raise row.wrong("x_min", f"empty for {NO_FINDING!r}, and a number for all else")
    film.named.setdefault(name, set()).add(reader)
    if numbers is None:
      continue
    x0, y0, x1, y1 = numbers
    if x0 >= x1 or y0 >= y1:
      reason = f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {name} is empty"
      left_out.append((f"{image_id} ({row.place})", reason))
      continue
    box = (name, reader, numbers)
    twice += box in film.boxes
    film.boxes[box] = None
  notes = [f"{table.name}: boxes given twice by a reader, dropped: {twice}"] if twice else []
  labels = root / "annotations" / f"image_labels_{part}.csv"
  if labels.exists():
    _add_labels(labels, films, part)
  if doubted := sum(map(_doubt, films.values())):
    notes.append(f"{table.name}: readers who name a finding and {NO_FINDING!r}: {doubted}")
  return films, left_out, notes


def _reader(row: tables.Row, part: str) -> str:
  """Who read the film. The consensus of the test films counts as one reader."""
  column = next((name for name in _READER if name in row), None)
  if column:
    return row.text(column)
  if part == "train":  # the first to name a finding would pass for all three
    raise SourceError(
      f"{row.file}: no column {_READER[0]!r}; the training films need their readers"
    )
  return "consensus"


def _add_labels(table: Path, films: dict[str, _Film], part: str) -> None:
  """Findings that have no box, such as "Pneumonia", from the labels of whole films."""
  for row in tables.read(table, ("image_id",)):
    film = films.setdefault(row.text("image_id"), _Film(row.place))
    reader = _reader(row, part)
    film.readers.add(reader)
    for name in row:
      if name not in ("image_id", *_READER):
        readers = film.named.setdefault(_SPELLINGS.get(name, name), set())
        if row.label(name) == 1:
          readers.add(reader)


def _doubt(film: _Film) -> int:
  """Takes "No finding" from the readers who name a finding; how many they are."""
  nothing = film.named.get(NO_FINDING, set())
  something = set().union(*(film.named[name] for name in film.named if name != NO_FINDING))
  doubted = nothing & something
  nothing -= doubted
  return len(doubted)


def _label(film: _Film, name: str) -> int:
  """1, 0, or -1 where one of several readers names the finding."""
  count = len(film.named.get(name, ()))
  return -1 if count == 1 < len(film.readers) else int(count > 0)


def _read(item: Item, *, root: Path) -> Study:
  row = item.row
  names = [f"{row.folder}/{item.image_id}{suffix}" for suffix in _SUFFIXES]
  image, view = dicom.to_film(
    raw.read_bytes(root, next((name for name in names if (root / name).exists()), names[0]))
  )
  width, height = image_size(image)
  found: dict[str, tuple[list[boxes.Corners], list[str]]] = {}
  for label, reader, corners in row.boxes:
    clipped = boxes.clip(corners, width, height)
    if clipped is None:
      raise UnreadableError(
        f"the box {corners} of {label} lies outside its {width} x {height} film"
      )
    found.setdefault(label, ([], []))[0].append(clipped)
    found[label][1].append(reader)
  fuse = box_fusion.FUSIONS[row.fusion]
  fused = [
    (label, tuple(box))
    for label, (corners, readers) in found.items()
    for box in fuse(np.array(corners), np.array(readers)).tolist()
  ]
  return Study(
    image=image,
    width=width,
    height=height,
    image_id=item.image_id,
    study_id=item.image_id,
    patient_id=item.patient_id,
    view=view,
    labels=dict(item.labels),
    regions=boxes.by_label(fused),
  )
