"""Reports of the phantom: what they say of an image's findings, and which of their words name one."""

import re
from dataclasses import dataclass

import numpy as np

from input_pipeline.phantom.anatomy import LEFT
from input_pipeline.phantom.findings import FINDINGS, LOWER, MID, Finding, fractured_rib, place
from input_pipeline.text import reports

MAX_WORDS = 64  # of the sentences that training reads
_MAX_SENTENCES = 9

# How each finding may be named. A slot that stays empty takes its blank along. {side} is "left",
# {zone} an adjective ("left basal"), {place} a phrase with the side ("in the left lower zone").
_NAMES = {
  "effusion": (
    "a {size} {side} pleural effusion",
    "a {size} {side} effusion",
    "{size} {side} pleural fluid",
    "{size} blunting of the {side} costophrenic angle",
  ),
  "consolidation": (
    "{size} {side} {zone} consolidation",
    "a {size} airspace opacity {place}",
    "{size} {side} {zone} airspace disease",
    "a {size} infiltrate {place}",
    "{size} pneumonic opacification {place}",
  ),
  "nodule": (
    "a {size} nodule {place}",
    "a {size} {side} {zone} pulmonary nodule",
    "a {size} nodular density {place}",
    "a {size} coin lesion {place}",
  ),
  "mass": (
    "a {size} mass {place}",
    "a {size} {side} {zone} lung mass",
    "a {size} mass-like opacity {place}",
    "a {size} space-occupying lesion {place}",
  ),
  "pneumothorax": (
    "a {size} {side} pneumothorax",
    "a {size} {side} apical pneumothorax",
    "{size} {side} apical pleural air",
    "a {size} pneumothorax on the {side}",
  ),
  "atelectasis": (
    "{size} linear atelectasis {place}",
    "{size} {side} {zone} plate-like atelectasis",
    "a {size} band-like opacity {place}",
    "{size} {side} {zone} subsegmental collapse",
  ),
  "cardiomegaly": (
    "{size} cardiomegaly",
    "{size} enlargement of the heart",
    "{size} enlargement of the cardiac silhouette",
    "{size} cardiac enlargement",
  ),
  "edema": (
    "{size} interstitial edema",
    "{size} bilateral pulmonary edema",
    "{size} bilateral perihilar haze",
    "{size} pulmonary vascular congestion",
  ),
  "tube": (
    "an endotracheal tube above the carina",
    "an ET tube in the midline",
    "a tracheal tube above the carina",
    "an endotracheal tube in the trachea",
  ),
  "pacemaker": (
    "a {side} pectoral pacemaker",
    "a {side} chest wall pacemaker with a lead",
    "a {side} cardiac device generator",
    "a pulse generator over the {side} upper chest",
  ),
  "fracture": (
    "a {size} fracture of the {side} {rib} rib",
    "a {size} {side} rib fracture",
    "a {size} cortical break of the {side} {rib} rib",
    "a {size} {side} {zone} rib fracture",
  ),
  "hernia": (
    "a {size} hiatal hernia",
    "a {size} hiatus hernia",
    "a {size} retrocardiac air-fluid level",
    "a {size} intrathoracic stomach",
  ),
}
_BOTH_EFFUSIONS = (
  "{size} bilateral pleural effusions",
  "{size} bilateral effusions",
  "{size} pleural fluid on both sides",
  "{size} blunting of both costophrenic angles",
)
_SMALL_TO_LARGE = ("small", "moderate", "large")
_SIZES = {
  "nodule": ("tiny", "small", "larger"),
  "mass": ("moderate", "large", "bulky"),
  "atelectasis": ("short", "minor", "long"),
  "cardiomegaly": ("mild", "moderate", "marked"),
  "edema": ("mild", "moderate", "extensive"),
  "fracture": ("slightly displaced", "displaced", "widely displaced"),
}
_RIBS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_ZONES = (("upper zone", "upper lung"), ("mid zone", "mid lung"), ("lower zone", "basal"))
_PLACES = (
  ("in the {side} upper zone", "in the {side} upper lung"),
  ("in the {side} mid zone", "in the {side} mid lung"),
  ("in the {side} lower zone", "at the {side} base"),
)
# u below which a shadow is also "perihilar" (middle third) or "retrocardiac" (left base).
_PERIHILAR, _RETROCARDIAC = 0.4, 0.3
_SIZE_SHARE = 0.65  # of the names that hold a size word
_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_SIDE = re.compile(r"\b(?:" + "|".join(_OTHER_SIDE) + r")\b")

