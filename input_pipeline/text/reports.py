"""Radiology text: sections, sentences, words, and keys that equal reports share."""

import hashlib
import re

# At the start of a line or, as in reports that were folded into one, of a sentence.
_HEADING = re.compile(r"(?:^|(?<=[.:!?])[ \t]+)[ \t]*([A-Z][A-Za-z ]{2,40}):[ \t]*", re.MULTILINE)
_INDICATION = ("indication", "history", "clinical history", "clinical information")
_HEADINGS = {
  "findings": ("findings", "finding"),
  "impression": ("impression", "impressions", "conclusion"),
  "indication": (*_INDICATION, "reason for exam", "reason for examination"),
  "comparison": ("comparison", "comparisons"),
  "technique": ("technique",),
  "examination": ("examination", "exam"),
  "recommendation": ("recommendation", "recommendations"),
}
_KNOWN = {heading: name for name, headings in _HEADINGS.items() for heading in headings}
# A full stop ends a sentence unless it stands in a number, a list number or an abbreviation.
_TITLES = ("dr", "mr", "mrs", "ms", "prof")
_BEFORE_DIGIT = ("no", "fig")
_BEFORE_LOWER = ("vs", "approx", "e.g", "i.e", "cf", "resp")
_STOP = re.compile(r"[.!?]+(?=\s|$)|\n\s*\n")
_LIST_NUMBER = re.compile(r"^\s*\d{1,2}[.)]\s+")
_WORD = re.compile(r"[^\W_]+(?:[-'/.][^\W_]+)*")


def sections(text: str) -> dict[str, str]:
  """Splits a report at its known headings ("FINDINGS:"); the text before the first is "".

  Returns section name -> text, white space folded; empty sections are left out. A heading that
  repeats continues its section. Unknown headings stay in the text of the section they stand in.
  """
  parts_of: dict[str, list[str]] = {}
  name, start = "", 0
  for match in _HEADING.finditer(text):
    heading = _KNOWN.get(match.group(1).strip().lower())
    if heading is None:
      continue
    parts_of.setdefault(name, []).append(text[start : match.start()])
    name, start = heading, match.end()
  parts_of.setdefault(name, []).append(text[start:])
  joined = {name: "\n".join(part.strip() for part in parts) for name, parts in parts_of.items()}
  return {name: part.strip() for name, part in joined.items() if part.strip()}


def sentences(text: str) -> list[str]:
  """Splits text into sentences, white space folded, without list numbers and empty sentences."""
  out, start = [], 0
  for match in _STOP.finditer(text):
    before = text[start : match.start()]
    last, following = before.split()[-1:], text[match.end() :].lstrip()[:1]
    last = last[0].lower() if last else ""
    if match.group().startswith(".") and (
      last in _TITLES
      or (last in _BEFORE_DIGIT and following.isdigit())
      or (last in _BEFORE_LOWER and following.islower())
      or re.fullmatch(r"\d{1,2}", before.strip())
    ):
      continue
    out.append(text[start : match.end()])
    start = match.end()
  out.append(text[start:])
  out = [" ".join(_LIST_NUMBER.sub("", sentence).split()) for sentence in out]
  return [sentence for sentence in out if _WORD.search(sentence)]


def report_sentences(parts: dict[str, str]) -> list[str]:
  """Splits into the sentences that training reads: findings, then impression.

  Where no section is headed findings, the text before the first heading takes its place; where
  neither gives a sentence, all sections do. A sentence that stands twice is kept once.
  """
  chosen = [parts[name] for name in ("findings", "impression") if name in parts]
  if "findings" not in parts and "" in parts:
    chosen = [parts[""], *chosen]
  if not any(map(sentences, chosen)):
    chosen = list(parts.values())
  unique = {}
  for part in chosen:
    for sentence in sentences(part):
      unique.setdefault(normalise(sentence), sentence)
  return list(unique.values())


def words(sentence: str) -> list[tuple[int, int]]:
  """Finds the words' character spans; punctuation is no word, "right-sided" and "1.5" are one."""
  return [match.span() for match in _WORD.finditer(sentence)]


def normalise(text: str) -> str:
  """Reduces text to its words in lower case, one blank between; equal reports share this form."""
  return " ".join(text[start:end] for start, end in words(text)).lower()


def key(text: str) -> int:
  """Hashes the normalised text to 31 bits, never 0; 0 for a text without words."""
  normal = normalise(text)
  return identity(normal) if normal else 0


def identity(name: str) -> int:
  """Hashes an id (of a study, of a patient) as it is written to 31 bits, never 0."""
  digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
  return int.from_bytes(digest, "big") % (2**31 - 1) + 1
