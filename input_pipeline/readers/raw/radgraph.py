"""RadGraph's annotations of MIMIC-CXR's reports, laid onto our sentences.

`MIMIC-CXR_graphs.json` is one object, "p10/p10000032/s50414267.txt" -> {"text", "entities": {"1":
{"tokens", "label", "start_ix", "end_ix", "relations"}}}: the report cut into tokens, with blanks
between, and entities by the numbers of their first and last token. The file is large, so the
listing only notes where each report's entry stands, and reading an image parses that one.

Relations are left aside.
"""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.example import Entity, UnreadableError
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.text import headings

_RUN = re.compile(r"[^\W_]+")  # letters and digits, which both ways to cut a text keep together
_CAPITALS = re.compile(r"[A-Z()/,&-]+")  # tokens of a heading
_BETWEEN, _COLON = re.compile(r"[\s,{]*"), re.compile(r"\s*:\s*")
_BLOCK = 1 << 22  # bytes read at a time
_LONGEST = 1 << 24  # bytes of an entry; a report's are some thousand


@dataclass(frozen=True)
class Place:
  """Place of a report's entry in the file: byte offset, length, and CRC-32 of its bytes."""

  offset: int
  length: int
  crc: int


def places(path: Path, wanted: set[str]) -> dict[str, Place]:
  """Finds the places of the wanted reports' entries; those that the file lacks are left out.

  Raises SourceError where the file is no JSON object or is cut off.
  """
  return {key: place for key, place in _scan(path) if key in wanted}


def entry(path: Path, place: Place) -> dict:
  """Reads the entry at a place. Raises SourceError where the file has changed since."""
  try:
    with open(path, "rb") as file:
      file.seek(place.offset)
      data = file.read(place.length)
  except OSError as error:
    raise SourceError(f"{path}: {error.strerror or error}") from None
  if len(data) != place.length or zlib.crc32(data) != place.crc:
    raise SourceError(f"{path}: has changed since it was listed; run again")
  return json.loads(data)


def entities(graph: dict, sentences: Sequence[str]) -> tuple[tuple[Entity, ...], int]:
  """Lays the entities of an entry onto sentences of the same report.

  A sentence stands where its letters and digits stand in RadGraph's text, in their order and with
  nothing between but signs. Of several such places, those under a heading of what training reads go
  first, among them those behind the sentence before it, then those that begin and end at a sign,
  and then the first in the text. An entity has a place where all its tokens stand in one sentence.
  The others are dropped: those of sections that training does not read, of sentences that stand
  twice and are kept once, of tokens without letters and digits ("___"), and those whose numbers the
  text does not have.

  Args:
    graph: with "text" and "entities".
    sentences: of the example.

  Returns the entities, in the order of the sentences, and how many have no place.

  Raises UnreadableError where the entry is not RadGraph's.
  """
  try:
    tokens = graph["text"].split()
    marked = [
      (int(entity["start_ix"]), int(entity["end_ix"]), str(entity["label"]))
      for entity in graph["entities"].values()
    ]
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
    raise UnreadableError(
      f"its entry in RadGraph lacks text or entities ({type(error).__name__}: {error})"
    ) from error
  runs: list[str] = []
  first = [0]  # number of each token's first run; those of token t end where t + 1 begins
  edges = {0}  # numbers of runs that stand behind a sign
  unread: list[bool] = []  # of each run
  for token, aside in zip(tokens, _unread(tokens), strict=True):
    runs += _RUN.findall(token.lower())
    unread += [aside] * (len(runs) - len(unread))
    if len(runs) == first[-1]:
      edges.add(len(runs))
    first.append(len(runs))
  edges.add(len(runs))
  place_of: dict[int, tuple[int, int, int]] = {}  # run -> sentence, start, end
  after = 0
  for number, sentence in enumerate(sentences):
    spans = [match.span() for match in _RUN.finditer(sentence)]
    words = [sentence[start:end].lower() for start, end in spans]
    ranked = [
      (unread[at], at < after, -(at in edges) - (at + len(words) in edges), at)
      for at in _occurrences(runs, words)
      if place_of.keys().isdisjoint(range(at, at + len(words)))
    ]
    if ranked:
      at = min(ranked)[-1]
      place_of |= {at + i: (number, *span) for i, span in enumerate(spans)}
      after = at + len(words)
  placed, unplaced = [], 0
  for start, end, label in marked:
    inside = 0 <= start <= end < len(tokens)
    within = [place_of.get(i) for i in range(first[start], first[end + 1])] if inside else []
    if not within or None in within or within[0][0] != within[-1][0]:
      unplaced += 1
    else:
      placed.append(Entity(within[0][0], within[0][1], within[-1][2], label))
  return tuple(sorted(placed, key=lambda e: (e.sentence, e.start, e.end, e.label))), unplaced


def _unread(tokens: list[str]) -> list[bool]:
  """Marks the tokens that stand under no heading of what training reads."""
  marks: list[bool] = []
  section = "preamble"
  for number, token in enumerate(tokens):
    marks.append(section not in headings.READ)
    if token == ":":
      start = number
      while start and _CAPITALS.fullmatch(tokens[start - 1]):
        start -= 1
      _, section = headings.find(" ".join(tokens[start:number])) or (start, section)
  return marks


def _occurrences(runs: list[str], words: list[str]) -> Iterator[int]:
  """Finds the positions at which the words follow each other in the runs."""
  for at, run in enumerate(runs):
    if run == words[0] and runs[at : at + len(words)] == words:
      yield at


def _scan(path: Path) -> Iterator[tuple[str, Place]]:
  """Reads key and place of every entry; holds no more than a few blocks in memory."""
  decode = json.JSONDecoder().raw_decode
  with open(path, "rb") as file:
    # Latin-1: a character is a byte, and the signs of JSON stay the same.
    text, offset, at = file.read(_BLOCK).decode("latin-1"), 0, 0
    if not text.lstrip().startswith("{"):
      raise SourceError(f"{path}: is no JSON object, as RadGraph's file is")
    while True:
      at = _BETWEEN.match(text, at).end()
      if text.startswith("}", at):
        return
      try:
        key, end = decode(text, at)
        begin = _COLON.match(text, end).end()
        _, end = decode(text, begin)
      except (ValueError, AttributeError, RecursionError):  # cut off by the block's end, or wrong
        block = file.read(_BLOCK).decode("latin-1")
        if not block or len(text) - at > _LONGEST:
          raise SourceError(
            f"{path}: cannot be read to its end (there is no whole entry at byte {offset + at});"
            " download it again"
          ) from None
        text, offset, at = text[at:] + block, offset + at, 0
        continue
      data = text[begin:end].encode("latin-1")
      yield str(key), Place(offset + begin, len(data), zlib.crc32(data))
      at = end