_CERTAIN = (
  "There is {name}.",
  "{name} is seen.",
  "{name} is present.",
  "The film shows {name}.",
  "{name} is noted.",
)
_UNSURE = (
  "Possible {bare}.",
  "There may be {name}.",
  "{name} cannot be excluded.",
  "Findings suspicious for {name}.",
  "Questionable {bare}.",
)
_IMPRESSIONS = ("{bare}.", "{bare} as described.", "Findings consistent with {name}.")
_UNSURE_IMPRESSIONS = ("Possible {bare}.", "Probable {bare}.")

# Denials with the findings that they deny; each is used only where all of them are absent.
_DENIALS = (
  ("No pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
  ("There is no pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
  ("No pneumothorax is seen.", ("pneumothorax",)),
  ("There is no pleural fluid.", ("effusion",)),
  ("There is no focal consolidation.", ("consolidation",)),
  ("No airspace opacity or pulmonary edema.", ("consolidation", "edema")),
  ("No suspicious pulmonary nodule or mass.", ("nodule", "mass")),
  ("There is no pulmonary vascular congestion.", ("edema",)),
  ("No displaced rib fracture is identified.", ("fracture",)),
  ("No linear atelectasis.", ("atelectasis",)),
  ("The heart size is normal.", ("cardiomegaly",)),
  ("The cardiac silhouette is not enlarged.", ("cardiomegaly",)),
  ("There is no hiatal hernia.", ("hernia",)),
)
# Statements on anatomy that deny no finding by name, with the findings that would make them false.
_LUNG_FINDINGS = ("consolidation", "nodule", "mass", "atelectasis", "edema", "pneumothorax")
_NORMAL = (
  ("The lungs are clear.", _LUNG_FINDINGS + ("effusion",)),
  ("The mediastinal contours are within normal limits.", ("hernia", "cardiomegaly")),
  ("The bony thorax is intact.", ("fracture",)),
  ("The pulmonary vasculature is unremarkable.", ("edema",)),
  ("The costophrenic angles are sharp.", ("effusion",)),
)
_FILLERS = (
  "Clinical correlation is recommended.",
  "Comparison is made with the prior study.",
  "Single frontal view of the chest was obtained.",
  "The technique is adequate for interpretation.",
  "No prior films are available for comparison.",
)
_ADVICE = (
  "Clinical correlation is recommended.",
  "Follow-up radiograph is recommended.",
  "Findings were discussed with the referring physician.",
  "Computed tomography may be considered if clinically indicated.",
)
# Whole reports of normal images: their exact repetition is part of the problem.
_NORMAL_REPORTS = (
  (
    (
      "The heart size is normal.",
      "The lungs are clear.",
      "No pleural effusion or pneumothorax.",
      "The bony thorax is intact.",
    ),
    ("No acute cardiopulmonary abnormality.",),
  ),
  (
    (
      "Single frontal view of the chest was obtained.",
      "The lungs are clear.",
      "There is no pleural effusion or pneumothorax.",
      "The mediastinal contours are within normal limits.",
    ),
    ("Normal chest radiograph.",),
  ),
  (
    (
      "The heart size is normal.",
      "There is no focal consolidation.",
      "No pneumothorax is seen.",
      "There is no pleural fluid.",
      "Comparison is made with the prior study.",
    ),
    ("No acute disease.",),
  ),
)
_NORMAL_IMPRESSIONS = ("No acute cardiopulmonary abnormality.", "No acute disease.")
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
  """Reports on an image with these findings; `view` is "PA" or "AP"."""
  labels = {finding.name: -1 if finding.hedged else 1 for finding in findings}
  if not findings and rng.random() < _REPEATED_SHARE:
    stated, concluded = _NORMAL_REPORTS[rng.integers(len(_NORMAL_REPORTS))]
    sections = {"findings": list(stated), "impression": list(concluded)}
    return Report(sections, (), labels | _denied(stated))

  phrases = [_name(rng, finding) for finding in findings]
  stated = [
    _sentence(_pick(rng, _UNSURE if finding.hedged else _CERTAIN), phrase)
    for finding, phrase in zip(findings, phrases, strict=True)
  ]
  concluded = []
  for i in sorted(rng.permutation(len(findings))[:2]):  # an impression names the main findings
    frames = _UNSURE_IMPRESSIONS if findings[i].hedged else _IMPRESSIONS
    concluded.append(_sentence(_pick(rng, frames), _name(rng, findings[i])))
  if not findings:
    concluded.append(_pick(rng, _NORMAL_IMPRESSIONS))
  if rng.random() < 0.35:
    concluded.append(_pick(rng, _ADVICE))

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
  """Makes the given shares of reports untrue in one sentence each; see `phantom.study`."""
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
      stated[spot % len(stated)] = _sentence(_pick(rng, _CERTAIN), _name(rng, false))
  if swapped < swapped_side_fraction:
    sided = [(s, i) for s in sections for i, text in enumerate(sections[s]) if _SIDE.search(text)]
    if sided:
      section, i = sided[turn % len(sided)]
      sections[section][i] = _SIDE.sub(lambda side: _OTHER_SIDE[side.group()], sections[section][i])
  return sections


def word_kinds(sentence: str) -> list[str]:
  """What each word of a phantom sentence does: "finding", "attribute" or "other".

  "finding" words name a finding that the image shows (or may show), "attribute" words say where it
  lies or how large it is. All words of denials, of remarks on technique and the like are "other".
  One entry a span of `reports.words(sentence)`.
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
  """A noun phrase with its article, true of the finding."""
  both = finding.name == "effusion" and finding.side == 0
  pattern = _pick(rng, _BOTH_EFFUSIONS if both else _NAMES[finding.name])
  sizes = _SIZES.get(finding.name, _SMALL_TO_LARGE)
  slots = {"side": "left" if finding.side == LEFT else "right"}
  slots["size"] = sizes[min(int(finding.size * 3), 2)] if rng.random() < _SIZE_SHARE else ""
  if finding.zone is not None:
    zones, places = _ZONES[finding.zone], _PLACES[finding.zone]
    if finding.at[0] < _PERIHILAR and finding.zone == MID:
      zones, places = zones + ("perihilar",), places + ("in the {side} perihilar region",)
    if finding.at[0] < _RETROCARDIAC and (finding.side, finding.zone) == (LEFT, LOWER):
      zones, places = zones + ("retrocardiac",), places + ("in the {side} retrocardiac region",)
    slots["zone"] = _pick(rng, zones)
    slots["place"] = _pick(rng, places).format(**slots)
  if finding.name == "fracture":
    slots["zone"] = _ZONES[finding.zone][0]
    slots["rib"] = _RIBS[fractured_rib(finding) - 1]
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
  """True sentences that name nothing visible, in an order of chance; no finding denied twice."""
  chosen: list[str] = []
  denied: set[str] = set()
  for i in rng.permutation(len(_DENIALS)):
    text, names = _DENIALS[i]
    if not present & set(names) and not denied & set(names):
      chosen.append(text)
      denied.update(names)
  chosen += [text for text, spoilers in _NORMAL if not present & set(spoilers)]
  chosen = [chosen[i] for i in rng.permutation(len(chosen))]
  if rng.random() < 0.5:
    chosen.insert(0, _pick(rng, _FILLERS))
  return chosen


def _denied(stated) -> dict[str, int]:
  denials = dict(_DENIALS)
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
    *(text for text, _ in _DENIALS + _NORMAL),
    *_FILLERS,
    *_ADVICE,
    *_NORMAL_IMPRESSIONS,
    *(text for report in _NORMAL_REPORTS for section in report for text in section),
  )
}
_FUNCTION_WORDS = {"a", "an", "above", "at", "in", "of", "on", "over", "the", "with"}
_ATTRIBUTES = (
  _vocabulary(word for words in (*_SIZES.values(), _SMALL_TO_LARGE, _RIBS) for word in words)
  | _vocabulary(text for texts in _ZONES + _PLACES for text in texts)
  | _vocabulary(["left right both sides bilateral apical perihilar retrocardiac region pectoral"])
  | _vocabulary(["chest wall carina midline trachea"])
) - _FUNCTION_WORDS
_FINDING_WORDS = (
  _vocabulary(text for texts in (*_NAMES.values(), _BOTH_EFFUSIONS) for text in texts)
  - _ATTRIBUTES
  - _FUNCTION_WORDS
)
