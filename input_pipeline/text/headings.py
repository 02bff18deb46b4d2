"""Headings of radiology reports, and the section that each opens; one table for all readers.

The names of sections, most headings and the rule that a heading which says how the image was taken
("CHEST, TWO VIEWS") opens the findings are of the section parser of MIMIC's authors (MIT-LCP,
mimic-cxr/txt/section_parser.py). Misspelt headings are named by their likeness (theirs is a list),
and one that says why the image was taken ("REASON FOR CHEST X-RAY", "CHEST PAIN") opens the
indication.
"""

import difflib
import html
import re
from collections.abc import Iterable

BODY = "last_paragraph"  # body of a report that no heading opens
READ = ("findings", BODY, "impression")  # sections that training reads
ALSO_READ = ("", *READ, "addendum")  # in reports of other form than MIMIC's
OF_PATIENT = ("indication", "history", "patient", "signature")  # say nothing of the image

# Section -> headings that are those of no rule below, or are understood in small letters too.
_HEADINGS = {
  "findings": """findings; finding; report; final report; radiology report; body; body of report;
    observation; observations; description; narrative; result; results; exam findings;
    chest findings; radiographic findings; imaging findings; additional findings;
    other findings; incidental findings; chest x-ray; chest x ray; chest xray; chest radiograph;
    cxr""",
  "impression": """impression; impressions; conclusion; conclusions; summary; opinion; assessment;
    interpretation; diagnosis; final diagnosis; radiological diagnosis; imp;
    findings and impression;
    findings/impression; findings / impression; findings & impression; impression and findings;
    impression/findings; impression and recommendation; impression and recommendations;
    impression/recommendation; final impression""",
  "indication": """indication; indications; indication for exam; indication for study;
    clinical indication; clinical indications; reason; reason for exam; reason for examination;
    reason for study; reason for visit; reason for test; reason for procedure; reason for order;
    reason for referral; reason for x-ray; reason for chest x-ray; reason for this examination;
    reason for this exam; clinical question; question; complaint; chief complaint;
    presenting complaint; symptom; symptoms; signs and symptoms; referral; request""",
  "history": """history; clinical history; patient history; medical history; past medical history;
    surgical history; clinical information; clinical info; clinical data; clinical details;
    clinical notes; clinical statement; clinical background; background; history of present illness;
    hx; pmh; pfi; history and indication; indication and history""",
  "comparison": """comparison; comparisons; comparison exam; comparison exams; comparison film;
    comparison study; comparison studies; compared to; prior; prior exam; prior exams; prior study;
    prior studies; previous; previous study; previous studies; reference exam; correlation""",
  "examination": """examination; exam; exams; type of exam; type of examination; type of study;
    exam type; study; study type; study description; procedure; exam description; modality;
    title""",
  "technique": """technique; techniques; view; views; number of views; projection; projections;
    protocol; procedure comments; contrast; dose; exposure; technical factors""",
  "recommendations": """recommendations; recommendation; recommendation(s); advice; suggestion;
    suggestions; plan; follow up; follow-up""",
  "notification": """notification; notifications; communication; critical result; critical results;
    critical findings communication""",
  "addendum": "addendum; addenda",
  "date": "date; time; exam date; date of exam; date of examination; study date; date of study",
  "wet read": "wet read; wetread; preliminary read",
  "patient": """patient; patient name; patient id; name; age; sex; gender; mrn; dob; date of birth;
    accession number; accession""",
  "signature": """end of impression; end of report; dictated by; transcribed by; signed by; read by;
    electronically signed by; reported by; approved by; verified by; radiologist; physician;
    attending; resident""",
}
_KNOWN = {
  " ".join(heading.split()): section
  for section, headings in _HEADINGS.items()
  for heading in headings.split(";")
}
# Whose diagnosis it is that the request states.
_REQUESTED = """preoperative; pre-operative; pre-op; preop; pre op; postoperative; post-operative;
  post-op; postop; post op; preprocedure; pre-procedure; postprocedure; post-procedure; working;
  clinical; admitting; admission; provisional; presumptive; presumed; suspected; known; ordering;
  referring; referral; discharge"""
