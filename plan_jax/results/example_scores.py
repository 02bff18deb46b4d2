"""The scores of every unit of a run, so that two runs can be compared pair by pair.

A file is CSV with the header `image_id,phrase,patient_id,group,METRIC,...` and one line a unit. The
phrase is empty where the unit is a whole image with its text; an empty cell is a figure that the
unit does not have.
"""

import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.files import replace_text

# The metrics of units that are ranked, not averaged: AUC is taken from all of a group.
SCORED = ("score", "positive")
_HEAD = ("image_id", "phrase", "patient_id", "group")


@dataclass(frozen=True)
class ExampleScores:
  """Figures of U units.

  Attributes:
    ids: [U], each `example_id` of its image and phrase; no two are equal.
    groups: [U], the finding of each unit, or "all".
    patients: [U].
    metrics: names of the M figures.
    values: float64 [U, M]; NaN where a unit has no such figure.
  """

  ids: list[str]
  groups: list[str]
  patients: list[str]
  metrics: tuple[str, ...]
  values: np.ndarray

  def __post_init__(self):
    """Raises ValueError where lengths differ, or an id stands twice."""
    shape = (len(self.ids), len(self.metrics))
    if self.values.shape != shape or not len(self.groups) == len(self.patients) == len(self.ids):
      raise ValueError(
        f"{len(self.ids)} ids, {len(self.groups)} groups, {len(self.patients)} patients,"
        f" {len(self.metrics)} metrics and values {self.values.shape} do not fit"
      )
    seen = set()
    for name in self.ids:
      if name in seen:
        raise ValueError(f"unit {name!r} stands twice")
      seen.add(name)


def example_id(image_id: str, phrase: str = "") -> str:
  """What names a unit in every run on the same data."""
  return f"{image_id}\t{phrase}"


def write(path: str | os.PathLike, units: ExampleScores) -> None:
  """Writes the units as CSV, whole or not at all; figures keep their full precision.

  Raises:
    ValueError: a figure is infinite.
  """
  if np.isinf(units.values).any():
    raise ValueError(f"{path}: a figure is infinite")
  text = io.StringIO()
  out = csv.writer(text, lineterminator="\n")
  out.writerow([*_HEAD, *units.metrics])
  for name, group, patient, figures in zip(
    units.ids, units.groups, units.patients, units.values.tolist(), strict=True
  ):
    image_id, _, phrase = name.partition("\t")
    cells = ["" if math.isnan(figure) else repr(figure) for figure in figures]
    out.writerow([image_id, phrase, patient, group, *cells])
  replace_text(path, text.getvalue())


def read(path: str | os.PathLike) -> ExampleScores:
  """Reads what `write` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is not such CSV; the message names the file and the line.
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
        image_id, phrase, patient, group, *cells = line
        if (name := example_id(image_id, phrase)) in ids:
          raise ValueError(f"unit {name!r} stands twice")
        ids[name] = None
        patients.append(patient)
        groups.append(group)
        values.append([_figure(cell) for cell in cells])
    except (ValueError, csv.Error) as error:  # also of bytes that are not UTF-8
      raise ValueError(f"{path}, line {max(1, lines.line_num)}: {error}") from error
  values = np.array(values, np.float64).reshape(len(ids), len(head) - 4)
  return ExampleScores(list(ids), groups, patients, tuple(head[4:]), values)


def _figure(cell: str) -> float:
  figure = float(cell) if cell else math.nan
  if cell and not math.isfinite(figure):
    raise ValueError(f"{cell!r} is not a finite number")
  return figure
