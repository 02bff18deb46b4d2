"""Is a data set sound? What the facts of all its records show together.

Errors make figures wrong: leaks between splits, records that cannot be read or contradict
themselves. Warnings may be meant: repeated reports, odd images.

Constant images count as that alone: they are neither compared nor judged further.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.duplicates import SIDE_PX, near_pairs
from input_pipeline.facts import MARKS, PROBLEMS, Film, Unread

CONSTANT = 4.0  # standard deviation in grey levels; the flattest of 1,338 real films has 14.8
SHORT_PX = 128
EXAMPLES = 10  # that a finding keeps


@dataclass(frozen=True)
class Finding:
  """Something that was found.

  Attributes:
    level: "error" or "warning".
    name: what, in the plural.
    count: how many.
    total: of how many.
    examples: the first, a line each.
    more: whether there are further examples.
    films: the first, those that belong together side by side.
  """

  level: str
  name: str
  count: int
  total: int
  examples: tuple[str, ...] = ()
  more: bool = False
  films: tuple[tuple[Film, ...], ...] = ()

  def counted(self) -> str:
    """How many of how many, in words."""
    return f"{self.count} of {self.total} ({100 * self.count / self.total:.2g} %)"


def findings(films: Sequence[Film], unread: Sequence[Unread] = ()) -> list[Finding]:
  """All that is wrong or odd within one data set, errors first.

  Args:
    films: of all splits, in order.
    unread: the records that could not be read.
  """
  pictures = _Pictures(films)
  out = [_unread(unread, len(films) + len(unread))]
  for name in PROBLEMS:
    wrong = [film for film in films if any(what == name for what, _ in film.problems)]
    lines = [
      f"{_say(film)}: {text}" for film in wrong for what, text in film.problems if what == name
    ]
    out.append(_finding("error", name, len(wrong), len(films), lines, _each(wrong)))
  ids = _together(films, lambda film: film.image_id)
  twice = [group for group in ids.values() if len(group) > 1]
  lines = [" = ".join(map(_say, group)) for group in twice]
  out.append(_finding("error", "image ids that stand twice", len(twice), len(ids), lines))
  out += _shared(films, _split, "in two splits", ("patient", "study"))
  out += pictures.findings("error", "in two splits", _split, crossing=True)
  out += pictures.findings("warning", "within a split", _split, crossing=False)
  out.append(_studies_of_two(films))
  out += _text_findings(films)
  out += _image_findings([film for film in films if film.short_px])
  return [finding for finding in out if finding.count]


def leaks(
  films: Sequence[Film], others: Sequence[Film], unread: Sequence[Unread] = ()
) -> list[Finding]:
  """What two data sets share.

  Args:
    films: of one folder.
    others: of another.
    unread: the records of the other folder that could not be read.
  """
  both = [*films, *others]
  out = [_unread(unread, len(others) + len(unread))]
  out += _shared(both, _folder, "in both folders", ("patient", "study", "image"))
  out += _Pictures(both).findings("error", "in both folders", _folder, crossing=True)
  texts = _together(both, _report)
  found = []
  for group in texts.values():
    train = [film for film in group if _split(film) == "train"]
    rest = [film for film in group if _split(film) != "train"]
    pairs = ((a, b) for a in train for b in rest if _folder(a) != _folder(b))
    found += itertools.islice(pairs, 1)
  lines = [f"{_say(a, True)} = {_say(b, True)}: {_quote(a.text)}" for a, b in found]
  name = "reports in the training split of one folder and an evaluation split of the other"
  out.append(_finding("warning", name, len(found), len(texts), lines))
  return [finding for finding in out if finding.count]


class _Pictures:
  """Films by what they show: the same pixels, or nearly the same."""

  def __init__(self, films: Sequence[Film]):
    judged = [film for film in films if film.deviation >= CONSTANT]
    self.same = list(_together(judged, lambda film: film.picture).values())
    thumbs = b"".join(group[0].thumbnail for group in self.same)
    thumbs = np.frombuffer(thumbs, np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    self.near = [(self.same[i], self.same[j]) for i, j in near_pairs(thumbs).tolist()]

  def findings(
    self, level: str, where: str, side: Callable[[Film], str], *, crossing: bool
  ) -> list[Finding]:
    """Two findings: pictures whose films lie on two sides, or (not crossing) all on one."""
    label = side is _folder
    same = [g for g in self.same if len(g) > 1 and (len(set(map(side, g))) > 1) == crossing]
    if crossing:
      same = [_first_of_each(side, group) for group in same]
    near = []
    for one, two in self.near:
      if (len(set(map(side, one + two))) > 1) == crossing:
        pairs = ((a, b) for a in one for b in two if (side(a) != side(b)) == crossing)
        near += itertools.islice(pairs, 1)
    out = []
    for name, groups in ((f"pictures {where}", same), (f"nearly the same pictures {where}", near)):
      lines = [" = ".join(_say(film, label) for film in group) for group in groups]
      total = len(self.same)
      out.append(_finding(level, name, len(groups), total, lines, groups))
    return out


def _shared(
  films: Sequence[Film], side: Callable[[Film], str], where: str, kinds: Iterable[str]
) -> list[Finding]:
  """Patients, studies or images (by their ids) that lie on two sides."""
  out = []
  plural = {"patient": "patients", "study": "studies", "image": "image ids"}
  for kind in kinds:
    groups = _together(films, lambda film, name=f"{kind}_id": getattr(film, name))
    found = {key: g for key, g in groups.items() if len(set(map(side, g))) > 1}
    lines = []
    for key, group in found.items():
      places = (_say(film, side is _folder) for film in _first_of_each(side, group))
      lines.append(f"{key!r}: {', '.join(places)}")
    out.append(_finding("error", f"{plural[kind]} {where}", len(found), len(groups), lines))
  return out


def _studies_of_two(films: Sequence[Film]) -> Finding:
  studies = _together(films, lambda film: film.study_id)
  found = {}
  for study, group in studies.items():
    patients = dict.fromkeys(film.patient_id for film in group)
    if len(patients) > 1:
      found[study] = patients
  lines = [f"{study!r}: {', '.join(map(repr, patients))}" for study, patients in found.items()]
  return _finding("warning", "studies of two patients", len(found), len(studies), lines)


def _text_findings(films: Sequence[Film]) -> list[Finding]:
  empty = [film for film in films if not film.text]
  out = [_finding("warning", "films without text", len(empty), len(films), map(_say, empty))]
  texts = _together(films, _report)
  written = sum(map(len, texts.values()))
  repeated = sorted((g for g in texts.values() if len(g) > 1), key=len, reverse=True)
  lines = [f"{len(group)} times: {_quote(group[0].text)}" for group in repeated]
  count = sum(map(len, repeated))
  out.append(_finding("warning", "reports that say what another says", count, written, lines))
  across = [group for group in repeated if len(set(map(_split, group))) > 1]
  lines = [
    ", ".join(f"{split} {n}" for split, n in Counter(map(_split, group)).items())
    + f": {_quote(group[0].text)}"
    for group in across
  ]
  count = sum(map(len, across))
  name = "reports that say what one of another split says"
  out.append(_finding("warning", name, count, written, lines))
  for i, mark in enumerate(MARKS):
    marked = [film for film in films if film.marks[i]]
    lines = [f"{_say(film)}: {film.marks[i]} times" for film in marked]
    name = f"texts with de-identification marks {mark}"
    out.append(_finding("warning", name, len(marked), len(films), lines))
  bare = [film for film in films if film.letterless]
  name = "texts with sentences that have no letter"
  out.append(_finding("warning", name, len(bare), len(films), map(_say, bare)))
  return out


def _image_findings(films: Sequence[Film]) -> list[Finding]:
  flat = [film for film in films if film.deviation < CONSTANT]
  lines = [f"{_say(film)}: grey levels deviate by {film.deviation:.1f}" for film in flat]
  name = "images that are constant or nearly so"
  out = [_finding("warning", name, len(flat), len(films), lines, _each(flat))]
  # Lateral films ("LATERAL", "LL") are not judged: there were none to measure the rule on.
  frontal = [film for film in films if not film.view.upper().startswith("L")]
  judged = [film for film in frontal if film.deviation >= CONSTANT]
  inverted = [film for film in judged if film.polarity < 0]
  lines = [f"{_say(film)}: polarity {film.polarity:.2f}" for film in inverted]
  name = "images that seem inverted"
  out.append(_finding("warning", name, len(inverted), len(judged), lines, _each(inverted)))
  short = [film for film in films if film.short_px < SHORT_PX]
  lines = [f"{_say(film)}: {film.short_px} px" for film in short]
  name = f"images whose shorter side is below {SHORT_PX} px"
  out.append(_finding("warning", name, len(short), len(films), lines, _each(short)))
  return out


def _unread(unread: Sequence[Unread], total: int) -> Finding:
  lines = [one.reason for one in unread]
  return _finding("error", "records that cannot be read", len(unread), total, lines)


def _finding(
  level: str,
  name: str,
  count: int,
  total: int,
  lines: Iterable[str],
  films: Sequence[Sequence[Film]] = (),
) -> Finding:
  lines = tuple(lines)
  shown = tuple(map(tuple, films[:EXAMPLES]))
  return Finding(level, name, count, total, lines[:EXAMPLES], len(lines) > EXAMPLES, shown)


def _each(films: Iterable[Film]) -> list[list[Film]]:
  return [[film] for film in films]


def _together(films: Iterable[Film], key: Callable[[Film], Hashable]) -> dict[Hashable, list[Film]]:
  """Films by key; those whose key is empty are left aside."""
  groups = defaultdict(list)
  for film in films:
    if key(film):
      groups[key(film)].append(film)
  return groups


def _first_of_each(side: Callable[[Film], str], group: Iterable[Film]) -> list[Film]:
  first = {}
  for film in group:
    first.setdefault(side(film), film)
  return list(first.values())


def _split(film: Film) -> str:
  return film.place.split


def _folder(film: Film) -> str:
  return film.place.folder


def _report(film: Film) -> str:
  """The text of a radiologist; sentences made from labels repeat by nature."""
  return film.text if film.text_kind == "report" else ""


def _say(film: Film, folder: bool = False) -> str:
  place = f"{film.place.folder} " if folder else ""
  return f"{place}{film.place.split} {film.image_id!r}"


def _quote(text: str, most: int = 100) -> str:
  return repr(text if len(text) <= most else text[: most - 3] + "...")
