"""The tables of a study: every method over its seeds, and its paired difference from a reference.

A figure whose scores a run keeps unit by unit (`WORKDIR/example_scores/TASK.csv`) gets an interval over
seeds and patients, see `bootstrap.seeded_means`; any other gets Student's t over seeds alone.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from launch import study
from launch.study import Run
from launch.tables import NOTHING, Column, markdown
from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import MACRO, Summary
from plan_jax.results import example_scores as unit_scores
from plan_jax.results import rows as results
from plan_jax.results.example_scores import ExampleScores

REFERENCE = "(base)"
ALL = "all"  # the group of every unit


@dataclass(frozen=True)
class Scored:
  """What one complete run scored.

  Attributes:
    run: the run.
    rows: model -> column -> figure.
    units: task -> scores of every unit, for the tasks that have them.
  """

  run: Run
  rows: dict[str, dict[Column, results.Row]]
  units: dict[str, ExampleScores]


@dataclass(frozen=True)
class Method:
  """Runs that differ in the seed alone: a row of the table."""

  label: str
  overrides: dict[str, object]
  seeds: dict[int, Scored]

  @property
  def any(self) -> Scored:
    """One of its runs, for what they have in common."""
    return next(iter(self.seeds.values()))

  @property
  def data(self) -> dict[str, object]:
    """The overrides that choose the data."""
    return self.any.run.data


def columns(metrics: str) -> list[Column]:
  """The headline figures, and those of `--metrics`. Raises UserError where one is no figure."""
  more = [tuple(part.strip().split("/", 2)) for part in metrics.split(",") if part.strip()]
  for column in more:
    if len(column) != 3:
      raise UserError(f"--metrics: {'/'.join(column)!r} is not task/group/metric")
  return list(dict.fromkeys([*results.HEADLINES, *more]))


def check_reference(runs: Sequence[Run], against: str) -> None:
  """Raises UserError where the study has no row of that label; the default may be missing."""
  labels = list(dict.fromkeys(_label(study.without_seed(run.overrides)) for run in runs))
  if against not in labels and against != REFERENCE:
    raise UserError(f"--against={against}: is no row of the study; it has {', '.join(labels)}")


def write_tables(
  runs: Sequence[Run], out: Path, wanted: Sequence[Column], against: str = REFERENCE
) -> str:
  """Gathers the complete runs into OUT/table.md, which is returned, and OUT/table.json.

  Args:
    runs: of the study, in its order.
    out: folder of the study.
    wanted: the columns.
    against: label of the row that the others are compared with.

  Raises:
    UserError: no run is complete, no run has a column that was asked for, or runs of one method do
      not rest on the same units.
  """
  complete = {run.name: run.complete() for run in runs}
  if not any(complete.values()):
    raise UserError(f"none of the {len(runs)} runs in {out} is complete: --mode=run runs them")
  scored = [_read(run) for run in runs if complete[run.name]]
  there = [c for c in wanted if any(c in found.rows[results.RUN] for found in scored)]
  absent = ["/".join(column) for column in wanted if column not in there]
  if extra := [name for name in absent if tuple(name.split("/", 2)) not in results.HEADLINES]:
    known = sorted({"/".join(column) for found in scored for column in found.rows[results.RUN]})
    raise UserError(f"--metrics: no run has {', '.join(extra)}; there are {', '.join(known)}")

  methods = _methods(scored)
  table = _Table(methods, there, runs[0].config.evaluation.resamples)
  means = [
    {"row": m.label, "overrides": m.overrides, "seeds": sorted(m.seeds), "figures": table.means(m)}
    for m in methods
  ]
  differences, sentences = table.differences(against)
  content = {
    "data": sorted({row.data for s in scored for row in s.rows[results.RUN].values()}),
    "resamples": table.resamples,
    "runs": len(runs),
    "missing": [name for name, done in complete.items() if not done],
    "absent": absent,
    "seeds_alone": ["/".join(column) for column in there if column not in table.by_unit],
    "rows": means,
    "floors": _floors(scored, there),
    "differences": differences,
    "left_out": sentences,
  }
  text = markdown(content, there)
  replace_text(out / "table.json", json.dumps(_as_json(content), indent=1) + "\n")
  replace_text(out / "table.md", text)
  return text


class _Table:
  """The figures of methods, and how each comes by its interval."""

  def __init__(self, methods: Sequence[Method], there: Sequence[Column], resamples: int):
    self.methods, self.columns, self.resamples = methods, there, resamples
    for method in methods:
      for found in method.seeds.values():
        for task, units in found.example_scores.items():
          first = method.any.example_scores.get(task)
          if first is None or _identity(first) != _identity(units):
            raise UserError(
              f"{found.run.workdir.path} and {method.any.run.workdir.path} do not rest on the same"
              f" {task} units: evaluate both again (--mode=evaluate of plan_jax.main)"
            )
    # One kind of interval a column: by unit only if every run that has the figure has its units.
    self.by_unit = {
      column
      for column in there
      if all(
        _has_units(found, column)
        for method in methods
        for found in method.seeds.values()
        if column in found.rows[results.RUN]
      )
    }

  def means(self, method: Method) -> dict[Column, Summary]:
    """Every figure over the seeds of a method."""
    return self._figures(method, None, list(method.seeds))

  def differences(self, against: str) -> tuple[list[dict], list[str]]:
    """The rows of the second table, and a sentence for every method that cannot be in it."""
    by_label = {method.label: method for method in self.methods}
    if against not in by_label:
      return [], [f"No paired differences: the reference row {against} has no complete run."]
    reference = by_label[against]
    rows, sentences = [], []
    for method in self.methods:
      if method is reference:
        continue
      # PLAN and a baseline on the same bad reports, say: else data and method would be one effect.
      other = self._on_data_of(method, reference)
      if other in (None, method) and self._comparable(method, reference):
        other = reference
      if other is None:
        sentences.append(
          f"{method.label} is not compared: it rests on other units than {against}, and there is no"
          " reference on them."
        )
      elif other is method:
        sentences.append(
          f"{method.label} is not compared with {against}: it rests on other units, for which it is"
          " the reference itself."
        )
      elif not (seeds := [seed for seed in method.seeds if seed in other.seeds]):
        sentences.append(f"{method.label} is not compared: no seed in common with {other.label}.")
      else:
        figures = self._figures(method, other, seeds)
        rows.append(
          {"row": method.label, "against": other.label, "seeds": sorted(seeds), "figures": figures}
        )
    return rows, sentences

  def _on_data_of(self, method: Method, reference: Method) -> Method | None:
    """The reference trained and evaluated on the data of the method, if there is one."""
    rest = {key: v for key, v in reference.overrides.items() if key not in reference.data}
    for other in self.methods:
      if other.overrides == rest | method.data and self._comparable(other, method):
        return other
    return None

  def _comparable(self, a: Method, b: Method) -> bool:
    """Whether two methods were evaluated on the same units, as far as both were."""
    rows, others = a.any.rows[results.RUN], b.any.rows[results.RUN]
    for column in self.columns:
      if column in rows and column in others and _rules(rows[column]) != _rules(others[column]):
        return False
    tasks = a.any.example_scores.keys() & b.any.example_scores.keys()
    if not tasks:  # nothing else could tell one test set from another of that name
      return a.data == b.data
    return all(
      _identity(a.any.example_scores[task]) == _identity(b.any.example_scores[task])
      for task in tasks
    )

  def _figures(
    self, method: Method, minus: Method | None, seeds: Sequence[int]
  ) -> dict[Column, Summary]:
    """Means over the seeds, of the method or of its paired difference from `minus`."""
    sides = [method] if minus is None else [method, minus]
    out = dict.fromkeys(self.columns, NOTHING)
    possible = [
      column
      for column in self.columns
      if all(column in side.seeds[s].rows[results.RUN] for side in sides for s in seeds)
    ]
    # By task, and apart for the group of all units.
    parts: dict[tuple[str, bool], list[Column]] = {}
    for column in possible:
      if column in self.by_unit:
        parts.setdefault((column[0], column[1] == ALL), []).append(column)
      else:
        first, *rest = ([s.seeds[n].rows[results.RUN][column].value for n in seeds] for s in sides)
        out[column] = over_seeds(np.subtract(first, *rest) if rest else np.array(first))
    for (task, whole), chosen in parts.items():
      units = method.any.example_scores[task]
      first, *rest = (
        np.stack([_values(side.seeds[n].example_scores[task], chosen) for n in seeds])
        for side in sides
      )
      found = bootstrap.seeded_means(
        first - rest[0] if rest else first,
        [ALL] * len(units.ids) if whole else units.groups,
        units.patients,
        resamples=self.resamples,
      )
      out |= {column: found[column[1]][i] for i, column in enumerate(chosen)}
    return out


def over_seeds(values: np.ndarray) -> Summary:
  """Mean of values [S], NaNs left out, with Student's 95 % interval; n counts the seeds."""
  values = values[~np.isnan(values)]
  if not len(values):
    return NOTHING
  mean, half = float(values.mean()), bootstrap.seed_half_width(values)
  return Summary(mean, mean - half, mean + half, len(values))


