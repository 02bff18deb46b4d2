"""Reports of MIMIC-CXR: their sections, and the sentences that training reads.

The rules follow the section parser of MIMIC's authors (MIT-LCP, mimic-cxr/txt/section_parser.py):

  - A heading is a run of capitals, blanks and "()/,-" at the start of a line, up to a colon.
  - Headings are named alike ("CONCLUSION" is an impression), misspelt ones by their likeness
    (theirs is a list), and one that says how the image was taken ("CHEST, TWO VIEWS") is findings.
  - Empty findings and impressions count as absent.
  - Where both are absent, the text after the first blank line of the last section is the
    "last_paragraph".

Where we differ: a heading that no rule names ("LUNGS") stays in the text of its section instead of
ending it, a heading that repeats continues its section instead of replacing it, and training reads
findings and impression instead of the impression alone. Their lists of exceptions for some fifty
studies are not used.
"""

import difflib
import re

from input_pipeline.text import reports

_HEADING = re.compile(r"^ ?([A-Z][A-Z ()/,-]*):(?=\s|$)", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
# Titles, which are no sentences.
_TITLE = re.compile(
  r"^[ \t]*(?:FINAL|PRELIMINARY|INTERIM) (?:REPORT|ADDENDUM)[ \t]*$", re.MULTILINE
)
_SECTIONS = (
  "findings",
  "impression",
  "indication",
  "history",
  "comparison",
  "examination",
  "technique",
  "recommendations",
  "notification",
  "addendum",
  "comment",
  "date",
  "wet read",
)
_REASONS = ("reason for exam", "reason for examination", "reason for study")
_SYNONYMS = {
  "impression": ("conclusion", "conclusions", "summary"),
  "history": ("clinical information", "clinical data"),
  "indication": ("clinical indication", *_REASONS),
  "examination": ("exam", "type of exam", "type of examination", "study"),
  "comparison": ("reference exam",),
  "recommendations": ("recommendation", "recommendation(s)"),
  "wet read": ("wetread",),
}
_OTHER_NAMES = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in synonyms}
_PARTS_OF_NAMES = ("impression", "findings", "history", "comparison", "addendum")
_LIKENESS = 0.8  # of difflib, 1 is equal
_IMAGE = re.compile(
  r"\b(?:chest|portable|ribs|bone window|upright|(?:one|two|three|frontal|lateral|pa|ap) views?"
  r"|(?:pa|ap|frontal) and|lateral and (?:pa|ap))\b"
)
# Training reads the first of these that gives a sentence.
_READ = (("findings", "impression"), ("last_paragraph",), ("full report",), ("comparison",))


def sections(text: str) -> dict[str, str]:
  """Splits a report: section name -> text, empty ones left out, in the order of the report.

  Text before the first heading is "preamble"; a report without headings is "full report". Either
  keeps no line that says FINAL REPORT.
  """
  text = text.replace("\r\n", "\n")
  named = [(match, _name(match.group(1))) for match in _HEADING.finditer(text)]
  named = [(match, name) for match, name in named if name]
  starts = [0, *(match.end() for match, _ in named)]
  ends = [*(match.start() for match, _ in named), len(text)]
  names = ["preamble" if named else "full report", *(name for _, name in named)]
  parts = [(name, text[i:j]) for name, i, j in zip(names, starts, ends, strict=True)]
  if not any(name in ("findings", "impression") and part.strip() for name, part in parts):
    last, part = parts[-1]
    if blank := _BLANK_LINE.search(part):
      parts[-1:] = [(last, part[: blank.start()]), ("last_paragraph", part[blank.end() :])]
  texts: dict[str, list[str]] = {}
  for name, part in parts:
    if part := _TITLE.sub("", part).strip():
      texts.setdefault(name, []).append(part)
  # A blank line between parts ends a sentence.
  return {name: "\n\n".join(several) for name, several in texts.items()}


def sentences(parts: dict[str, str]) -> list[str]:
  """Splits into the sentences that training reads: findings and impression, or a substitute.

  The substitute is the last paragraph, else a report without headings, else the comparison (where
  some reports say everything). Indication, history and technique say nothing of the image and are
  never read. "___", which replaces removed names and dates, stays in its sentence and is no word.
  """
  for names in _READ:
    chosen = {name: parts[name] for name in names if name in parts}
    if split := reports.report_sentences(chosen):
      return split
  return []


def _name(heading: str) -> str | None:
  """Returns the section that a heading opens; None where it opens none."""
  heading = " ".join(heading.lower().split())
  if heading in _SECTIONS:
    return heading
  if heading in _OTHER_NAMES:
    return _OTHER_NAMES[heading]
  for part in _PARTS_OF_NAMES:
    if part in heading:
      return part
  if alike := difflib.get_close_matches(heading, _SECTIONS, n=1, cutoff=_LIKENESS):
    return alike[0]
  return "findings" if _IMAGE.search(heading) else None
