"""Check of a folder of records: one pass over it gives facts, counts and findings."""

import contextlib
import functools
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from input_pipeline import records
from input_pipeline.checks import counts, facts, soundness
from input_pipeline.checks.counts import Table
from input_pipeline.checks.facts import ImageFacts, Place, UnreadableRecord
from input_pipeline.checks.soundness import Finding
from input_pipeline.conversion.skipped import list_of, read_skipped
from input_pipeline.conversion.workers import in_processes, progress_bar
from input_pipeline.errors import UserError
from input_pipeline.records import RecordSource
from input_pipeline.shards import RecordError
from input_pipeline.terminal import escape

_CHUNK = 64  # records a worker reads at a time
_EXAMPLES = 3  # a finding, in the text; the page has more


@dataclass(frozen=True)
class Check:
  """Result of a check.

  Attributes:
    records, against: the folders; against is "" where none was given.
    images: facts of all records that can be read, in order.
    findings: of the folder.
    leaks: of both folders.
    seconds: of the pass.
  """

  records: str
  against: str
  fingerprint: str
  images: list[ImageFacts]
  tables: list[Table]
  findings: list[Finding]
  leaks: list[Finding]
  seconds: float
  images_per_second: float

  def all_findings(self, level: str) -> list[Finding]:
    """Returns the findings and leaks that are an "error", or a "warning"."""
    return [finding for finding in self.findings + self.leaks if finding.level == level]

  def is_sound(self, *, strict: bool = False) -> bool:
    """Tells whether there is no error and, if `strict`, no warning either."""
    return not (self.all_findings("error") or (strict and self.all_findings("warning")))

  def verdict(self, *, strict: bool = False) -> str:
    """Returns "sound" or "not sound"."""
    return "sound" if self.is_sound(strict=strict) else "not sound"

  def notes(self) -> dict[str, str]:
    """Returns name -> value of what was checked."""
    notes = {"records": self.records, "fingerprint": self.fingerprint}
    notes |= {"against": self.against} if self.against else {}
    speed = f"{self.seconds:.1f} s, {self.images_per_second:.0f} images/s"
    return notes | {"read in": speed}


def check(
  folder: str | os.PathLike,
  against: str | os.PathLike | None = None,
  *,
  workers: int | None = None,
  progress: bool = True,
) -> Check:
  """Checks a folder of records, and what it shares with another.

    check("data/pretraining", "data/evaluation").is_sound()

  Args:
    folder: of records, complete.
    against: another one; its own soundness is not judged.
    workers: processes; 0 and 1 stay in this one, None is one a core.
    progress: shows a bar on stderr.

  Raises:
    RecordError: a folder is no complete folder of records, or an index does not fit its shard.
    UserError: both folders are the same, there is no record, or a worker died.
  """
  folder, against = str(folder), str(against or "")
  if against and os.path.realpath(folder) == os.path.realpath(against):
    raise UserError(f"--against={against} is the folder that is checked; name another one")
  start = time.monotonic()
  read = _read([folder, *filter(None, [against])], workers, progress)
  seconds = time.monotonic() - start
  images, unreadable = read[folder]
  if not images and not unreadable:
    raise UserError(f"{folder}: its splits hold no records; there is nothing to check")
  return Check(
    folder,
    against,
    records.fingerprint(folder),
    images,
    [*counts.tables(images), *_skipped(folder)],
    soundness.findings(images, unreadable),
    soundness.leaks(images, *read[against]) if against else [],
    seconds,
    sum(len(facts) for pair in read.values() for facts in pair) / seconds,
  )


def _read(
  folders: Sequence[str], workers: int | None, progress: bool
) -> dict[str, tuple[list[ImageFacts], list[UnreadableRecord]]]:
  """Returns folder -> facts of its images, and the records that cannot be read, in order."""
  _source.cache_clear()  # a folder may have been written anew
  chunks = [
    (folder, split, start, min(start + _CHUNK, length))
    for folder in folders
    for split, length in records.splits(folder).items()
    for start in range(0, len(_source(folder, split)) and length, _CHUNK)
  ]
  total = sum(stop - start for *_, start, stop in chunks)
  examined = {}
  bar = progress_bar("check", total, show=progress)
  with bar, contextlib.closing(in_processes(_examine, chunks, workers)) as results:
    for chunk, entries in results:
      examined[chunk] = entries
      bar.update(len(entries))
  read = {folder: ([], []) for folder in folders}
  for chunk in chunks:
    for entry in examined[chunk]:
      read[chunk[0]][isinstance(entry, UnreadableRecord)].append(entry)
  return read


def _examine(chunk: tuple[str, str, int, int]) -> tuple[tuple, list[ImageFacts | UnreadableRecord]]:
  folder, split, start, stop = chunk
  source, entries = _source(folder, split), []
  for number in range(start, stop):
    place = Place(folder, split, number)
    try:
      entries.append(facts.examine(place, source[number]))
    except RecordError as error:
      entries.append(UnreadableRecord(place, str(error)))
  return chunk, entries


@functools.lru_cache(8)
def _source(folder: str, split: str) -> RecordSource:
  return RecordSource(folder, split)


def _skipped(folder: str) -> list[Table]:
  """Counts what the conversion left out, by reason, without its path and numbers."""
  if not list_of(Path(folder)).exists():
    return []
  skipped, reasons = read_skipped(Path(folder)), Counter()
  for entry in skipped:
    reason = re.sub(r"^/.*?: (?=\S)", "", entry["reason"])
    reasons[re.sub(r"\d+", "#", reason)] += 1
  rows = {reason: (str(n),) for reason, n in reasons.most_common()}
  return [Table("skipped by the conversion", ("images",), {"all": (str(len(skipped)),), **rows})]


def describe(result: Check, *, strict: bool = False) -> str:
  """Formats the result as plain text; names in it that do not print are escaped."""
  lines = [f"{name}: {value}" for name, value in result.notes().items()]
  for table in result.tables:
    rows = [(escape(name), *cells) for name, cells in table.rows.items()]
    style = {"tablefmt": "plain", "colalign": ("left", *("right" for _ in table.columns))}
    heads = (table.title, *table.columns)
    lines += ["", *tabulate(rows, heads, disable_numparse=True, **style).split("\n")]
  for level in ("error", "warning"):
    findings = result.all_findings(level)
    lines += ["", f"{level}s: {len(findings) or 'none'}"]
    for finding in findings:
      lines.append(f"  {finding.name}: {finding.counted()}")
      lines += [f"    {example}" for example in finding.examples[:_EXAMPLES]]
      lines += ["    ..."] * (finding.more or len(finding.examples) > _EXAMPLES)
  return "\n".join(map(escape, [*lines, "", result.verdict(strict=strict)]))