def _read(run: Run) -> Scored:
  """Raises UserError where a file is damaged, or a figure is there twice."""
  rows: dict[str, dict[Column, results.Row]] = {results.RUN: {}}
  own = f"{run.config.data.dataset}/"
  for row in run.results().rows:
    if not row.data.startswith(own) or row.protocol.startswith("compat-"):
      continue  # of an attached evaluation set, or a figure that a protocol of ours has too
    column = (row.task, row.group, row.metric)
    if column in rows.setdefault(row.model, {}):
      raise UserError(
        f"{run.workdir.evaluation}: {row.model} has {'/'.join(column)} on several data or protocols"
      )
    rows[row.model][column] = row
  units = {}
  for task in sorted({task for task, _, _ in rows[results.RUN]}):
    path = run.workdir.example_scores / f"{task}.csv"
    if path.exists():
      try:
        units[task] = unit_scores.read(path)
      except ValueError as error:
        raise UserError(f"{error}: evaluate the run again (--mode=evaluate)") from error
  return Scored(run, rows, units)


def _methods(scored: Iterable[Scored]) -> list[Method]:
  methods: list[Method] = []
  for found in scored:
    overrides = study.without_seed(found.run.overrides)
    for method in methods:
      if method.overrides == overrides:
        break
    else:
      method = Method(_label(overrides), overrides, {})
      methods.append(method)
    method.seeds[found.run.config.seed] = found
  return methods


