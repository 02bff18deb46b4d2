"""Is a data set sound? One look at every record, then questions to what was seen (ours)."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline import duplicates, images, records, reports
from input_pipeline.records import RecordError
from input_pipeline.study import SPLITS, Study, check

ERROR, WARNING = "error", "warning"
EXAMPLES = 10
_CHUNK = 256  # records a task
_FLAT = 2.0  # grey levels: a film with less spread is as good as constant
_SHORT_PX = 100
_LATERAL = ("LATERAL", "LL", "RL", "LLD", "RLD")
_MARKS = re.compile(r"X{3,}|_{3,}|\[\*\*.*?\*\*\]")  # where something was removed for privacy
_LETTER = re.compile(r"[^\W\d_]")


class Film(NamedTuple):
  """What is kept of a record; about two kilobytes.

  Attributes:
    split, number: where it is.
    image_id, study_id, patient_id, view, text_kind: of the study.
    labels: name -> 1, 0 or -1.
    regions: labels of its regions.
    text: 16 bytes that equal texts share; b"" without words.
    begin: of the text, to show.
    marks: of de-identification in the text.
    letterless: sentences without a letter.
    pixels: 16 bytes that equal pictures share.
    thumbnail: uint8 [32, 32].
    spread: standard deviation, in grey levels.
    polarity: see `polarity`.
    short_px: the short side.
    wrong: what contradicts itself, or "".
  """

  split: str
  number: int
  image_id: str
  study_id: str
  patient_id: str
  view: str
  text_kind: str
  labels: dict[str, int]
  regions: tuple[str, ...]
  text: bytes
  begin: str
  marks: int
  letterless: int
  pixels: bytes
  thumbnail: np.ndarray
  spread: float
  polarity: float
  short_px: int
  wrong: str


class Broken(NamedTuple):
  """A record that cannot be read."""

  split: str
  number: int
  reason: str


@dataclass(frozen=True)
class Problem:
  """Something found.

  Attributes:
    level: ERROR or WARNING.
    name: what it is.
    count: how often.
    of: of how many.
    examples: lines to read, EXAMPLES at most.
    films: films to look at, in pairs where two belong together.
  """

  level: str
  name: str
  count: int
  of: int
  examples: tuple[str, ...] = ()
  films: tuple[Film, ...] = ()


def tasks(folder: Path) -> list[tuple[Path, str, int, int]]:
  """The records of a folder in chunks, for `look`. Raises RecordError where it is incomplete."""
  return [
    (Path(folder), split, start, min(start + _CHUNK, count))
    for split, count in records.splits(folder).items()
    for start in range(0, count, _CHUNK)
  ]


def look(task: tuple[Path, str, int, int]) -> list[Film | Broken]:
  """Looks at the records of a task, in order."""
  folder, split, start, stop = task
  source = records.RecordSource(folder, split)
  found = []
  for number in range(start, stop):
    try:
      study = source[number]
      found.append(_film(study, split, number))
    except (RecordError, ValueError) as error:
      found.append(Broken(split, number, str(error)))
  return found


def polarity(thumbnail: np.ndarray) -> float:
  """How much brighter spine, abdomen and chest are than lungs and corners; below 0: inverted.

  For frontal films, in standard deviations of the thumbnail, and turning its sign with it. Of 1,338
  and 967 real frontal films one is below 0, and that one is inverted where it was published.
  """
  z = thumbnail.astype(np.float32)
  z = (z - z.mean()) / max(float(z.std()), 1e-3)
  lungs = (z[6:18, 6:11].mean() + z[6:18, 21:26].mean()) / 2
  corners = (z[:4, :4].mean() + z[:4, -4:].mean()) / 2
  middle = z[6:24, 13:19].mean() + z[24:, 8:24].mean() - 2 * lungs
  return float(middle + z[8:24, 8:24].mean() - corners)


def _film(study: Study, split: str, number: int) -> Film:
  pixels = images.decode(study.image)
  wrong = ""
  try:
    check(study)
    if pixels.shape != (study.height, study.width):
      wrong = f"the image is {pixels.shape[1]} x {pixels.shape[0]}, not as it says"
    for region in study.regions:
      if region.mask and not (images.decode(region.mask) > 0).any():
        wrong = f"the mask of {region.label!r} is empty"
  except ValueError as error:
    wrong = str(error)
  text = " ".join(study.sentences)
  words = reports.normalise(text)
  thumbnail = duplicates.thumbnail(pixels)
  return Film(
    split, number, study.image_id, study.study_id, study.patient_id, study.view, study.text_kind,
    study.labels, tuple(region.label for region in study.regions),
    _digest(words.encode()) if words else b"", text[:100], len(_MARKS.findall(text)),
    sum(not _LETTER.search(sentence) for sentence in study.sentences),
    _digest(pixels.tobytes() + str(pixels.shape).encode()), thumbnail, float(pixels.std()),
    polarity(thumbnail), min(pixels.shape), wrong,
  )  # fmt: skip


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=16).digest()


def problems(films: Sequence[Film], broken: Sequence[Broken]) -> list[Problem]:
  """All that is wrong, errors first; nothing that is fine."""
  total = len(films) + len(broken)
  found = [
    _of_broken(broken, total),
    _listed(ERROR, "records that contradict themselves", films, lambda f: f.wrong),
    *(
      _shared(ERROR, f"{name} in two splits", films, lambda f, n=name: getattr(f, f"{n}_id"))
      for name in ("patient", "study")
    ),
    _twice(films),
    *_same_pictures(films),
    _listed(WARNING, "films without text", films, lambda f: "" if f.text else "no words"),
    _repeated(films),
    _shared(WARNING, "texts that stand in two splits", films, lambda f: f.text),
    _listed(
      WARNING, "constant films", films, lambda f: _said(f.spread < _FLAT, f"spread {f.spread:.1f}")
    ),
    _listed(
      WARNING, "films that seem inverted", films,
      lambda f: _said(
        f.polarity < 0 and f.spread >= _FLAT and f.view not in _LATERAL,
        f"polarity {f.polarity:.2f}",
      ),
    ),
    _listed(
      WARNING, "texts with marks of de-identification", films,
      lambda f: _said(f.marks, f"{f.marks} marks"),
    ),
    _listed(
      WARNING, "sentences without a letter", films, lambda f: _said(f.letterless, str(f.letterless))
    ),
    _listed(
      WARNING, f"films under {_SHORT_PX} px", films,
      lambda f: _said(f.short_px < _SHORT_PX, f"{f.short_px} px"),
    ),
  ]  # fmt: skip
  return sorted((p for p in found if p and p.count), key=lambda p: p.level != ERROR)


def leaks(films: Sequence[Film], others: Sequence[Film]) -> list[Problem]:
  """What the training films of one set share with the evaluation films of the other, both ways."""
  found = []
  for name, one, two in (("", films, others), (" (the other way)", others, films)):
    train = [f for f in one if f.split == "train"]
    held = [f for f in two if f.split != "train"]
    for level, what, key in (
      (ERROR, "patients", lambda f: f.patient_id),
      (ERROR, "studies", lambda f: f.study_id),
      (ERROR, "images by id", lambda f: f.image_id),
      (ERROR, "the same pictures", lambda f: f.pixels),
      (WARNING, "the same texts", lambda f: f.text),
    ):
      there: dict = {}
      for film in train:
        there.setdefault(key(film), film)
      met = [(there[key(f)], f) for f in held if key(f) and key(f) in there]
      found.append(
        _pairs(level, f"training and evaluation share {what}{name}", met, len(held), pictures=True)
      )
    found.append(_near_leaks(train, held, name))
  return sorted((p for p in found if p and p.count), key=lambda p: p.level != ERROR)


def counts(films: Sequence[Film]) -> dict[str, dict[str, Counter]]:
  """Title -> row -> what is counted, by split: the tables of a set."""
  tables: dict[str, dict[str, Counter]] = {"": defaultdict(Counter)}
  for film in films:
    tables[""]["films"][film.split] += 1
    tables[""]["with text"][film.split] += bool(film.text)
    tables[""]["with regions"][film.split] += bool(film.regions)
  for name in ("study", "patient"):
    for split in SPLITS:
      ids = {getattr(f, f"{name}_id") for f in films if f.split == split}
      tables[""][{"study": "studies", "patient": "patients"}[name]][split] = len(ids)
  for title, keys in (
    ("view", lambda f: [f.view or "(none)"]),
    ("kind of text", lambda f: [f.text_kind] if f.text else []),
    ("label", lambda f: [n for n, v in f.labels.items() if v == 1]),
    ("label, uncertain", lambda f: [n for n, v in f.labels.items() if v == -1]),
    ("label, absent", lambda f: [n for n, v in f.labels.items() if v == 0]),
    ("region", lambda f: f.regions),
  ):
    rows: dict[str, Counter] = defaultdict(Counter)
    for film in films:
      for key in keys(film):
        rows[key][film.split] += 1
    tables[title] = dict(sorted(rows.items(), key=lambda row: -row[1].total()))
  return {title: rows for title, rows in tables.items() if rows}


def _said(condition: object, text: str) -> str:
  return text if condition else ""


def _name(film: Film) -> str:
  return f"{film.split} {film.image_id}"


def _of_broken(broken: Sequence[Broken], total: int) -> Problem:
  lines = (f"{b.split} record {b.number}: {b.reason}" for b in broken[:EXAMPLES])
  return Problem(ERROR, "records that cannot be read", len(broken), total, tuple(lines))


def _listed(
  level: str, name: str, films: Sequence[Film], why: Callable[[Film], str]
) -> Problem | None:
  """The films of which `why` says something."""
  chosen = [(film, told) for film in films if (told := why(film))]
  lines = tuple(f"{_name(film)}: {told}" for film, told in chosen[:EXAMPLES])
  return Problem(
    level, name, len(chosen), len(films), lines, tuple(f for f, _ in chosen[:EXAMPLES])
  )


def _shared(level: str, name: str, films: Sequence[Film], key: Callable[[Film], object]) -> Problem:
  """Keys that films of several splits have in common."""
  first: dict = {}
  met: dict = {}
  for film in films:
    if key(film) and first.setdefault(key(film), film).split != film.split:
      met.setdefault(key(film), film)
  lines = (f"{_name(first[k])} and {_name(film)}" for k, film in list(met.items())[:EXAMPLES])
  return Problem(level, name, len(met), len(first), tuple(lines))


def _twice(films: Sequence[Film]) -> Problem:
  many = [(i, n) for i, n in Counter(f.image_id for f in films).items() if n > 1]
  lines = tuple(f"{image_id}: {n} times" for image_id, n in many[:EXAMPLES])
  return Problem(ERROR, "image ids that stand twice", len(many), len(films), lines)


def _repeated(films: Sequence[Film]) -> Problem:
  """Texts of several studies, most frequent first."""
  studies: dict[bytes, set[str]] = defaultdict(set)
  begin = {}
  for film in films:
    if film.text:
      studies[film.text].add(film.study_id)
      begin.setdefault(film.text, film.begin)
  many = sorted(((len(s), t) for t, s in studies.items() if len(s) > 1), reverse=True)
  lines = tuple(f"{n} times: {begin[text]}" for n, text in many[:EXAMPLES])
  return Problem(WARNING, "texts that several studies share", len(many), len(studies), lines)


def _same_pictures(films: Sequence[Film]) -> Iterator[Problem]:
  """Equal and nearly equal pictures, across splits and within one."""
  same: dict[bytes, list[int]] = defaultdict(list)
  for i, film in enumerate(films):
    same[film.pixels].append(i)
  equal = [(group[0], i) for group in same.values() for i in group[1:]]
  # Constant films are all alike, and told of elsewhere.
  near = _near([film for film in films if film.spread >= _FLAT])
  known = {(films[i].pixels, films[j].pixels) for i, j in equal}
  near = [(a, b) for a, b in near if a.pixels != b.pixels and (a.pixels, b.pixels) not in known]
  pairs = {"the same picture": [(films[i], films[j]) for i, j in equal],
           "nearly the same picture": near}  # fmt: skip
  for name, met in pairs.items():
    across = [(a, b) for a, b in met if a.split != b.split]
    within = [(a, b) for a, b in met if a.split == b.split]
    yield _pairs(ERROR, f"{name} in two splits", across, len(films), pictures=True)
    yield _pairs(WARNING, f"{name} twice in a split", within, len(films), pictures=True)


def _near(films: Sequence[Film]) -> list[tuple[Film, Film]]:
  if len(films) < 2:
    return []
  found = duplicates.near_pairs(np.stack([film.thumbnail for film in films]))
  return [(films[i], films[j]) for i, j in found.tolist()]


def _near_leaks(train: Sequence[Film], held: Sequence[Film], name: str) -> Problem:
  both = [film for film in (*train, *held) if film.spread >= _FLAT]
  mine = {id(film) for film in train}
  met = [
    (a, b) for a, b in _near(both) if (id(a) in mine) != (id(b) in mine) and a.pixels != b.pixels
  ]
  what = f"training and evaluation share nearly the same pictures{name}"
  return _pairs(ERROR, what, met, len(held), pictures=True)


def _pairs(
  level: str, name: str, met: Iterable[tuple[Film, Film]], of: int, *, pictures: bool
) -> Problem:
  met = list(met)
  lines = tuple(f"{_name(a)} and {_name(b)}" for a, b in met[:EXAMPLES])
  films = tuple(film for pair in met[:EXAMPLES] for film in pair) if pictures else ()
  return Problem(level, name, len(met), of, lines, films)