_KNOWN |= {
  f"{whose.strip()} {noun}": "indication"
  for whose in _REQUESTED.split(";")
  for noun in ("diagnosis", "diagnoses", "dx")
}
# Those of them that a statement may begin with too: "View: there is a large effusion".
_ORDINARY = re.compile(
  r"results?|body|description|narrative|observations?|cxr|chest (?:x[- ]?ray|radiograph)"
  r"|(?:additional|other|incidental) findings|study|procedure|modality|title|views?|projections?"
  r"|protocol|contrast|dose|exposure|prior|previous|compared to|correlation|question|background"
  r"|advice|suggestions?|plan|follow[- ]up|critical results?|communication|date|time|patient|name"
  r"|age|sex|gender|radiologist|physician|attending|resident"
)
_PARTS_OF_NAMES = ("impression", "findings", "history", "comparison", "addendum", "indication")
_REASON = re.compile(
  r"\b(?:reason|pain|cough|fevers?|dyspnea|shortness of breath|sob|hypoxia|symptoms?|complaint"
  r"|clinical|rule out|status post|question|evaluate)\b"
)
_IMAGE = re.compile(
  r"\b(?:cxr|chest(?! (?:tubes?|wall)\b)|portable|ribs|bone window|upright"
  r"|(?:one|two|three|frontal|lateral|pa|ap) views?|(?:pa|ap|frontal) and|lateral and (?:pa|ap))\b"
)
_BESIDE_IMAGE = re.compile(
  r"cxr|chest|x|rays?|x-?rays?|radiographs?|films?|images?|pa|ap|views?|projections?|portable"
  r"|mobile|bedside|erect|upright|supine|frontal|lateral|single|one|two|three|[123]|and|of|the"
  r"|findings?|report|exam|examination|study|results?"
)
_ORGANS = re.compile(
  r"chest|cxr|thorax|lungs?|airways?|trachea|pleurae?|pleural|heart|cardiac|cardiomediastin\w+"
  r"|mediastin\w+|hil[ai]r?|vasculature|aorta|diaphragms?|bones?|osseous|musculoskeletal|skeleton"
  r"|spine|abdomen|tubes?|lines?|catheters?|devices?|hardware|tissues?"
)
_BESIDE_ORGANS = re.compile(
  r"and|or|the|of|soft|wall|fields|bony|structures|spaces|pulmonary|thoracic|upper|lower|left|right"
  r"|support|silhouette|contours|size"
)
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
_LIKENESS = 0.8  # of difflib, 1 is equal
# These are headings alone on their line, and at the end of a text without a stop before them.
_USUAL = ("findings", "impression", "conclusion", "report", "comparison", "indication", "history")
_ENDING = re.compile(
  rf"(?<=\s)(?:Findings|Impression|Conclusion|{'|'.join(_USUAL).upper()}|TECHNIQUE)$"
)
_ALONE = {*_USUAL, "technique", "examination", "final report"} | {
  name for name, section in _KNOWN.items() if section in ("indication", "history") and " " in name
}
# These take a dash for a colon: "Clinical indication - cough", unless capitals and a colon follow.
_PLAIN = "|".join(re.escape(heading) for heading in _KNOWN if not _ORDINARY.fullmatch(heading))
_DASH = re.compile(
  rf"^([ \t*#]*(?=[A-Z])(?i:{_PLAIN}))"
  r"[ \t*]+[-\u2013\u2014]+(?=\s)(?![^a-z\n]*:)",
  re.MULTILINE,
)
_TAGGED = re.compile(rf">\s*(?i:{_PLAIN})\s*[:<]")
_BREAK = re.compile(r"</?(?:br|p|div|li|ul|ol|h[1-6]|tr|table)\b[^<>\n]*>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|u|strong|em|span|font|td|th|tbody)(?:\s[^<>\n]*)?>", re.IGNORECASE)
_LONGEST = max(map(len, _KNOWN))
_CAPITALS = re.compile(r"(?<=\s)(?=[A-Z][^a-z]+$)")


def section(heading: str) -> str | None:
  """Returns the section that a heading, without its colon, opens; None where it opens none.

  In small letters only the table's headings are headings: others may be the begin of a sentence.
  """
  name = _fold(heading)
  if name.startswith("reason for "):
    return "indication"
  if name in _KNOWN or not heading.isupper():
    return _KNOWN.get(name)
  for part in _PARTS_OF_NAMES:
    if part in name:
      return part
  if _REASON.search(name):
    return "indication"
  if alike := difflib.get_close_matches(name, _HEADINGS, n=1, cutoff=_LIKENESS):
    return alike[0]
  return "findings" if _IMAGE.search(name) else None


def plain(text: str) -> str:
  """Gives headings their colons: without HTML tags, for the full-width one, for a dash."""
  text = "\n".join(text.replace("\uff1a", ":").splitlines())
  if _TAGGED.search(text):
    text = html.unescape(_TAG.sub("", _BREAK.sub("\n", text))).replace("\xa0", " ")
  return _DASH.sub(r"\1:", text)


