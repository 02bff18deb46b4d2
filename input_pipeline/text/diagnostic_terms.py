"""Diagnostic terms: the words of a sentence that name something which its image shows.

A list of words, and a few rules of negation after the manner of NegEx (Chapman et al. 2001): within
a statement, which ends at a semicolon, a full stop, a "but" or a ", with", a denial such as "no"
reaches to the end, and one such as "absent" or "not seen" back to the beginning. "No change in" and
"cannot be excluded" deny nothing. "Resolution of" and "removal of" deny what is gone, up to the
next comma or "with".
"""

import re
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.files import read_regular
from input_pipeline.text import reports

CHEST = Path(__file__).with_name("diagnostic_terms.txt")
# Words of place: they count beside a finding, where they are asked for (`load`).
_SIDES = ("left", "right", "bilateral")
_FIELDS = ("upper", "middle", "lower", "apical", "apex", "basal", "basilar", "base")
PLACES = frozenset((*_SIDES, *_FIELDS, "field", "lobe", "zone"))
_FORWARD = {"no", "not", "without", "absence", "negative", "neither", "nor", "lacks"}
_BACKWARD = {"absent", "resolved", "removed", "excluded"}
# After "not": the denial is the predicate, and what came before is denied.
_SEEN = {
  "seen",
  "present",
  "identified",
  "evident",
  "visible",
  "visualized",
  "demonstrated",
  "noted",
  "found",
  "detected",
  "observed",
  "appreciated",
}
# After "no" or "not" and at most two words more: the finding is present, and has not changed.
_CHANGE = {
  "change",
  "changes",
  "changed",
  "increase",
  "decrease",
  "improvement",
  "worsening",
  "progression",
  "growth",
  "resolution",
}
_NOT_CHANGED = {"increased", "decreased", "improved", "worsened", "progressed"}  # after "not" alone
_GONE = {"resolution", "removal"}  # before "of"
_PARTLY = {"no", "not", "without", "partial", "incomplete", "minimal"}  # before those: still there
_HEDGED = re.compile(r"\b(?:cannot|can not|not|may not) be (?:excluded|ruled out)|\bnot excluded")
_ENDS = {"but", "however", "except", "although", "though"}


class TermsError(UserError):
  """A list of terms cannot be read; the message names file and line."""


@dataclass(frozen=True)
class Terms:
  """Terms of a list.

  Attributes:
    findings: words that name a finding or a device; singular, lower case.
    anatomy: words that count beside one of those.
  """

  findings: frozenset[str]
  anatomy: frozenset[str]

  def named(self, sentence: str) -> list[bool]:
    """Marks each span of `reports.words(sentence)` whose word names something that is seen."""
    spans = reports.words(sentence)
    words = [sentence[start:end].lower() for start, end in spans]
    if not words:
      return []
    starts, pauses = [0], [False]
    for i in range(1, len(words)):
      gap = sentence[spans[i - 1][1] : spans[i][0]]
      pauses.append("," in gap or words[i] == "with")
      if re.search("[;.]", gap) or words[i] in _ENDS or ("," in gap and words[i] == "with"):
        starts.append(i)
    out = []
    for start, stop in zip(starts, [*starts[1:], len(words)], strict=True):
      statement = words[start:stop]
      terms = [_is_in(word, self.findings) for word in statement]
      text = sentence[spans[start][0] : spans[stop - 1][1]].lower()
      affirmed = [True] * len(terms)
      if not _HEDGED.search(text):
        affirmed = _affirmed(statement, terms, pauses[start:stop])
      finding = [is_term and stands for is_term, stands in zip(terms, affirmed, strict=True)]
      beside = any(finding)
      out += [
        named or (beside and stands and _is_in(word, self.anatomy))
        for word, named, stands in zip(statement, finding, affirmed, strict=True)
      ]
    return out

  def lists(self, word: str) -> bool:
    """Tells whether a word, or its singular, is a finding of the list."""
    return _is_in(word.lower(), self.findings)

  def concise(self, sentence: str) -> str:
    """Cuts a sentence to the words that `named` marks; one without any stays as it is.

    >>> load().concise("A small left pleural effusion is seen.")
    'pleural effusion'
    """
    marked = zip(reports.words(sentence), self.named(sentence), strict=True)
    return " ".join(sentence[start:end] for (start, end), named in marked if named) or sentence


def load(path: str | Path = "", *, places: bool = False) -> Terms:
  """Reads the terms of a file, one a line, "~" before anatomy, "#" before a remark.

  Without a path, the terms are those of the chest. With `places`, words of place count as anatomy
  does: a contrast that never weighs "left" never asks on which side a finding lies. Raises
  TermsError where the file cannot be read or holds no finding.
  """
  path = Path(path) if path else CHEST
  findings, anatomy = set(), set()
  try:
    lines = read_regular(path).decode().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise TermsError(f"{path}: the list of terms cannot be read ({error})") from error
  for number, line in enumerate(lines, 1):
    word = line.split("#")[0].strip().lower()
    if not word:
      continue
    chosen, word = (anatomy, word[1:].strip()) if word.startswith("~") else (findings, word)
    if len(reports.words(word)) != 1:
      raise TermsError(f"{path}, line {number}: {line!r} is not one word")
    chosen.add(word)
  if not findings:
    raise TermsError(f"{path}: the list of terms names no finding")
  return Terms(frozenset(findings), frozenset(anatomy) | (PLACES if places else frozenset()))


def _affirmed(statement: list[str], terms: list[bool], pauses: list[bool]) -> list[bool]:
  """Marks the words of a statement that no denial reaches.

  `terms` marks the findings, `pauses` the words behind a comma and each "with".
  """
  start, stop = 0, len(statement)
  leaves, gone = False, []
  for i, word in enumerate(statement):
    before, after = statement[max(i - 2, 0) : i], statement[i + 1 : i + 4]
    if word == "no" and after[:1] == ["longer"]:
      return [False] * len(statement)
    if word in _BACKWARD or (word == "not" and _SEEN & set(after[:2])):
      start = i + 1
    elif _denies(word, after, terms[i + 1 : i + 4]):
      stop = min(stop, i)
    removed = word in _GONE and after[:1] == ["of"] and _PARTLY.isdisjoint(before)
    leaves = removed or (leaves and not pauses[i])
    gone.append(leaves)
  return [start <= i < stop and not gone[i] for i in range(len(statement))]


def _denies(word: str, after: list[str], terms: list[bool]) -> bool:
  """Tells whether a word denies the words after it; a denied change denies nothing."""
  if word in ("free", "clear"):
    return after[:1] in (["of"], ["from"])
  between = set(after[: terms.index(True)] if True in terms else after)
  unchanged = between & _CHANGE or (word == "not" and between & _NOT_CHANGED)
  return word in _FORWARD and not unchanged


def _is_in(word: str, terms: frozenset[str]) -> bool:
  """Tells whether a word, or its singular, is a term."""
  forms = word, word.removesuffix("s"), word.removesuffix("es")
  return not terms.isdisjoint(forms) or (word.endswith("ies") and f"{word[:-3]}y" in terms)
