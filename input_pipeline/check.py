"""Is a data set sound? Counts, contradictions, duplicates, and leaks into another set.

  python -m input_pipeline.check --records=/data/mimic_records --out=mimic.html
  python -m input_pipeline.check --records=/data/mimic_records --against=/data/ms_cxr_records

Exit status: 0 sound, 1 something is wrong (with --strict, warnings too), 2 it cannot be checked.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import tqdm

from input_pipeline import check_page, soundness
from input_pipeline.errors import UserError
from input_pipeline.soundness import ERROR, Broken, Film, Problem
from input_pipeline.workers import in_processes


def see(
  folder: Path, *, workers: int | None = None, progress: bool = True
) -> tuple[list[Film], list[Broken]]:
  """Looks at every record of a folder, in their order.

  Args:
    folder: of records, complete.
    workers: processes; None is one a core.
    progress: shows a bar on stderr.

  Raises RecordError where the folder is incomplete.
  """
  tasks = soundness.tasks(folder)
  seen: dict[int, list[Film | Broken]] = {}
  workers = os.cpu_count() or 1 if workers is None else workers
  total = sum(stop - start for _, _, start, stop in tasks)
  bar = tqdm.tqdm(
    total=total, unit="film", desc=f"check {Path(folder).name}", disable=not progress,
    mininterval=0.5 if sys.stderr.isatty() else 30,
  )  # fmt: skip
  job = functools.partial(_numbered, tasks=tasks)
  with bar, contextlib.closing(in_processes(job, range(len(tasks)), workers)) as results:
    for number, found in results:
      seen[number] = found
      bar.update(len(found))
  everything = [one for number in sorted(seen) for one in seen[number]]
  films = [one for one in everything if isinstance(one, Film)]
  return films, [one for one in everything if isinstance(one, Broken)]


def _numbered(number: int, *, tasks: list) -> tuple[int, list[Film | Broken]]:
  return number, soundness.look(tasks[number])


def skipped(folder: Path) -> tuple[int, list[str]]:
  """How many items the conversion left out, and its reasons with their counts."""
  path = Path(folder) / "skipped.jsonl"
  if not path.exists():
    return 0, []
  reasons = Counter(
    json.loads(line)["reason"].split(": ")[-1]
    for line in path.read_text(encoding="utf-8").splitlines()
  )
  return reasons.total(), [f"{count} x {reason}" for reason, count in reasons.most_common(10)]


def table(counted: dict, problems: Sequence[Problem], left_out: tuple[int, list[str]]) -> str:
  """What the page tells, as text."""
  splits = [split for split in soundness.SPLITS if any(c[split] for c in counted[""].values())]
  lines = []
  for title, rows in counted.items():
    width = max(24, *(len(name) for name in rows))
    lines.append(title.ljust(width) + "".join(split.rjust(12) for split in splits))
    lines += [
      name.ljust(width) + "".join(str(row[split]).rjust(12) for split in splits)
      for name, row in rows.items()
    ]
    lines.append("")
  lines.append(f"left out by the conversion: {left_out[0]}")
  lines += [f"  {reason}" for reason in left_out[1]]
  for problem in problems:
    lines.append(f"\n{problem.level.upper()}: {problem.name}: {problem.count} of {problem.of}")
    lines += [f"  {line}" for line in problem.examples]
  errors = sum(problem.level == ERROR for problem in problems)
  warnings = len(problems) - errors
  lines.append(f"\n{'not sound' if errors else 'sound'}: {errors} errors, {warnings} warnings")
  return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.check",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--records", type=Path, required=True, help="folder that convert completed")
  add("--against", type=Path, help="another one: what do training here and evaluation there share?")
  add("--out", type=Path, help="HTML page to write, with pictures")
  add("--workers", type=int, help="processes (default: one a core)")
  add("--strict", action="store_true", help="warnings count as errors")
  return parser


def main() -> None:
  """The command line."""
  arguments = _parser().parse_args()
  try:
    films, broken = see(arguments.records, workers=arguments.workers)
    found = soundness.problems(films, broken)
    folders = dict.fromkeys(map(id, films), arguments.records)
    if arguments.against:
      others, _ = see(arguments.against, workers=arguments.workers)
      found = soundness.leaks(films, others) + found
      folders |= dict.fromkeys(map(id, others), arguments.against)
    counted, left_out = soundness.counts(films), skipped(arguments.records)
    print(table(counted, found, left_out))
    if arguments.out:
      check_page.write(arguments.out, arguments.records, counted, found, left_out, films, folders)
      print(f"page: {arguments.out}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(2)
  sys.exit(any(problem.level == ERROR or arguments.strict for problem in found))


if __name__ == "__main__":
  main()