def names_organ(heading: str) -> bool:
  """Tells whether a heading ("LUNGS", "Lines and tubes") is the subject of a finding."""
  words = re.findall(r"\w+", heading.lower())
  others = [word for word in words if not _ORGANS.fullmatch(word)]
  return len(others) < len(words) and all(map(_BESIDE_ORGANS.fullmatch, others))


def names_image(heading: str) -> bool:
  """Tells whether a heading says, in any case, how the image was taken, and nothing else."""
  name = _fold(heading)
  words = re.findall(r"\w[\w-]*", name)
  return bool(_IMAGE.search(name)) and all(map(_BESIDE_IMAGE.fullmatch, words))


def stands_alone(line: str) -> bool:
  """Tells whether a line without a colon is a heading: "FINDINGS", "Clinical history"."""
  return _fold(line) in _ALONE


def find(text: str) -> tuple[int, str] | None:
  """Finds the heading that a text before a colon is or ends with; returns its start and section.

  Only the usual ones end a text without a stop before them: "Shortness of breath FINDINGS".
  """
  name = section(text)
  if _fold(text) in _KNOWN:
    return 0, name
  if (ending := _ENDING.search(text)) and (last := section(ending.group())) != name:
    return ending.start(), last
  if name:
    return 0, name
  for match in _CAPITALS.finditer(text, max(0, len(text) - _LONGEST)):
    if name := _KNOWN.get(_fold(text[match.start() :])):
      return match.start(), name
  return None


def split(text: str, titles: Iterable[tuple[int, int, str]], first: str) -> list[tuple[str, str]]:
  """Splits a report into (section, text), in its order; texts may be empty.

  A heading that names an organ ("LUNGS") stays with its text, and opens the findings where it
  stands in a section that is not read. Where nothing is headed findings, so does one in small
  letters that says how the image was taken ("Chest X-ray PA view"), and the text before the
  impression, or else the end, is a BODY from its first blank line on. An ordinary word, such as
  "Time", ends no section that is read, but in capitals at the start of a line.

  Args:
    titles: start and end (behind the colon) in the text, and words, of what may be headings.
    first: section of the text before the first heading; if "", that is read.
  """
  opened, last = [(0, 0, first)], 0
  named = [(start, end, title, section(title)) for start, end, title in titles]
  headed = any(name == "findings" for *_, name in named)
  for start, end, title, name in named:
    before = text[max(0, last - 1) : start].strip(" \t*#")  # with the colon of the last title
    last, within = end, opened[-1][-1]
    if name and not (within in ALSO_READ and _is_word(title, name, before, within)):
      opened.append((start, end, name))
    elif within not in ("", *READ) and names_organ(title):
      opened.append((start, start, "findings"))
    elif within not in ALSO_READ and not headed and before[-1:] != ":" and names_image(title):
      opened.append((start, end, "findings"))
  ends = [*(start for start, _, _ in opened[1:]), len(text)]
  parts = [(name, text[i:j].strip(" \t\n*#")) for (_, i, name), j in zip(opened, ends, strict=True)]
  if not any(name == "findings" and part for name, part in parts):
    impressions = (i for i, (name, part) in enumerate(parts) if name == "impression" and part)
    last = next(impressions, len(parts)) - 1
    name, part = parts[last] if last >= 0 else ("", "")
    if name not in ("", *READ) and (blank := _BLANK_LINE.search(part)):
      parts[last : last + 1] = [(name, part[: blank.start()]), (BODY, part[blank.end() :])]
  return parts


def _is_word(title: str, name: str, before: str, within: str) -> bool:
  """Tells whether what may be a heading is an ordinary word of the section that it stands in.

  Such a word is a heading in capitals at the start of a line, and where it begins the report and
  opens what is read or speaks of the patient.
  """
  heading = _fold(title)
  ordinary = _ORDINARY.fullmatch(heading) or (name not in READ and heading not in _KNOWN)
  begins_line = title.isupper() and before[-1:] in ("", "\n")
  begins_report = within == "" and not before.strip() and name in (*READ, *OF_PATIENT)
  return ordinary and not begins_line and not begins_report


def _fold(heading: str) -> str:
  return " ".join(heading.lower().split())


def join(parts: list[tuple[str, str]]) -> dict[str, str]:
  """Joins the texts of each section; a blank line between, which ends a sentence."""
  texts: dict[str, list[str]] = {}
  for name, part in parts:
    if part:
      texts.setdefault(name, []).append(part)
  return {name: "\n\n".join(several) for name, several in texts.items()}
