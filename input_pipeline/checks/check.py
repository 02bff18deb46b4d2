"""Is a data set sound? One pass over its records, a table, and a page with the pictures.

  python -m input_pipeline.checks.check --records=data/images --out=check.html
  python -m input_pipeline.checks.check --records=data/pretraining --against=data/evaluation

Exit status: 0 sound (warnings may be listed), 1 problems were found, 2 it cannot be checked.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tqdm

from input_pipeline import records
from input_pipeline.checks import counts, facts, page, soundness
from input_pipeline.checks.counts import Table
from input_pipeline.checks.facts import Image, Place, Unread
from input_pipeline.checks.soundness import Finding
from input_pipeline.conversion.workers import in_processes
from input_pipeline.errors import UserError
from input_pipeline.records import RecordError, RecordSource

_CHUNK = 64  # records a worker reads at a time
_SHOWN = 3  # examples a finding in the table; the page has more


@dataclass(frozen=True)
class Check:
  """What a check found.

  Attributes:
    records, against: the folders; against is "" where none was given.
    fingerprint: of the records.
    images: facts of all records that can be read, in order.
    tables: counts.
    findings: of the folder.
    leaks: of both folders.
    seconds: of the pass.
    images_per_second: read in it.
  """

  records: str
  against: str
  fingerprint: str
  images: list[Image]
  tables: list[Table]
  findings: list[Finding]
  leaks: list[Finding]
  seconds: float
  images_per_second: float

  def is_sound(self, *, strict: bool = False) -> bool:
    """Whether there is no error and, if `strict`, no warning either."""
    found = self.findings + self.leaks
    return not any(strict or finding.level == "error" for finding in found)


def check(
  folder: str | os.PathLike,
  against: str | os.PathLike | None = None,
  *,
  workers: int | None = None,
  progress: bool = True,
) -> Check:
  """Checks a folder of records, and what it shares with another.

  Args:
    folder: of records, complete.
    against: another one; its own soundness is not judged.
    workers: processes; 0 and 1 stay in this one, None is one a core.
    progress: shows a bar on stderr.

  Raises:
    RecordError: a folder is no complete folder of records, or an index does not fit its shard.
    UserError: both folders are one, there is no record, or a worker died.
  """
  folder, against = str(folder), str(against or "")
  if against and os.path.realpath(folder) == os.path.realpath(against):
    raise UserError(f"--against={against} is the folder that is checked; name another one")
  start = time.monotonic()
  workers = os.cpu_count() or 1 if workers is None else workers
  of = _look([folder, *filter(None, [against])], workers, progress)
  seconds = time.monotonic() - start
  images, unread = of[folder]
  if not images and not unread:
    raise UserError(f"{folder}: its splits hold no records; there is nothing to check")
  return Check(
    folder,
    against,
    records.fingerprint(folder),
    images,
    [*counts.tables(images), *_skipped(folder)],
    soundness.findings(images, unread),
    soundness.leaks(images, *of[against]) if against else [],
    seconds,
    sum(len(found) for pair in of.values() for found in pair) / seconds,
  )


def _look(
  folders: Sequence[str], workers: int, progress: bool
) -> dict[str, tuple[list[Image], list[Unread]]]:
  """Folder -> its images, and the records that cannot be read, in order."""
  _source.cache_clear()  # a folder may have been written anew
  chunks = [
    (folder, split, start, min(start + _CHUNK, length))
    for folder in folders
    for split, length in records.splits(folder).items()
    for start in range(0, len(_source(folder, split)) and length, _CHUNK)
  ]
  bar = tqdm.tqdm(
    total=sum(stop - start for *_, start, stop in chunks), unit="image", desc="check",
    disable=not progress, mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True,
  )  # fmt: skip
  found = {}
  with bar, contextlib.closing(in_processes(_look_at, chunks, workers)) as looked:
    for chunk, seen in looked:
      found[chunk] = seen
      bar.update(len(seen))
  of = {folder: ([], []) for folder in folders}
  for chunk in chunks:
    for one in found[chunk]:
      of[chunk[0]][isinstance(one, Unread)].append(one)
  return of


def _look_at(chunk: tuple[str, str, int, int]) -> tuple[tuple, list[Image | Unread]]:
  folder, split, start, stop = chunk
  source, seen = _source(folder, split), []
  for number in range(start, stop):
    place = Place(folder, split, number)
    try:
      seen.append(facts.look(place, source[number]))
    except RecordError as error:
      seen.append(Unread(place, str(error)))
  return chunk, seen


@functools.lru_cache(8)
def _source(folder: str, split: str) -> RecordSource:
  return RecordSource(folder, split)


def _skipped(folder: str) -> list[Table]:
  """What the conversion left out, by reason; paths and numbers differ, so they are left aside."""
  path = Path(folder) / "skipped.jsonl"
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except FileNotFoundError:
    return []
  reasons = Counter()
  for i, line in enumerate(lines):
    try:
      reason = json.loads(line)["reason"]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}, line {i + 1}: not as the converter writes it ({error!r})") from None
    reasons[re.sub(r"\d+", "#", re.sub(r"^/.*?: (?=\S)", "", reason))] += 1
  rows = {reason: (str(n),) for reason, n in reasons.most_common()}
  return [Table("skipped by the conversion", ("images",), {"all": (str(len(lines)),), **rows})]


def describe(result: Check, *, strict: bool = False) -> str:
  """The result as plain text."""
  lines = [f"{name}: {value}" for name, value in _notes(result).items()]
  for table in result.tables:
    lines += [
      "",
      *_aligned([(table.title, *table.columns), *((k, *v) for k, v in table.rows.items())]),
    ]
  for level in ("error", "warning"):
    found = [finding for finding in result.findings + result.leaks if finding.level == level]
    lines += ["", f"{level}s: {len(found) or 'none'}"]
    for finding in found:
      lines.append(f"  {finding.name}: {finding.counted()}")
      lines += [f"    {example}" for example in finding.examples[:_SHOWN]]
      lines += ["    ..."] * (finding.more or len(finding.examples) > _SHOWN)
  return "\n".join([*lines, "", _verdict(result, strict)])


def _notes(result: Check) -> dict[str, str]:
  notes = {"records": result.records, "fingerprint": result.fingerprint}
  notes |= {"against": result.against} if result.against else {}
  speed = f"{result.seconds:.1f} s, {result.images_per_second:.0f} images/s"
  return notes | {"read in": speed}


def _verdict(result: Check, strict: bool) -> str:
  return "sound" if result.is_sound(strict=strict) else "not sound"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Rows of cells as lines: the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
    for row in rows
  ]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.checks.check",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--records", required=True, help="folder of records, made by input_pipeline.conversion.convert"
  )
  add("--against", help="another folder of records, which must share no patient and no image")
  add("--out", help="HTML page to write")
  add("--workers", type=int, help="processes (default: one a core)")
  add("--strict", action="store_true", help="warnings are problems too")
  return parser


def main() -> None:
  """The command line: prints the table, ends with the exit status told above."""
  arguments = _parser().parse_args()
  try:
    if arguments.out and Path(arguments.out).is_dir():
      raise UserError(f"{arguments.out} is a folder; --out names the page to write")
    result = check(arguments.records, arguments.against, workers=arguments.workers)
    print(describe(result, strict=arguments.strict))
    if arguments.out:
      page.write_page(
        arguments.out,
        title=f"{_verdict(result, arguments.strict).capitalize()}: {Path(result.records).name}",
        notes=_notes(result),
        tables=result.tables,
        findings=result.findings + result.leaks,
        images=result.images,
      )
      print(f"page: {arguments.out}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
  except KeyboardInterrupt:
    print("stopped: nothing was decided", file=sys.stderr)
    raise SystemExit(2) from None
  raise SystemExit(0 if result.is_sound(strict=arguments.strict) else 1)


if __name__ == "__main__":
  main()
