"""Evaluation results: the row every evaluator returns, its file, and its tables of plain text.

`evaluation.json` holds `{"step": int, "complete": bool, "data": {data: fingerprint of its records},
"rows": [{"task", "protocol", "data", "group", "metric", "model", "value", "low", "high", "n"}]}`;
rows of retrieval also hold "gallery". A number that does not exist is null in the file and NaN in
memory.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from input_pipeline.files import replace_text

RUN = "run"
# What is followed during training, on the validation split: (task, group, metric).
FOLLOWED = (
  ("grounding", "macro", "signed CNR"),
  ("grounding", "macro", "mIoU"),
  ("grounding", "macro", "pointing"),
  ("retrieval", "all", "R@5 image-to-text"),
  ("retrieval", "all", "R@5 text-to-image"),
  ("zero-shot-ours", "macro", "AUC"),
)
# What a reader wants to know first.
HEADLINES = (
  *FOLLOWED,
  ("class-retrieval", "macro", "P@5 image-to-text without own"),
  ("presence", "macro", "AUC"),
  ("terms", "all", "AUC finding against rest"),
)


@dataclass(frozen=True)
class Row:
  """One figure.

  Attributes:
    task: "grounding", "retrieval", "class-retrieval", "presence", "zero-shot-ours",
      "terms", ...
    protocol: name and version of the rules it was measured by, e.g. "grounding-v1".
    data: the data set and split, e.g. "phantom/test".
    group: a finding, "macro" for the mean over findings, or "all".
    metric: e.g. "mIoU".
    model: "run", or the name of the floor.
    value: the figure; NaN where no unit has one.
    low, high: ends of its 95 % bootstrap interval; NaN where there is none.
    n: the units (phrases, queries, ...) behind the value.
    gallery: how many candidates a query was ranked against; None where there is no gallery.
  """

  task: str
  protocol: str
  data: str
  group: str
  metric: str
  model: str
  value: float
  low: float
  high: float
  n: int
  gallery: int | None = None


def scalar_name(task: str, metric: str) -> str:
  """What a figure of `FOLLOWED` is called in the curves and as `best_metric`."""
  return f"validation/{task}/{metric.replace(' ', '_')}"


def lower_is_better(metric: str) -> bool:
  """Whether a smaller figure is the better one; so for ranks, and for nothing else here."""
  return metric.startswith("median rank")


@dataclass(frozen=True)
class Evaluation:
  """What a file holds.

  Attributes:
    step: of training.
    rows: the figures.
    data: what was evaluated on, the run's own first -> the fingerprint of its records.
    complete: whether nothing more is to come.
  """

  step: int
  rows: list[Row]
  data: dict[str, str]
  complete: bool = True


def write(path: str | os.PathLike, evaluation: Evaluation) -> None:
  """Writes an evaluation as JSON, whole or not at all.

  Raises:
    ValueError: a figure is infinite; the file would not be JSON.
  """
  content = {
    "step": int(evaluation.step),
    "complete": evaluation.complete,
    "data": evaluation.data,
    "rows": [_as_json(row) for row in evaluation.rows],
  }
  replace_text(path, json.dumps(content, indent=1) + "\n")


def read(path: str | os.PathLike) -> Evaluation:
  """Reads what `write` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is not such JSON; the message names the file, the row and the field.
  """
  try:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
    raise ValueError(f"{path} holds no list of 'rows'")
  if not _is_int(content.get("step")):
    raise ValueError(f"{path}: 'step' is {content.get('step')!r}, not a whole number")
  rows = [_from_json(item, f"{path}, row {i}") for i, item in enumerate(content["rows"])]
  data = content.get("data")
  if not isinstance(data, dict) or not all(isinstance(mark, str) for mark in data.values()):
    raise ValueError(f"{path}: 'data' is {data!r}, not names with fingerprints")
  return Evaluation(content["step"], rows, data, content.get("complete") is not False)


def table(rows: Iterable[Row]) -> str:
  """One aligned table for each (task, protocol, data): the run with its interval, floors, n."""
  parts = []
  for (task, protocol, data), block in grouped(rows).items():
    models = floors_of(block)
    gallery = any(row.gallery is not None for row in block)
    head = ["group", "metric", "run [95 % interval]", *models, "n"] + ["gallery"] * gallery
    lines = [head]
    previous = None
    for (group, metric), cells in cells_of(block).items():
      run = cells.get(RUN)
      any_row = run or next(iter(cells.values()))
      lines.append(
        [
          "" if group == previous else group,
          metric,
          with_interval(run) if run else "-",
          *(number(cells[model].value) if model in cells else "-" for model in models),
          str(any_row.n),
        ]
        + [str(any_row.gallery)] * gallery
      )
      previous = group
    parts.append(f"{task} on {data} ({protocol})\n{_align(lines)}")
  return "\n\n".join(parts)


def headline(rows: Iterable[Row]) -> str:
  """The few figures of `HEADLINES` that exist, one a line, each beside its floors."""
  lines = []
  for (task, protocol, data), block in grouped(rows).items():
    cells = cells_of(block)
    for wanted, group, metric in HEADLINES:
      row = cells.get((group, metric), {}).get(RUN)
      if wanted != task or row is None:
        continue
      floors = [
        f"{name} {number(cells[group, metric][name].value)}"
        for name in floors_of(block)
        if name in cells[group, metric]
      ]
      size = f"n {row.n}" + (f", gallery {row.gallery}" if row.gallery is not None else "")
      name = f"{group} {metric}" if group != "all" else metric
      lines.append(
        [
          f"{data} {protocol}",
          name,
          with_interval(row),
          f"({size})",
          "| " + ", ".join(floors) if floors else "",
        ]
      )
  return _align(lines)


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
  """The rows by (task, protocol, data), in their order."""
  out: dict[tuple[str, str, str], list[Row]] = {}
  for row in rows:
    out.setdefault((row.task, row.protocol, row.data), []).append(row)
  return out


def cells_of(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
  """(group, metric) -> model -> row: "macro" and "all" first, else in the order of the rows."""
  groups: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
  for row in rows:
    cells = groups.setdefault(row.group, {})
    cells.setdefault((row.group, row.metric), {})[row.model] = row
  first = [name for name in ("macro", "all") if name in groups]
  order = first + [name for name in groups if name not in first]
  return {key: cells for name in order for key, cells in groups[name].items()}


def floors_of(rows: Iterable[Row]) -> list[str]:
  """The names of the floors among the rows, in their order."""
  return list(dict.fromkeys(row.model for row in rows if row.model != RUN))


def best_floor(cells: dict[str, Row]) -> Row | None:
  """The floor with the best figure among the models of one (group, metric); None without one."""
  known = [row for name, row in cells.items() if name != RUN and not math.isnan(row.value)]
  if not known:
    return None
  pick = min if lower_is_better(known[0].metric) else max
  return pick(known, key=lambda row: row.value)


def standing(cells: dict[str, Row]) -> str:
  """How the run stands to its best floor: "better", "worse", "level", or "" where nothing tells.

  It is level where its own interval holds the floor's figure.
  """
  run, floor = cells.get(RUN), best_floor(cells)
  if run is None or floor is None or math.isnan(run.low) or math.isnan(run.high):
    return ""
  if run.low <= floor.value <= run.high:
    return "level"
  return "better" if (run.low > floor.value) != lower_is_better(run.metric) else "worse"


def number(value: float) -> str:
  """Three decimals, one from 100 on; "-" for NaN."""
  if math.isnan(value):
    return "-"
  return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def with_interval(row: Row) -> str:
  """`value [low, high]`, or the value alone where there is no interval."""
  if math.isnan(row.low) or math.isnan(row.high):
    return number(row.value)
  return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def _align(lines: list[list[str]]) -> str:
  if not lines:
    return ""
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  aligned = []
  for line in lines:
    cells = [
      cell.ljust(width) if i < 3 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line[:-1], widths[:-1], strict=True))
    ]
    last = line[-1].rjust(widths[-1]) if line[-1].isdigit() or line[-1] == "n" else line[-1]
    aligned.append("  ".join([*cells, last]).rstrip())
  return "\n".join(aligned)


def _as_json(row: Row) -> dict:
  fields = asdict(row)
  if row.gallery is None:
    del fields["gallery"]
  for name in ("value", "low", "high"):
    figure = float(fields[name])
    if math.isinf(figure):
      raise ValueError(f"{name} of {row.task} {row.group} {row.metric} {row.model} is infinite")
    fields[name] = None if math.isnan(figure) else figure
  fields["n"] = int(row.n)
  return fields


def _from_json(item: object, where: str) -> Row:
  if not isinstance(item, dict):
    raise ValueError(f"{where} is not an object")
  fields = {}
  for name in ("task", "protocol", "data", "group", "metric", "model"):
    if not isinstance(item.get(name), str):
      raise ValueError(f"{where}: {name!r} is {item.get(name)!r}, not a text")
    fields[name] = item[name]
  for name in ("value", "low", "high"):
    figure = item.get(name, "missing")
    if figure is not None and (isinstance(figure, bool) or not isinstance(figure, int | float)):
      raise ValueError(f"{where}: {name!r} is {figure!r}, not a number or null")
    fields[name] = math.nan if figure is None else float(figure)
  if not _is_int(item.get("n")):
    raise ValueError(f"{where}: 'n' is {item.get('n')!r}, not a whole number")
  if item.get("gallery") is not None and not _is_int(item["gallery"]):
    raise ValueError(f"{where}: 'gallery' is {item['gallery']!r}, not a whole number")
  return Row(**fields, n=item["n"], gallery=item.get("gallery"))


def _is_int(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
