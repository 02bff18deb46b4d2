"""Tables of results as text, and how a run stands to its chance baselines."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from input_pipeline.terminal import escape
from plan_jax.metrics.bootstrap import MACRO, Summary
from plan_jax.results.rows import HEADLINES, RUN, Row, is_chance, lower_is_better

LEAST_PATIENTS = 20  # that a verdict needs: the bootstrap of fewer tells too little
Patients = Mapping[tuple[str, str], Mapping[str, int]]  # (data, task) -> group -> their number


def table(rows: Iterable[Row]) -> str:
  """Returns one table for each (task, protocol, data): the run with its interval, baselines, n."""
  parts = []
  for (task, protocol, data), block in grouped(rows).items():
    models = beside(block)
    gallery = any(row.gallery is not None for row in block)
    lines, previous = [], None
    for (group, metric), cells in cells_of(block).items():
      run = cells.get(RUN)
      any_row = run or next(iter(cells.values()))
      line = ["" if group == previous else group, metric, with_interval(run) if run else "-"]
      line += [number(cells[model].value) if model in cells else "-" for model in models]
      lines.append([*line, any_row.n] + [any_row.gallery] * gallery)
      previous = group
    head = ["group", "metric", "run [95 % interval]", *models, "n"] + ["gallery"] * gallery
    parts.append(f"{task} on {data} ({protocol})\n{aligned(lines, head, texts=3)}")
  return "\n\n".join(parts)


def headline(rows: Iterable[Row]) -> str:
  """Returns those of the metrics `HEADLINES` that exist, one a line, beside their baselines."""
  lines = []
  for (task, protocol, data), block in grouped(rows).items():
    cells = cells_of(block)
    for wanted, group, metric in HEADLINES:
      models = cells.get((group, metric), {})
      row = models.get(RUN)
      if wanted != task or row is None:
        continue
      chance = ", ".join(f"{name} {number(models[name].value)}" for name in beside(models.values()))
      size = f"n {row.n}" + (f", gallery {row.gallery}" if row.gallery is not None else "")
      name = f"{group} {metric}" if group != "all" else metric
      line = [f"{data} {protocol}", name, with_interval(row), f"({size})"]
      lines.append([*line, f"| {chance}" if chance else ""])
  return aligned(lines, texts=5)


def aligned(
  lines: Sequence[Sequence], head: Sequence[str] = (), *, texts: int, style: str = "plain"
) -> str:
  """Returns lines of cells as a table; the first `texts` columns stand left, all others right.

  What does not print in a cell is escaped.
  """
  if not lines:
    return ""
  lines = [[escape(cell) if isinstance(cell, str) else cell for cell in line] for line in lines]
  sides = ["left" if i < texts else "right" for i in range(len(lines[0]))]
  return tabulate(lines, head, tablefmt=style, colalign=sides, disable_numparse=True)


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
  """Groups rows by (task, protocol, data), in their order."""
  blocks: dict[tuple[str, str, str], list[Row]] = {}
  for row in rows:
    blocks.setdefault((row.task, row.protocol, row.data), []).append(row)
  return blocks


def cells_of(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
  """(group, metric) -> model -> row: "macro" and "all" first, else in the order of the rows."""
  groups: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
  for row in rows:
    cells = groups.setdefault(row.group, {})
    cells.setdefault((row.group, row.metric), {})[row.model] = row
  first = [name for name in ("macro", "all") if name in groups]
  order = first + [name for name in groups if name not in first]
  return {key: cells for name in order for key, cells in groups[name].items()}


def beside(rows: Iterable[Row]) -> list[str]:
  """Returns the names of what stands beside the run, in their order: baselines, radiologists."""
  return list(dict.fromkeys(row.model for row in rows if row.model != RUN))


def best_chance(cells: dict[str, Row]) -> Row | None:
  """Returns the best chance baseline among the models of one (group, metric); None without one."""
  known = [row for name, row in cells.items() if is_chance(name) and not math.isnan(row.value)]
  if not known:
    return None
  pick = min if lower_is_better(known[0].metric) else max
  return pick(known, key=lambda row: row.value)


def patients_of(row: Row, patients: Patients) -> int:
  """Counts the patients behind a row.

  Where its group or task is not counted there are no more than in the task, or in any task of the
  data, and never more than examples.
  """
  groups = patients.get((row.data, row.task))
  if groups is None:
    tasks = [groups[MACRO] for (data, _), groups in patients.items() if data == row.data]
    groups = {MACRO: max(tasks, default=row.n)}
  return min(row.n, groups.get(row.group, groups[MACRO]))


def few(patients: int) -> str:
  """Writes why there is no verdict."""
  return f"not judged: only {patients} patients"


def standing(cells: dict[str, Row], patients: int = LEAST_PATIENTS) -> str:
  """Compares the run with its best chance baseline: "better", "worse", "level", or "" if unknown.

  It is level where its own interval holds the baseline's value, and unknown where the patients
  behind it are few.
  """
  run, chance = cells.get(RUN), best_chance(cells)
  if run is None or chance is None or math.isnan(run.low) or math.isnan(run.high):
    return ""
  if patients < LEAST_PATIENTS:
    return ""
  if run.low <= chance.value <= run.high:
    return "level"
  return "better" if (run.low > chance.value) != lower_is_better(run.metric) else "worse"


def number(value: float) -> str:
  """Formats with three decimals, one from 100 on; "-" for NaN."""
  if math.isnan(value):
    return "-"
  return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def with_interval(row: Row | Summary) -> str:
  """Formats as `value [low, high]`, or the value alone where there is no interval."""
  if math.isnan(row.low) or math.isnan(row.high):
    return number(row.value)
  return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"
