"""The table of a suite: a line for each value that it shows, and of what is missing.

A folder of a suite holds the table, suite.md; suite.json, sealed: {"suite", "sets": the folder of
the data, "title", "scored"}; and a folder for each set that was scored.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from input_pipeline import digests
from input_pipeline.files import replace_text
from input_pipeline.terminal import escape
from plan_jax.evaluators.suites import SUITES, Shown, SuiteSet
from plan_jax.results import tables
from plan_jax.results.rows import RUN, Row

FILE, _FACTS = "suite.md", "suite.json"
_HEAD = ("data", "task", "metric", "value [95 %]", "n", "threshold", "protocol")


@dataclass(frozen=True)
class Head:
  """Heading of a table.

  Attributes:
    suite: one of `SUITES`.
    sets: folder that holds, or should hold, a folder of each set.
    title: of the model.
    scored: the sets that were scored.
  """

  suite: str
  sets: Path
  title: str
  scored: tuple[str, ...]


@dataclass(frozen=True)
class Line:
  """A line of a suite's table."""

  data: str  # the set
  shown: Shown
  row: Row | None  # None where the set is not there, or nothing of it could be scored


def lines_of(suite: str, rows: Mapping[str, Sequence[Row]]) -> list[Line]:
  """Picks the shown rows of every set, in the suite's order; `rows` are those of the scored."""
  return [
    Line(key, shown, next((row for row in rows.get(key, ()) if _is(row, shown)), None))
    for key, chosen in SUITES[suite].items()
    for shown in chosen.shown
  ]


def table(head: Head, lines: Sequence[Line], style: str = "plain") -> str:
  """Returns the table; a set that is missing has a line of how to get it."""
  cells = []
  for line in lines:
    shown, row = line.shown, line.row
    group = "" if shown.group == "all" else f"{shown.group} "
    names = [line.data, shown.task, f"{group}{shown.metric}"]
    if row is None:
      how = remedy(line.data, SUITES[head.suite][line.data], head.sets)
      reason = "nothing to score" if line.data in head.scored else how
      cells.append([*names, "-", "-", shown.threshold, reason])
    else:
      value = tables.with_interval(row)
      cells.append([*names, value, row.n, shown.threshold, row.protocol])
  return tables.aligned(cells, _HEAD, texts=len(_HEAD), style=style)


def remedy(key: str, chosen: SuiteSet, folder: Path) -> str:
  """Writes how to get a set."""
  return f"put its folder at {folder / key} (docs/data/{chosen.dataset}.md)"


def write(folder: Path, head: Head, rows: Mapping[str, Sequence[Row]]) -> None:
  """Writes the table of the rows of every set, and of what it can be made again."""
  facts = dataclasses.asdict(head) | {"sets": str(head.sets)}
  lines = lines_of(head.suite, rows)
  folder.mkdir(parents=True, exist_ok=True)
  replace_text(folder / _FACTS, digests.seal(facts))
  text = f"# Suite {head.suite}: {escape(head.title)}\n\nIntervals: 95 %, bootstrap of patients."
  replace_text(folder / FILE, f"{text}\n\n{table(head, lines, 'github')}\n")


def read_head(folder: Path) -> Head | None:
  """Reads what `write` wrote; None of another folder. Raises DamagedError."""
  if not (folder / _FACTS).exists():
    return None
  facts = digests.read_sealed(folder / _FACTS, "evaluate the suite again")
  if facts["suite"] not in SUITES:
    raise digests.DamagedError(f"{folder / _FACTS} is of another version; evaluate the suite again")
  return Head(**facts | {"sets": Path(facts["sets"]), "scored": tuple(facts["scored"])})


def _is(row: Row, shown: Shown) -> bool:
  protocol = row.protocol.partition(",")[0]
  wanted = (shown.task, shown.protocol, shown.group, shown.metric, RUN)
  return (row.task, protocol, row.group, row.metric, row.model) == wanted
