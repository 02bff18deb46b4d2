"""Per-example scores of a run, so that two runs can be compared pair by pair.

A file is CSV with the header `image_id,phrase,patient_id,group,METRIC,...` and one line an example.
The phrase is empty where the example is a whole image with its text; a cell is empty where the
example has no such value. A text that a spreadsheet would take for a formula has a "'" before it,
which `read` takes away. The folder of the files has a SHA256SUMS, see input_pipeline/digests.py,
and of a whole evaluation tables.json, see plan_jax/evaluators/stored_scores.py.
"""

import csv
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from input_pipeline import digests
from input_pipeline.digests import DamagedError
from input_pipeline.files import replace_text
from plan_jax.metrics.bootstrap import MACRO

PART = "@"  # in the name of a file: TASK@PART, what the rows of a task need beside its own scores
# The metrics of examples that are ranked, not averaged: AUC is taken from all of a group.
SCORED = ("score", "positive")
_REMEDY = "evaluate again (--mode=evaluate)"
_HEAD = ("image_id", "phrase", "patient_id", "group")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # such a text gets one more "'", and loses one


@dataclass(frozen=True)
class ExampleScores:
  """Values of M metrics for N examples."""

  ids: list[str]  # [N], each `example_id` of its image and phrase; no two are equal
  groups: list[str]  # [N], the finding of each example, or "all"
  patients: list[str]  # [N]
  metrics: tuple[str, ...]  # [M], their names
  values: np.ndarray  # float64 [N, M]; NaN where an example has no such value

  def __post_init__(self):
    """Raises ValueError where lengths differ, or an id stands twice."""
    shape = (len(self.ids), len(self.metrics))
    if self.values.shape != shape or not len(self.groups) == len(self.patients) == len(self.ids):
      raise ValueError(
        f"{len(self.ids)} ids, {len(self.groups)} groups, {len(self.patients)} patients,"
        f" {len(self.metrics)} metrics and values {self.values.shape} do not fit"
      )
    if len(set(self.ids)) < len(self.ids):
      name = next(name for name in self.ids if self.ids.count(name) > 1)
      raise ValueError(f"example {name!r} stands twice")

  def patients_by_group(self) -> dict[str, int]:
    """Counts the patients of each group, and of all as "macro"."""
    members: dict[str, set[str]] = {MACRO: set(self.patients)}
    for group, patient in zip(self.groups, self.patients, strict=True):
      members.setdefault(group, set()).add(patient)
    return {group: len(patients) for group, patients in members.items()}


def example_id(image_id: str, phrase: str = "") -> str:
  """Names an example; every run on the same data gives it the same name."""
  return f"{image_id}\t{phrase}"


def write(path: str | os.PathLike, scores: ExampleScores) -> None:
  """Writes CSV of full precision, whole or not at all. Raises ValueError of an infinite value."""
  if np.isinf(scores.values).any():
    raise ValueError(f"{path}: a value is infinite")
  lines: list[str] = []
  # The line's end tells the writer what to quote: "\r" too, which ends a line for the reader.
  file = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
  out = csv.writer(file, lineterminator="\r\n")
  out.writerow([*_HEAD, *map(quote, scores.metrics)])
  for name, group, patient, values in zip(
    scores.ids, scores.groups, scores.patients, scores.values.tolist(), strict=True
  ):
    image_id, _, phrase = name.partition("\t")
    texts = map(quote, (image_id, phrase, patient, group))
    out.writerow([*texts, *("" if math.isnan(value) else repr(value) for value in values)])
  replace_text(path, "".join(lines))


def check(folder: Path) -> None:
  """Raises DamagedError, naming the file, unless the folder is as `digests.write_sums` found it."""
  digests.check_sums(folder, _REMEDY)


def read(path: str | os.PathLike) -> ExampleScores:
  """Reads a file that `write` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    DamagedError: the file is not such CSV; the message names the file and the line.
  """
  ids, groups, patients, values = {}, [], [], []  # ids in their order, without values
  with Path(path).open(encoding="utf-8", newline="") as file:
    lines = csv.reader(file, strict=True)
    try:
      head = next(lines, [])
      if tuple(head[:4]) != _HEAD:
        raise ValueError(f"the header is {head}, not {', '.join(_HEAD)}, ...")
      for line in lines:
        if len(line) != len(head):
          raise ValueError(f"{len(line)} cells, the header has {len(head)}")
        image_id, phrase, patient, group = map(_unquote, line[:4])
        if (name := example_id(image_id, phrase)) in ids:
          raise ValueError(f"example {name!r} stands twice")
        ids[name] = None
        patients.append(patient)
        groups.append(group)
        values.append([_value(cell) for cell in line[4:]])
    except (ValueError, csv.Error) as error:  # also of bytes that are not UTF-8
      line = max(1, lines.line_num)
      raise DamagedError(f"{path}, line {line}: {error}; {_REMEDY}") from error
  values = np.array(values, np.float64).reshape(len(ids), len(head) - 4)
  return ExampleScores(list(ids), groups, patients, tuple(map(_unquote, head[4:])), values)


def quote(text: str) -> str:
  """Returns the text as a cell that no spreadsheet takes for a formula."""
  return f"'{text}" if _FORMULA.match(text) else text


def _unquote(cell: str) -> str:
  return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _value(cell: str) -> float:
  value = float(cell) if cell else math.nan
  if cell and not math.isfinite(value):
    raise ValueError(f"{cell!r} is not a finite number")
  return value
