"""The tables of a study as text."""

import math
from collections.abc import Sequence

from plan_jax.metrics.bootstrap import Summary
from plan_jax.results import rows

Column = tuple[str, str, str]  # task, group, metric
NOTHING = Summary(math.nan, math.nan, math.nan, 0)


def markdown(content: dict, there: Sequence[Column]) -> str:
  """Both tables, each with what a reader must know of it; GitHub's dialect.

  Args:
    content: as `collect.write_tables` writes it to table.json.
    there: the columns.
  """
  alone = content["seeds_alone"]
  heads = []
  for task, group, metric in there:
    name = f"{task} {metric}" if group == "all" else f"{task} {group} {metric}"
    heads.append(name + r" \*" * (f"{task}/{group}/{metric}" in alone))

  lines = [["", "seeds", *heads]]
  for row in content["rows"]:
    lines.append([row["row"], str(len(row["seeds"])), *_cells(row, there)])
  several = len({floor["data"] for floor in content["floors"]}) > 1
  for floor in content["floors"]:
    on = f" on {floor['data']}" if several else ""
    lines.append([f"floor: {floor['model']}{on}", "-", *_cells(floor, there)])
  parts = [_table(lines), " ".join(_caption(content))]
  if content["differences"]:
    lines = [["paired difference", "against", "seeds", *heads]]
    for row in content["differences"]:
      lines.append([row["row"], row["against"], str(len(row["seeds"])), *_cells(row, there)])
    parts += [
      _table(lines),
      "Row minus reference on the same units, over the seeds that both have; intervals as above.",
    ]
  if content["left_out"]:
    parts.append(" ".join(content["left_out"]))
  return "\n\n".join(parts) + "\n"


def _caption(content: dict) -> list[str]:
  """What a reader must know of the first table, in sentences."""
  missing, out = content["missing"], [f"Data: {', '.join(content['data'])}."]
  out.append(
    "Means over seeds [95 % interval]: Student's t over the seeds, joined with"
    f" {content['resamples']} bootstrap draws of patients; with one seed, of patients alone."
  )
  if content["seeds_alone"]:
    out.append(r"\*: the interval is Student's t over the seeds alone; one seed has none.")
  if content["floors"]:
    out.append("Floors: the mean over the runs on the same data, without interval.")
  if content["absent"]:
    out.append(f"No run has {', '.join(content['absent'])}.")
  out.append(
    f"{content['runs'] - len(missing)} of {content['runs']} runs are complete"
    + (f"; missing or incomplete: {', '.join(missing)}." if missing else ".")
  )
  return out


def _cells(row: dict, there: Sequence[Column]) -> list[str]:
  return [_cell(row["figures"].get(column, NOTHING)) for column in there]


def _cell(figure: Summary) -> str:
  value = rows.number(figure.value)
  if math.isnan(figure.low) or math.isnan(figure.high):
    return value
  return f"{value} [{rows.number(figure.low)}, {rows.number(figure.high)}]"


def _table(lines: list[list[str]]) -> str:
  rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
  return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
