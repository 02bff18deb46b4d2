"""Radiology text: sections, sentences, words, and keys that equal reports share."""

import hashlib
import itertools
import re
from collections.abc import Iterable

from input_pipeline.text import headings

_HEADING = re.compile(
  # Up to a colon: from the start of a line or, in reports that were folded into one, a sentence.
  r"(?:^|(?<=[.:!?;]))[^A-Za-z\n.:!?;]*(?P<title>[A-Za-z][^\n.:!?;]*):"
  r"|^[ \t*#]*(?P<line>[A-Z][A-Za-z ]{,30}?)[ \t*]*$(?=\n)",
  re.MULTILINE,
)
_UNKNOWN = re.compile(r"^([A-Z][A-Z ()/&,-]{2,40}):", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n\s*\n")
# A full stop ends a sentence unless it stands in a number, a list number or an abbreviation.
_NO_END = ("dr", "mr", "mrs", "ms", "prof", "st", "e.g", "i.e", "cf", "vs", "approx")
_BEFORE_DIGIT = ("no", "fig")
_BEFORE_LOWER = ("resp", "a.m", "p.m")
_STOP = re.compile(
  r"""(?<![.!?])[.!?]+["')\]]*(?=\s|$)"""
  # The blank is missing: "normal.No", "T2.No", "normal.no", "normal.2"; but "4.5", "p.m.", "U.S.".
  r"""|(?<=\w[^\W_])[.!?]+(?=[A-Z](?:[A-Za-z]|\s))|(?<=[a-z]{3})[.!?]+(?=[a-z]{3}|\d)"""
)
_LIST_NUMBER = re.compile(r"^\s*(?:[-*\u2022]\s*)?(?:\d{1,2}[.)](?=\s|[A-Z]|$)\s*)?")
_LINE_START = re.compile(r"\d{1,2}[.)]\s*[A-Z]|[-*\u2022]\s")
_LINE_STOP = re.compile(r"(?<!\b\d)(?<!\b\d\d)[.!?](?=\s|$)")
_UNFINISHED = re.compile(
  r"(?:,|-|/|\b(?:an?|the|of|in|on|at|to|and|or|nor|with|without|for|from|by|is|are|was|were|be|no"
  r"|than|as|into|over|this|that|which|versus|vs\.|dr\.))$",
  re.IGNORECASE,
)
_LONGEST_WORD = 60  # before a stop that may end no sentence, as far as it is looked at
_LINE_WIDTH = 60  # from which a text may have been broken into lines of one width
_WORD = re.compile(r"[^\W_]+(?:(?:[-'/]|(?<=\d)\.(?=\d)|(?<=\b[^\W\d_])\.(?=[^\W_]\b))[^\W_]+)*")


def sections(text: str, first: str = "") -> dict[str, str]:
  """Splits a report at its headings ("FINDINGS:"); the text before the first is `first`.

  Returns section name -> text, empty sections left out. A heading that repeats continues its
  section. Unknown headings stay in the text of the section they stand in. See `headings.split`.
  """
  text = "\n".join(text.splitlines())
  titles = []
  for match in _HEADING.finditer(text):
    if (line := match["line"]) and headings.stands_alone(line):
      titles.append((*match.span("line"), line))
    elif match["title"]:
      title = match["title"].rstrip(" \t*")
      start, _ = headings.find(title) or (0, "")
      titles.append((match.start("title") + start, match.end(), title[start:]))
  return headings.join(headings.split(text, titles, first))


def named_sections(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
  """Splits sections, given by name and text, at the headings that stand in their texts."""
  return headings.join([part for name, text in parts for part in sections(text, name).items()])


def unknown_headings(text: str) -> list[str]:
  """Finds what looks like a heading in the sections of a report that training does not read."""
  parts = sections(text).items()
  unread = [part for name, part in parts if name not in ("", *headings.READ, "addendum")]
  return [heading for part in unread for heading in _UNKNOWN.findall(part)]


def sentences(text: str) -> list[str]:
  """Splits text into sentences, white space folded, without list numbers and empty sentences.

  A sentence ends at a stop, a blank line, and the end of a line where stops are missing, but not
  where a line was broken because it was full.
  """
  out = []
  for paragraph in _BLANK_LINE.split("\n".join(text.splitlines())):
    for passage in _passages(paragraph):
      out += _split(passage)
  out = [" ".join(_LIST_NUMBER.sub("", sentence).split()) for sentence in out]
  return [sentence for sentence in out if _WORD.search(sentence)]


def _split(text: str) -> list[str]:
  """Splits text without line breaks at its stops."""
  out, start = [], 0
  for match in _STOP.finditer(text):
    # Both bounded, so that a text of nothing but stops takes no quadratic time.
    before = text[max(start, match.start() - _LONGEST_WORD) : match.start()]
    last, following = before.split()[-1:], text[match.end() : match.end() + 2].lstrip()[:1]
    last = last[0].lower().lstrip("([") if last else ""
    if match.group().startswith(".") and (
      last in _NO_END
      or (last in _BEFORE_DIGIT and following.isdigit())
      or (last in _BEFORE_LOWER and following.islower())
      or re.fullmatch(r"\d{1,2}", before.strip())
    ):
      continue
    out.append(text[start : match.end()])
    start = match.end()
  return [*out, text[start:]]


def _passages(paragraph: str) -> list[str]:
  """Joins the lines of a paragraph that belong together."""
  lines = [line for line in (" ".join(line.split()) for line in paragraph.splitlines()) if line]
  pairs = list(itertools.pairwise(lines))
  lengths = [len(line) + 1 + len(following.split()[0]) for line, following in pairs]
  width = max([_LINE_WIDTH, *map(len, lines)])
  # A first line is shorter where its heading was taken from it.
  full = all(length > width for length in lengths[len(pairs) > 1 :])
  missing = 2 * len(_LINE_STOP.findall(paragraph)) < len(lines)
  capitals = any(line[0].isupper() for line in lines)
  all_capitals = paragraph.isupper()
  passages = [lines[:1]]
  for (line, following), length in zip(pairs, lengths, strict=True):
    short = length <= 0.7 * width
    starts = following[0].isupper() if capitals and not all_capitals else not full
    starts = starts or bool(_LINE_START.match(following)) or (following[0].isdigit() and short)
    if starts and not _UNFINISHED.search(line) and (missing or (short and capitals)):
      passages.append([following])
    else:
      passages[-1].append(following)
  return [" ".join(passage) for passage in passages]


def report_sentences(parts: dict[str, str]) -> list[str]:
  """Splits into the sentences that training reads: findings, then impression and addendum.

  Where no section is headed findings, the text before the first heading takes its place; where
  none gives a sentence, all sections do but those that speak of the patient alone (indication,
  history). A sentence that stands twice is kept once.
  """
  first = () if "findings" in parts else ("",)
  names = (*first, "findings", headings.BODY, "impression", "addendum")
  chosen = [parts[name] for name in names if name in parts]
  if not any(map(sentences, chosen)):
    chosen = [text for name, text in parts.items() if name not in headings.OF_PATIENT]
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
