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

from input_pipeline.checks.duplicates import SIDE_PX, near_pairs
from input_pipeline.checks.facts import MARKS, PROBLEMS, Image, Unread

CONSTANT = 4.0  # standard deviation in grey levels; the flattest of 1,338 real images has 14.8
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
    images: the first, those that belong together side by side.
  """

  level: str
  name: str
  count: int
  total: int
  examples: tuple[str, ...] = ()
  more: bool = False
  images: tuple[tuple[Image, ...], ...] = ()

  def counted(self) -> str:
    """How many of how many, in words."""
    return f"{self.count} of {self.total} ({100 * self.count / self.total:.2g} %)"


def findings(images: Sequence[Image], unread: Sequence[Unread] = ()) -> list[Finding]:
  """All that is wrong or odd within one data set, errors first.

  Args:
    images: of all splits, in order.
    unread: the records that could not be read.
  """
  pictures = _Pictures(images)
  out = [_unread(unread, len(images) + len(unread))]
  for name in PROBLEMS:
    wrong = [image for image in images if any(what == name for what, _ in image.problems)]
    lines = [
      f"{_say(image)}: {text}" for image in wrong for what, text in image.problems if what == name
    ]
    out.append(_finding("error", name, len(wrong), len(images), lines, _each(wrong)))
  ids = _together(images, lambda image: image.image_id)
  twice = [group for group in ids.values() if len(group) > 1]
  lines = [" = ".join(map(_say, group)) for group in twice]
  out.append(_finding("error", "image ids that stand twice", len(twice), len(ids), lines))
  out += _shared(images, _split, "in two splits", ("patient", "study"))
  out += pictures.findings("error", "in two splits", _split, crossing=True)
  out += pictures.findings("warning", "within a split", _split, crossing=False)
  out.append(_examples_of_two(images))
  out += _text_findings(images)
  out += _image_findings([image for image in images if image.short_px])
  return [finding for finding in out if finding.count]


def leaks(
  images: Sequence[Image], others: Sequence[Image], unread: Sequence[Unread] = ()
) -> list[Finding]:
  """What two data sets share.

  Args:
    images: of one folder.
    others: of another.
    unread: the records of the other folder that could not be read.
  """
  both = [*images, *others]
  out = [_unread(unread, len(others) + len(unread))]
  out += _shared(both, _folder, "in both folders", ("patient", "study", "image"))
  out += _Pictures(both).findings("error", "in both folders", _folder, crossing=True)
  texts = _together(both, _report)
  found = []
  for group in texts.values():
    train = [image for image in group if _split(image) == "train"]
    rest = [image for image in group if _split(image) != "train"]
    pairs = ((a, b) for a in train for b in rest if _folder(a) != _folder(b))
    found += itertools.islice(pairs, 1)
  lines = [f"{_say(a, True)} = {_say(b, True)}: {_quote(a.text)}" for a, b in found]
  name = "reports in the training split of one folder and an evaluation split of the other"
  out.append(_finding("warning", name, len(found), len(texts), lines))
  return [finding for finding in out if finding.count]


class _Pictures:
  """Images by what they show: the same pixels, or nearly the same."""

  def __init__(self, images: Sequence[Image]):
    judged = [image for image in images if image.deviation >= CONSTANT]
    self.same = list(_together(judged, lambda image: image.picture).values())
    thumbs = b"".join(group[0].thumbnail for group in self.same)
    thumbs = np.frombuffer(thumbs, np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    self.near = [(self.same[i], self.same[j]) for i, j in near_pairs(thumbs).tolist()]

  def findings(
    self, level: str, where: str, side: Callable[[Image], str], *, crossing: bool
  ) -> list[Finding]:
    """Two findings: pictures whose images lie on two sides, or (not crossing) all on one."""
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
      lines = [" = ".join(_say(image, label) for image in group) for group in groups]
      total = len(self.same)
      out.append(_finding(level, name, len(groups), total, lines, groups))
    return out


def _shared(
  images: Sequence[Image], side: Callable[[Image], str], where: str, kinds: Iterable[str]
) -> list[Finding]:
  """Patients, studies or images (by their ids) that lie on two sides."""
  out = []
  plural = {"patient": "patients", "study": "studies", "image": "image ids"}
  for kind in kinds:
    groups = _together(images, lambda image, name=f"{kind}_id": getattr(image, name))
    found = {key: g for key, g in groups.items() if len(set(map(side, g))) > 1}
    lines = []
    for key, group in found.items():
      places = (_say(image, side is _folder) for image in _first_of_each(side, group))
      lines.append(f"{key!r}: {', '.join(places)}")
    out.append(_finding("error", f"{plural[kind]} {where}", len(found), len(groups), lines))
  return out


def _examples_of_two(images: Sequence[Image]) -> Finding:
  examples = _together(images, lambda image: image.study_id)
  found = {}
  for example, group in examples.items():
    patients = dict.fromkeys(image.patient_id for image in group)
    if len(patients) > 1:
      found[example] = patients
  lines = [f"{example!r}: {', '.join(map(repr, patients))}" for example, patients in found.items()]
  return _finding("warning", "studies of two patients", len(found), len(examples), lines)


def _text_findings(images: Sequence[Image]) -> list[Finding]:
  empty = [image for image in images if not image.text]
  out = [_finding("warning", "images without text", len(empty), len(images), map(_say, empty))]
  texts = _together(images, _report)
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
    marked = [image for image in images if image.marks[i]]
    lines = [f"{_say(image)}: {image.marks[i]} times" for image in marked]
    name = f"texts with de-identification marks {mark}"
    out.append(_finding("warning", name, len(marked), len(images), lines))
  bare = [image for image in images if image.letterless]
  name = "texts with sentences that have no letter"
  out.append(_finding("warning", name, len(bare), len(images), map(_say, bare)))
  return out


def _image_findings(images: Sequence[Image]) -> list[Finding]:
  flat = [image for image in images if image.deviation < CONSTANT]
  lines = [f"{_say(image)}: grey levels deviate by {image.deviation:.1f}" for image in flat]
  name = "images that are constant or nearly so"
  out = [_finding("warning", name, len(flat), len(images), lines, _each(flat))]
  # Lateral images ("LATERAL", "LL") are not judged: there were none to measure the rule on.
  frontal = [image for image in images if not image.view.upper().startswith("L")]
  judged = [image for image in frontal if image.deviation >= CONSTANT]
  inverted = [image for image in judged if image.polarity < 0]
  lines = [f"{_say(image)}: polarity {image.polarity:.2f}" for image in inverted]
  name = "images that seem inverted"
  out.append(_finding("warning", name, len(inverted), len(judged), lines, _each(inverted)))
  short = [image for image in images if image.short_px < SHORT_PX]
  lines = [f"{_say(image)}: {image.short_px} px" for image in short]
  name = f"images whose shorter side is below {SHORT_PX} px"
  out.append(_finding("warning", name, len(short), len(images), lines, _each(short)))
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
  images: Sequence[Sequence[Image]] = (),
) -> Finding:
  lines = tuple(lines)
  shown = tuple(map(tuple, images[:EXAMPLES]))
  return Finding(level, name, count, total, lines[:EXAMPLES], len(lines) > EXAMPLES, shown)


def _each(images: Iterable[Image]) -> list[list[Image]]:
  return [[image] for image in images]


def _together(
  images: Iterable[Image], key: Callable[[Image], Hashable]
) -> dict[Hashable, list[Image]]:
  """Images by key; those whose key is empty are left aside."""
  groups = defaultdict(list)
  for image in images:
    if key(image):
      groups[key(image)].append(image)
  return groups


def _first_of_each(side: Callable[[Image], str], group: Iterable[Image]) -> list[Image]:
  first = {}
  for image in group:
    first.setdefault(side(image), image)
  return list(first.values())


def _split(image: Image) -> str:
  return image.place.split


def _folder(image: Image) -> str:
  return image.place.folder


def _report(image: Image) -> str:
  """The text of a radiologist; sentences made from labels repeat by nature."""
  return image.text if image.text_kind == "report" else ""


def _say(image: Image, folder: bool = False) -> str:
  place = f"{image.place.folder} " if folder else ""
  return f"{place}{image.place.split} {image.image_id!r}"


def _quote(text: str, most: int = 100) -> str:
  return repr(text if len(text) <= most else text[: most - 3] + "...")
