"""The tables of a study as text."""

import math
from collections.abc import Sequence

from plan_jax.metrics.bootstrap import Summary
from plan_jax.results import tables

Column = tuple[str, str, str]  # task, group, metric
NOTHING = Summary(math.nan, math.nan, math.nan, 0)


def markdown(content: dict, columns: Sequence[Column]) -> str:
  """Formats both tables, with notes, in GitHub's dialect; `content` is that of table.json."""
  heads = []
  for task, group, metric in columns:
    name = f"{task} {metric}" if group == "all" else f"{task} {group} {metric}"
    heads.append(name + r" \*" * (f"{task}/{group}/{metric}" in content["seeds_alone"]))

  def table(lines: list[list], head: Sequence[str]) -> str:
    return tables.aligned(lines, [*head, *heads], texts=1, style="pipe")

  def cells(row: dict) -> list[str]:
    return [tables.with_interval(row["values"].get(column, NOTHING)) for column in columns]

  lines = [[row["row"], len(row["seeds"]), *cells(row)] for row in content["rows"]]
  several = len({row["data"] for row in content["chance_baselines"]}) > 1
  for row in content["chance_baselines"]:
    data = f" on {row['data']}" if several else ""
    lines.append([f"chance: {row['model']}{data}", "-", *cells(row)])
  parts = [table(lines, ["", "seeds"]), " ".join(_caption(content))]
  if content["differences"]:
    lines = [
      [row["row"], row["against"], len(row["seeds"]), *cells(row)] for row in content["differences"]
    ]
    parts += [
      table(lines, ["paired difference", "against", "seeds"]),
      "Row minus reference on the same examples, over the seeds of both; intervals as above.",
    ]
  if content["left_out"]:
    parts.append(" ".join(content["left_out"]))
  return "\n\n".join(parts) + "\n"


def _caption(content: dict) -> list[str]:
  """Returns the notes of the first table, in sentences."""
  missing, out = content["missing"], [f"Data: {', '.join(content['data'])}."]
  out.append(
    "Means over seeds [95 % interval]: Student's t over the seeds, joined with"
    f" {content['resamples']} bootstrap draws of patients; with one seed, of patients alone."
  )
  if content["seeds_alone"]:
    out.append(r"\*: the interval is Student's t over the seeds alone; one seed has none.")
  if content["chance_baselines"]:
    out.append("Chance baselines: the mean over the runs on the same data, without interval.")
  if content["absent"]:
    out.append(f"No run has {', '.join(content['absent'])}.")
  out.append(
    f"{content['runs'] - len(missing)} of {content['runs']} runs are complete"
    + (f"; missing or incomplete: {', '.join(missing)}." if missing else ".")
  )
  return out