def _floors(scored: Sequence[Scored], there: Sequence[Column]) -> list[dict]:
  """One row for each floor and data: the mean over all runs on that data, without an interval."""
  found: dict[tuple[str, str], dict[Column, list[float]]] = {}
  for one in scored:
    for model, rows in one.rows.items():
      for column in there:
        if model != results.RUN and column in rows:
          key = (model, f"{_label(one.run.data)}, {rows[column].data}")
          found.setdefault(key, {}).setdefault(column, []).append(rows[column].value)
  return [
    {
      "model": model,
      "data": data,
      "runs": max(map(len, figures.values())),
      "figures": {
        column: Summary(over_seeds(np.array(values)).value, math.nan, math.nan, len(values))
        for column, values in figures.items()
      },
    }
    for (model, data), figures in found.items()
  ]


def _has_units(found: Scored, column: Column) -> bool:
  task, group, metric = column
  units = found.example_scores.get(task)
  if units is None or metric not in units.metrics:
    return False
  return group in (MACRO, ALL) or group in units.groups


def _values(units: ExampleScores, chosen: Sequence[Column]) -> np.ndarray:
  """[U, M]: the figures of these columns, of every unit."""
  return units.values[:, [units.metrics.index(metric) for _, _, metric in chosen]]


def _identity(units: ExampleScores) -> tuple:
  return units.ids, units.groups, units.patients


def _rules(row: results.Row) -> tuple:
  return row.protocol, row.data, row.gallery


def _label(overrides: dict[str, object]) -> str:
  return study.name(overrides) if overrides else REFERENCE


def _as_json(value: object) -> object:
  """Columns become texts, summaries objects, and NaN null."""
  if isinstance(value, Summary):
    return _as_json(asdict(value))
  if isinstance(value, dict):
    return {
      "/".join(key) if isinstance(key, tuple) else key: _as_json(item)
      for key, item in value.items()
    }
  if isinstance(value, list | tuple):
    return [_as_json(item) for item in value]
  return None if isinstance(value, float) and math.isnan(value) else value
