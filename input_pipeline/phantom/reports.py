"""Reports of the phantom: sentences on an image's findings, and the kind of each of their words."""

import re
from dataclasses import dataclass

import numpy as np

from input_pipeline.phantom import wording
from input_pipeline.phantom.anatomy import LEFT
from input_pipeline.phantom.findings import FINDINGS, LOWER, MID, Finding, fractured_rib, place
from input_pipeline.text import reports

MAX_WORDS = 64  # of the sentences that training reads
_MAX_SENTENCES = 9
# u below which a shadow is also "perihilar" (middle third) or "retrocardiac" (left base).
_PERIHILAR, _RETROCARDIAC = 0.4, 0.3
_SIZE_SHARE = 0.65  # of the names that hold a size word
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_SIDE = re.compile(r"\b(?:" + "|".join(_OTHER_SIDE) + r")\b")
_REPEATED_SHARE = 0.6  # of the normal reports


@dataclass(frozen=True)
class Report:
  """A true report.

  Attributes:
    sections: section name -> its sentences.
    phrases: one a finding, in their order: its name as the findings section words it.
    labels: finding -> 1 present, -1 present but hedged, 0 denied; the others are left out.
  """

  sections: dict[str, list[str]]
  phrases: tuple[str, ...]
  labels: dict[str, int]


def write(rng: np.random.Generator, findings: tuple[Finding, ...], view: str) -> Report:
  """Writes a report on an image with these findings; `view` is "PA" or "AP"."""
  labels = {finding.name: -1 if finding.hedged else 1 for finding in findings}
  if not findings and rng.random() < _REPEATED_SHARE:
    stated, concluded = wording.NORMAL_REPORTS[rng.integers(len(wording.NORMAL_REPORTS))]
    sections = {"findings": list(stated), "impression": list(concluded)}
    return Report(sections, (), labels | _denied(stated))

  phrases = [_name(rng, finding) for finding in findings]
  stated = [
    _sentence(_pick(rng, wording.UNSURE if finding.hedged else wording.CERTAIN), phrase)
    for finding, phrase in zip(findings, phrases, strict=True)
  ]
  concluded = []
  for i in sorted(rng.permutation(len(findings))[:2]):  # an impression names the main findings
    frames = wording.UNSURE_IMPRESSIONS if findings[i].hedged else wording.IMPRESSIONS
    concluded.append(_sentence(_pick(rng, frames), _name(rng, findings[i])))
  if not findings:
    concluded.append(_pick(rng, wording.NORMAL_IMPRESSIONS))
  if rng.random() < 0.35:
    concluded.append(_pick(rng, wording.ADVICE))

  length = rng.integers(28, 50)
  used = _count(stated + concluded)
  for remark in _remarks(rng, set(labels)):
    longer = used + _count([remark])
    if len(stated) + len(concluded) < _MAX_SENTENCES and longer <= length:
      stated.insert(int(rng.integers(len(stated) + 1)), remark)
      used = longer
  while _count(stated + concluded) > MAX_WORDS and len(concluded) > 1:
    concluded.pop()
  sections = {"findings": stated, "impression": concluded}
  if rng.random() < 0.3:
    sections = {"technique": [f"{view} view of the chest."]} | sections
  if rng.random() < 0.2 and not any("prior" in text for text in stated):
    sections = {"comparison": [_pick(rng, ("Prior radiograph.", "Earlier film."))]} | sections
  return Report(sections, tuple(_bare(phrase) for phrase in phrases), labels | _denied(stated))


def corrupt(
  rng: np.random.Generator,
  sections: dict[str, list[str]],
  findings: tuple[Finding, ...],
  wrong_sentence_fraction: float,
  swapped_side_fraction: float,
) -> dict[str, list[str]]:
  """Makes the given shares of reports untrue in one sentence each; see `radiograph.example`."""
  # Every draw happens for every report, so that a larger fraction only adds corrupted reports.
  wrong, swapped, drop = rng.random(3)
  spot, turn, absent = rng.integers(1 << 16, size=3).tolist()
  sections = {name: list(sentences) for name, sentences in sections.items()}
  stated = sections["findings"]
  if wrong < wrong_sentence_fraction:
    naming = [i for i, text in enumerate(stated) if "finding" in word_kinds(text)]
    if naming and drop < 0.5 and len(stated) > 1:
      del stated[naming[spot % len(naming)]]
    else:
      present = {finding.name for finding in findings}
      others = [name for name in FINDINGS if name not in present]
      false = place(others[absent % len(others)], rng)
      stated[spot % len(stated)] = _sentence(_pick(rng, wording.CERTAIN), _name(rng, false))
  if swapped < swapped_side_fraction:
    sided = [(s, i) for s in sections for i, text in enumerate(sections[s]) if _SIDE.search(text)]
    if sided:
      section, i = sided[turn % len(sided)]
      sections[section][i] = _SIDE.sub(lambda side: _OTHER_SIDE[side.group()], sections[section][i])
  return sections


