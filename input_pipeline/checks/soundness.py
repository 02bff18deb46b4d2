"""Soundness of a data set: the findings that the facts of all its records give together.

Errors make metrics wrong: leaks between splits, records that cannot be read or contradict
themselves. Warnings may be meant: repeated reports, odd images.

An image uses less than a tenth of its range where 98 % of its pixels do: a hot pixel, a marker or a
wrong number of bits has squeezed the rest. Images that deviate by less than CONSTANT are neither
compared nor judged further.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.checks import facts
from input_pipeline.checks.duplicates import SIDE_PX, near_pairs
from input_pipeline.checks.facts import ImageFacts, UnreadableRecord, group_by, split_of

CONSTANT = 4.0  # standard deviation in grey levels; the flattest of 1,338 real images has 14.8
SHORT_PX = 128
NARROW = 25.5  # grey levels, a tenth of their range
EXAMPLES = 10  # that a finding keeps


@dataclass(frozen=True)
class Finding:
  """An error or a warning, with examples.

  Attributes:
    level: "error" or "warning".
    name: of the problem, in the plural.
    count: how many have it.
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
  images: tuple[tuple[ImageFacts, ...], ...] = ()

  def counted(self) -> str:
    """Formats the count, the total and their ratio."""
    return f"{self.count} of {self.total} ({100 * self.count / self.total:.2g} %)"


def findings(
  images: Sequence[ImageFacts], unreadable: Sequence[UnreadableRecord] = ()
) -> list[Finding]:
  """Returns all that is wrong or odd within one data set, all splits in order; errors first."""
  duplicates = _Duplicates(images)
  out = [_unreadable(unreadable, len(images) + len(unreadable))]
  for name in facts.PROBLEMS:
    wrong = [image for image in images if any(problem == name for problem, _ in image.problems)]
    lines = [f"{_name(i)}: {t}" for i in wrong for problem, t in i.problems if problem == name]
    groups = [[image] for image in wrong]
    out.append(_finding("error", name, len(images), lines, groups, count=len(wrong)))
  ids = group_by(images, lambda image: image.image_id)
  lines = [" = ".join(map(_name, group)) for group in ids.values() if len(group) > 1]
  out.append(_finding("error", "image ids that occur twice", len(ids), lines))
  out += _shared(images, split_of, "in two splits", ("patient", "study"))
  out += duplicates.findings("error", "in two splits", split_of, crossing=True)
  out += duplicates.findings("warning", "within a split", split_of, crossing=False)
  out.append(_studies_of_two(images))
  out += _text_findings(images)
  out += _image_findings([image for image in images if image.short_px])
  return [finding for finding in out if finding.count]


def leaks(
  images: Sequence[ImageFacts],
  others: Sequence[ImageFacts],
  unreadable: Sequence[UnreadableRecord] = (),
) -> list[Finding]:
  """Returns what two folders share; `unreadable` are records of the other one."""
  both = [*images, *others]
  out = [_unreadable(unreadable, len(others) + len(unreadable))]
  out += _shared(both, _folder, "in both folders", ("patient", "study", "image"))
  out += _Duplicates(both).findings("error", "in both folders", _folder, crossing=True)
  texts = group_by(both, _report)
  leaked = []
  for group in texts.values():
    train = [image for image in group if split_of(image) == "train"]
    rest = [image for image in group if split_of(image) != "train"]
    pairs = ((a, b) for a in train for b in rest if _folder(a) != _folder(b))
    leaked += itertools.islice(pairs, 1)
  lines = [f"{_name(a, True)} = {_name(b, True)}: {_quote(a.text)}" for a, b in leaked]
  name = "reports in the training split of one folder and an evaluation split of the other"
  out.append(_finding("warning", name, len(texts), lines))
  return [finding for finding in out if finding.count]


class _Duplicates:
  """Images grouped by their pixels, and the pairs of groups that are nearly identical."""

  def __init__(self, images: Sequence[ImageFacts]):
    judged = [image for image in images if image.deviation >= CONSTANT]
    self.same = list(group_by(judged, lambda image: image.pixel_hash).values())
    thumbs = b"".join(group[0].thumbnail for group in self.same)
    thumbs = np.frombuffer(thumbs, np.uint8).reshape(-1, SIDE_PX, SIDE_PX)
    self.near = [(self.same[i], self.same[j]) for i, j in near_pairs(thumbs).tolist()]

  def findings(
    self, level: str, where: str, side: Callable[[ImageFacts], str], *, crossing: bool
  ) -> list[Finding]:
    """Returns two findings: duplicates that lie on two sides, or (not crossing) all on one."""
    with_folder = side is _folder
    same = [g for g in self.same if len(g) > 1 and (len(set(map(side, g))) > 1) == crossing]
    if crossing:
      same = [_first_of_each(side, group) for group in same]
    near = []
    for first, second in self.near:
      if (len(set(map(side, first + second))) > 1) == crossing:
        pairs = ((a, b) for a in first for b in second if (side(a) != side(b)) == crossing)
        near += itertools.islice(pairs, 1)
    out = []
    for kind, groups in (("identical", same), ("nearly identical", near)):
      lines = [" = ".join(_name(image, with_folder) for image in group) for group in groups]
      out.append(_finding(level, f"{kind} images {where}", len(self.same), lines, groups))
    return out


