"""Reports of MIMIC-CXR: their sections, and the sentences that training reads.

The rules follow the section parser of MIMIC's authors (MIT-LCP, mimic-cxr/txt/section_parser.py):

  - A heading is a run of capitals, blanks and "()/,-" at the start of a line, up to a colon;
    `headings` names the section that it opens.
  - Empty findings and impressions count as absent.
  - Where both are absent, the text after the first blank line of the last section is the
    "last_paragraph".

Where we differ: so is that before an impression without findings; a heading that no rule names
stays in the text of its section instead of ending it, but one that names an organ ("LUNGS") opens
the findings in a section that is not read; a heading that repeats continues its section instead of
replacing it; and training reads findings and impression instead of the impression alone. Their
lists of exceptions for some fifty studies are not used.
"""

import re

from input_pipeline.text import headings, reports

_HEADING = re.compile(r"^ ?([A-Z][A-Z ()/,-]*):(?=\s|$)", re.MULTILINE)
# Titles, which are no sentences.
_TITLE = re.compile(
  r"^[ \t]*(?:FINAL|PRELIMINARY|INTERIM) (?:REPORT|ADDENDUM)[ \t]*$", re.MULTILINE
)
# Training reads the first of these that gives a sentence.
_READ = (headings.READ, ("full report",), ("comparison",))


def sections(text: str) -> dict[str, str]:
  """Splits a report: section name -> text, empty ones left out, in the order of the report.

  Text before the first heading is "preamble"; a report without headings is "full report". Either
  keeps no line that says FINAL REPORT.
  """
  text = _TITLE.sub("", text.replace("\r\n", "\n"))
  titles = [(match.start(1), match.end(), match[1]) for match in _HEADING.finditer(text)]
  parts = headings.split(text, titles, "preamble")
  if not any(name not in ("preamble", headings.BODY) for name, _ in parts):
    parts[0] = ("full report", parts[0][1])
  return headings.join(parts)


def sentences(parts: dict[str, str]) -> list[str]:
  """Splits into the sentences that training reads: findings and impression, or a substitute.

  The body that no heading opens counts to them. The substitute is a report without headings, else
  the comparison (where some reports say everything). Indication, history and technique say nothing
  of the image and are never read. "___", which replaces removed names and dates, stays in its
  sentence and is no word.
  """
  for names in _READ:
    chosen = {name: parts[name] for name in names if name in parts}
    if split := reports.report_sentences(chosen):
      return split
  return []