def word_kinds(sentence: str) -> list[str]:
  """Returns the kind of each word of a phantom sentence: "finding", "attribute" or "other".

  "finding" words name a finding that the image shows (or may show), "attribute" words give its
  place or size. All words of denials, of remarks on technique and the like are "other". One entry
  a span of `reports.words(sentence)`.
  """
  words = [sentence[start:end].lower() for start, end in reports.words(sentence)]
  if reports.normalise(sentence) in _REMARKS:
    return ["other"] * len(words)
  kinds = [
    "finding" if word in _FINDING_WORDS else "attribute" if word in _ATTRIBUTES else "other"
    for word in words
  ]
  # Without a finding, "chest" or "left" is no attribute of one.
  return kinds if "finding" in kinds else ["other"] * len(words)


def _name(rng: np.random.Generator, finding: Finding) -> str:
  """Makes a noun phrase with its article, true of the finding."""
  both = finding.name == "effusion" and finding.side == 0
  pattern = _pick(rng, wording.BOTH_EFFUSIONS if both else wording.NAMES[finding.name])
  sizes = wording.SIZES.get(finding.name, wording.SMALL_TO_LARGE)
  slots = {"side": "left" if finding.side == LEFT else "right"}
  slots["size"] = sizes[min(int(finding.size * 3), 2)] if rng.random() < _SIZE_SHARE else ""
  if finding.zone is not None:
    zones, places = wording.ZONES[finding.zone], wording.PLACES[finding.zone]
    if finding.at[0] < _PERIHILAR and finding.zone == MID:
      zones, places = zones + ("perihilar",), places + ("in the {side} perihilar region",)
    if finding.at[0] < _RETROCARDIAC and (finding.side, finding.zone) == (LEFT, LOWER):
      zones, places = zones + ("retrocardiac",), places + ("in the {side} retrocardiac region",)
    slots["zone"] = _pick(rng, zones)
    slots["place"] = _pick(rng, places).format(**slots)
  if finding.name == "fracture":
    slots["zone"] = wording.ZONES[finding.zone][0]
    slots["rib"] = wording.RIBS[fractured_rib(finding) - 1]
  phrase = " ".join(pattern.format(**slots).split())
  return re.sub(r"^a (?=[aeiou])", "an ", phrase)


def _bare(name: str) -> str:
  return re.sub(r"^an? ", "", name)


def _sentence(frame: str, name: str) -> str:
  if re.search(r"\beffusions\b", name):
    frame = re.sub(r"\bis\b", "are", frame)
  text = frame.format(name=name, bare=_bare(name))
  return text[0].upper() + text[1:]


def _remarks(rng: np.random.Generator, present: set[str]) -> list[str]:
  """Draws true sentences that name nothing visible, in random order; no finding denied twice."""
  chosen: list[str] = []
  denied: set[str] = set()
  for i in rng.permutation(len(wording.DENIALS)):
    text, names = wording.DENIALS[i]
    if not present & set(names) and not denied & set(names):
      chosen.append(text)
      denied.update(names)
  chosen += [text for text, spoilers in wording.NORMAL if not present & set(spoilers)]
  chosen = [chosen[i] for i in rng.permutation(len(chosen))]
  if rng.random() < 0.5:
    chosen.insert(0, _pick(rng, wording.FILLERS))
  return chosen


def _denied(stated) -> dict[str, int]:
  denials = dict(wording.DENIALS)
  return {name: 0 for text in stated for name in denials.get(text, ())}


def _pick(rng: np.random.Generator, choices):
  return choices[rng.integers(len(choices))]


def _count(sentences: list[str]) -> int:
  return sum(len(reports.words(text)) for text in sentences)


def _vocabulary(texts) -> set[str]:
  bare = (re.sub(r"\{\w+\}", " ", text) for text in texts)
  return {word for text in bare for word in reports.normalise(text).split()}


_REMARKS = {
  reports.normalise(text)
  for text in (
    *(text for text, _ in wording.DENIALS + wording.NORMAL),
    *wording.FILLERS,
    *wording.ADVICE,
    *wording.NORMAL_IMPRESSIONS,
    *(text for report in wording.NORMAL_REPORTS for section in report for text in section),
  )
}
_FUNCTION_WORDS = {"a", "an", "above", "at", "in", "of", "on", "over", "the", "with"}
_ATTRIBUTES = (
  _vocabulary(
    word
    for words in (*wording.SIZES.values(), wording.SMALL_TO_LARGE, wording.RIBS)
    for word in words
  )
  | _vocabulary(text for texts in wording.ZONES + wording.PLACES for text in texts)
  | _vocabulary(["left right both sides bilateral apical perihilar retrocardiac region pectoral"])
  | _vocabulary(["chest wall carina midline trachea"])
) - _FUNCTION_WORDS
_FINDING_WORDS = (
  _vocabulary(text for texts in (*wording.NAMES.values(), wording.BOTH_EFFUSIONS) for text in texts)
  - _ATTRIBUTES
  - _FUNCTION_WORDS
)