def _shared(
  images: Sequence[ImageFacts], side: Callable[[ImageFacts], str], where: str, kinds: Iterable[str]
) -> list[Finding]:
  """Returns findings of patients, studies or images (by their ids) that lie on two sides."""
  out = []
  plural = {"patient": "patients", "study": "studies", "image": "image ids"}
  for kind in kinds:
    groups = group_by(images, lambda image, name=f"{kind}_id": getattr(image, name))
    shared = {key: g for key, g in groups.items() if len(set(map(side, g))) > 1}
    lines = []
    for key, group in shared.items():
      places = (_name(image, side is _folder) for image in _first_of_each(side, group))
      lines.append(f"{key!r}: {', '.join(places)}")
    out.append(_finding("error", f"{plural[kind]} {where}", len(groups), lines))
  return out


def _studies_of_two(images: Sequence[ImageFacts]) -> Finding:
  studies = group_by(images, lambda image: image.study_id)
  lines = []
  for study, group in studies.items():
    patients = dict.fromkeys(image.patient_id for image in group)
    if len(patients) > 1:
      lines.append(f"{study!r}: {', '.join(map(repr, patients))}")
  return _finding("warning", "studies of two patients", len(studies), lines)


def _text_findings(images: Sequence[ImageFacts]) -> list[Finding]:
  empty = [image for image in images if not image.text]
  texts = group_by(images, _report)
  written = sum(map(len, texts.values()))
  repeated = sorted((g for g in texts.values() if len(g) > 1), key=len, reverse=True)
  lines = [f"{len(group)} times: {_quote(group[0].text)}" for group in repeated]
  count = sum(map(len, repeated))
  out = [
    _flagged("images without text", images, empty),
    _finding("warning", "reports that repeat another", written, lines, count=count),
  ]
  across = [group for group in repeated if len(set(map(split_of, group))) > 1]
  lines = []
  for group in across:
    counts = Counter(map(split_of, group)).items()
    lines.append(f"{', '.join(f'{split} {n}' for split, n in counts)}: {_quote(group[0].text)}")
  name, count = "reports that repeat one of another split", sum(map(len, across))
  out.append(_finding("warning", name, written, lines, count=count))
  for i, placeholder in enumerate(facts.PLACEHOLDERS):
    name = f"texts with de-identification placeholders {placeholder}"
    marked = [image for image in images if image.placeholders[i]]
    out.append(_flagged(name, images, marked, lambda image, i=i: f"{image.placeholders[i]} times"))
  bare = [image for image in images if image.letterless]
  return [*out, _flagged("texts with sentences that have no letter", images, bare)]


def _image_findings(images: Sequence[ImageFacts]) -> list[Finding]:
  narrow = [image for image in images if _is_narrow(image)]
  flat = [image for image in images if image.deviation < CONSTANT and not _is_narrow(image)]
  # Lateral images ("LATERAL", "LL") are not judged: there were none to measure the rule on.
  frontal = [image for image in images if not image.view.upper().startswith("L")]
  judged = [image for image in frontal if image.deviation >= CONSTANT]
  inverted = [image for image in judged if image.polarity < 0]
  short = [image for image in images if image.short_px < SHORT_PX]
  cases = (
    ("are constant or nearly so", images, flat, "grey levels deviate by {0.deviation:.1f}"),
    (
      "use less than a tenth of their range",
      images,
      narrow,
      "98 % of the pixels lie within grey levels {0.levels[1]} to {0.levels[2]}",
    ),
    ("seem inverted", judged, inverted, "polarity {0.polarity:.2f}"),
    (f"have a side below {SHORT_PX} px", images, short, "{0.short_px} px"),
  )
  return [
    _flagged(f"images that {name}", candidates, flagged, text.format, show=True)
    for name, candidates, flagged, text in cases
  ]


def _unreadable(unreadable: Sequence[UnreadableRecord], total: int) -> Finding:
  lines = [record.reason for record in unreadable]
  return _finding("error", "records that cannot be read", total, lines)


def _flagged(
  name: str,
  images: Sequence[ImageFacts],
  flagged: Sequence[ImageFacts],
  describe: Callable[[ImageFacts], str] | None = None,
  *,
  show: bool = False,
) -> Finding:
  """Makes a warning of the flagged ones of `images`, each described, and shown on the page."""
  lines = [_name(image) + (f": {describe(image)}" if describe else "") for image in flagged]
  groups = [[image] for image in flagged] if show else ()
  return _finding("warning", name, len(images), lines, groups)


def _is_narrow(image: ImageFacts) -> bool:
  """Tells whether most pixels use less than a tenth of the range, and the image is not constant."""
  low, dark, bright, high = image.levels
  has_range = image.deviation >= CONSTANT or high - low >= NARROW
  return bright - dark < NARROW and has_range


def _finding(
  level: str,
  name: str,
  total: int,
  lines: Sequence[str],
  images: Sequence[Sequence[ImageFacts]] = (),
  *,
  count: int | None = None,
) -> Finding:
  """Makes a finding that counts its lines, or `count`."""
  count = len(lines) if count is None else count
  first = tuple(map(tuple, images[:EXAMPLES]))
  return Finding(level, name, count, total, tuple(lines[:EXAMPLES]), len(lines) > EXAMPLES, first)


def _first_of_each(
  side: Callable[[ImageFacts], str], group: Iterable[ImageFacts]
) -> list[ImageFacts]:
  first = {}
  for image in group:
    first.setdefault(side(image), image)
  return list(first.values())


def _folder(image: ImageFacts) -> str:
  return image.place.folder


def _report(image: ImageFacts) -> str:
  """Returns the text of a radiologist; sentences made from labels repeat by nature."""
  return image.text if image.text_kind == "report" else ""


def _name(image: ImageFacts, with_folder: bool = False) -> str:
  folder = f"{image.place.folder} " if with_folder else ""
  return f"{folder}{image.place.split} {image.image_id!r}"


def _quote(text: str, most: int = 100) -> str:
  return repr(text if len(text) <= most else text[: most - 3] + "...")
