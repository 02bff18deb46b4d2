"""Gathers a study: every method over its seeds, and its paired difference from a reference.

A metric whose scores a run keeps by example (`WORKDIR/example_scores/TASK.csv`) gets an interval
over seeds and patients, see `bootstrap.seeded_means`; any other gets Student's t over seeds alone.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from launch import study
from launch.study import Overrides, Run
from launch.tables import NOTHING, Column, markdown
from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import MACRO, Summary
from plan_jax.results import example_scores
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import HEADLINES, RUN, Row, is_chance

REFERENCE = "(base)"
ALL = "all"  # the group of every example


@dataclass(frozen=True)
class Scored:
  """Results of one complete run."""

  run: Run
  rows: dict[str, dict[Column, Row]]  # by model
  scores: dict[str, ExampleScores]  # by task, for those that have them

  def has_scores(self, column: Column) -> bool:
    """Returns True where the metric can be taken from the scores of examples."""
    task, group, metric = column
    scores = self.scores.get(task)
    if scores is None or metric not in scores.metrics:
      return False
    return group in (MACRO, ALL) or group in scores.groups


@dataclass(frozen=True)
class Method:
  """Runs that differ in the seed alone: a row of the table."""

  overrides: Overrides
  seeds: dict[int, Scored]

  @property
  def label(self) -> str:
    """Name of the row."""
    return _label(self.overrides)

  @property
  def any(self) -> Scored:
    """One of its runs, for what they have in common."""
    return next(iter(self.seeds.values()))

  @property
  def data(self) -> Overrides:
    """The overrides that choose the data."""
    return study.data_of(self.overrides)


def columns(metrics: str) -> list[Column]:
  """Returns the headline metrics, and those of `--metrics`. Raises UserError where one is none."""
  more = [tuple(part.strip().split("/", 2)) for part in metrics.split(",") if part.strip()]
  for column in more:
    if len(column) != 3:
      raise UserError(f"--metrics: {'/'.join(column)!r} is not task/group/metric")
  return list(dict.fromkeys([*HEADLINES, *more]))


def check_reference(runs: Sequence[Run], against: str) -> None:
  """Raises UserError where the study has no row of that label; the default may be missing."""
  labels = list(dict.fromkeys(_label(study.without_seed(run.overrides)) for run in runs))
  if against not in labels and against != REFERENCE:
    raise UserError(f"--against={against}: is no row of the study; it has {', '.join(labels)}")


def check_set(runs: Sequence[Run], on: str) -> None:
  """Raises UserError where a run does not attach the evaluation set `on`; "": the run's own."""
  for run in runs if on else ():
    if on not in (sets := study.attached(run.config)):
      raise UserError(
        f"--set={on}: {run.name} has no such evaluation set with data; it has"
        f" {', '.join(sets) or 'none'} (config.evaluation.sets.{on}.source attaches it)"
      )


def write_tables(
  runs: Sequence[Run],
  out: Path,
  wanted: Sequence[Column],
  against: str = REFERENCE,
  on: str = "",
) -> str:
  """Gathers the complete runs into OUT/table.md, which is returned, and OUT/table.json.

  `wanted` are the columns, `against` the label of the row that the others are compared with. With
  `on`, the name of an evaluation set that the runs attach, gathers the results on that set into
  OUT/table_NAME.md and .json.

  Raises:
    UserError: no run is complete, nothing is scored on the set, no run has a column that was asked
      for, or runs of one method do not rest on the same examples.
  """
  complete = {run.name: run.complete() for run in runs}
  if not any(complete.values()):
    sets = " on all its evaluation sets" if study.attached(runs[0].config) else ""
    raise UserError(
      f"none of the {len(runs)} runs in {out} is complete{sets}: --mode=run runs them"
    )
  scored = [_read(run, on) for run in runs if complete[run.name]]
  if on and not any(one_run.rows[RUN] for one_run in scored):
    raise UserError(f"--set={on}: no run has a value on it")
  known = {column for one_run in scored for column in one_run.rows[RUN]}
  present = [column for column in wanted if column in known]
  absent = [column for column in wanted if column not in known]
  if extra := ["/".join(column) for column in absent if column not in HEADLINES]:
    names = sorted("/".join(column) for column in known)
    raise UserError(f"--metrics: no run has {', '.join(extra)}; there are {', '.join(names)}")

  table = _Table(_methods(scored), present, runs[0].config.evaluation.resamples)
  differences, sentences = table.differences(against)
  content = {
    "data": sorted({row.data for one_run in scored for row in one_run.rows[RUN].values()}),
    "resamples": table.resamples,
    "runs": len(runs),
    "missing": [name for name, done in complete.items() if not done],
    "absent": ["/".join(column) for column in absent],
    "seeds_alone": ["/".join(column) for column in present if column not in table.by_example],
    "rows": table.means(),
    "chance_baselines": _chance_baselines(scored, present),
    "differences": differences,
    "left_out": sentences,
  }
  text = markdown(content, present)
  stem = f"table_{on}" if on else "table"
  replace_text(out / f"{stem}.json", json.dumps(_as_json(content), indent=1) + "\n")
  replace_text(out / f"{stem}.md", text)
  return text


class _Table:
  """The values of methods, and the source of each interval."""

  def __init__(self, methods: Sequence[Method], columns: Sequence[Column], resamples: int):
    self.methods, self.columns, self.resamples = methods, columns, resamples
    runs = [scored for method in methods for scored in method.seeds.values()]
    for method in methods:
      for scored in method.seeds.values():
        for task, scores in scored.scores.items():
          first = method.any.scores.get(task)
          if first is None or _examples(first) != _examples(scores):
            raise UserError(
              f"{scored.run.workdir.path} and {method.any.run.workdir.path} do not rest on the same"
              f" {task} examples: evaluate both again (--mode=evaluate of plan_jax.main)"
            )
    # One kind of interval a column: by example if every run that has the metric has its scores.
    self.by_example = {
      column
      for column in columns
      if all(scored.has_scores(column) for scored in runs if column in scored.rows[RUN])
    }

  def means(self) -> list[dict]:
    """Returns the rows of the first table: every metric over the seeds of a method."""
    return [
      {
        "row": method.label,
        "overrides": method.overrides,
        "seeds": sorted(method.seeds),
        "values": self._summaries([method], list(method.seeds)),
      }
      for method in self.methods
    ]

  def differences(self, against: str) -> tuple[list[dict], list[str]]:
    """Returns the rows of the second table, and a sentence for every method that has none."""
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
          f"{method.label} is not compared: it rests on other examples than {against}, and there is"
          " no reference on them."
        )
      elif other is method:
        sentences.append(
          f"{method.label} is not compared with {against}: it rests on other examples, for which it"
          " is the reference itself."
        )
      elif not (seeds := [seed for seed in method.seeds if seed in other.seeds]):
        sentences.append(f"{method.label} is not compared: no seed in common with {other.label}.")
      else:
        values = self._summaries([method, other], seeds)
        rows.append(
          {"row": method.label, "against": other.label, "seeds": sorted(seeds), "values": values}
        )
    return rows, sentences

  def _on_data_of(self, method: Method, reference: Method) -> Method | None:
    """Returns the reference trained and evaluated on the data of the method, if there is one."""
    rest = {key: v for key, v in reference.overrides.items() if key not in reference.data}
    others = (other for other in self.methods if other.overrides == rest | method.data)
    return next((other for other in others if self._comparable(other, method)), None)

  def _comparable(self, a: Method, b: Method) -> bool:
    """Returns True where two methods were evaluated on the same examples, as far as both were."""
    for column in self.columns:
      pair = [method.any.rows[RUN].get(column) for method in (a, b)]
      if None not in pair and len({(row.protocol, row.data, row.gallery) for row in pair}) > 1:
        return False
    scores, others = a.any.scores, b.any.scores
    tasks = scores.keys() & others.keys()
    if not tasks:  # nothing else could tell one test set from another of that name
      return a.data == b.data
    return all(_examples(scores[task]) == _examples(others[task]) for task in tasks)

  def _summaries(self, sides: Sequence[Method], seeds: Sequence[int]) -> dict[Column, Summary]:
    """Means over the seeds, of one method or of the paired difference of two."""
    out = dict.fromkeys(self.columns, NOTHING)
    # By task, and apart for the group of all examples.
    parts: dict[tuple[str, bool], list[Column]] = {}
    for column in self.columns:
      cells = [[side.seeds[seed].rows[RUN].get(column) for seed in seeds] for side in sides]
      if any(row is None for line in cells for row in line):
        continue
      if column in self.by_example:
        parts.setdefault((column[0], column[1] == ALL), []).append(column)
      else:
        values = [np.array([row.value for row in line]) for line in cells]
        out[column] = over_seeds(reduce(np.subtract, values))
    for (task, whole), chosen in parts.items():
      scores = sides[0].any.scores[task]
      places = [scores.metrics.index(metric) for _, _, metric in chosen]
      values = [
        np.stack([side.seeds[s].scores[task].values[:, places] for s in seeds]) for side in sides
      ]
      groups = [ALL] * len(scores.ids) if whole else scores.groups
      difference, draws = reduce(np.subtract, values), {"resamples": self.resamples}
      summaries = bootstrap.seeded_means(difference, groups, scores.patients, **draws)
      out |= {column: summaries[column[1]][i] for i, column in enumerate(chosen)}
    return out


def over_seeds(values: np.ndarray) -> Summary:
  """Mean of values [S], NaNs left out, with Student's 95 % interval; n counts the seeds."""
  values = values[~np.isnan(values)]
  if not len(values):
    return NOTHING
  mean, half = float(values.mean()), bootstrap.seed_half_width(values)
  return Summary(mean, mean - half, mean + half, len(values))


def _read(run: Run, on: str) -> Scored:
  """Raises UserError where a file is damaged, or a metric is there twice."""
  rows: dict[str, dict[Column, Row]] = {RUN: {}}
  own = f"{on or run.config.data.dataset}/"
  for row in run.evaluation().rows:
    if not row.data.startswith(own) or row.protocol.startswith("compat-"):
      continue  # of another evaluation set, or a metric that a protocol of ours has too
    column = (row.task, row.group, row.metric)
    if column in rows.setdefault(row.model, {}):
      raise UserError(
        f"{run.workdir.evaluation}: {row.model} has {'/'.join(column)} on several data or protocols"
      )
    rows[row.model][column] = row
  scores = {}
  example_scores.check(run.workdir.example_scores)
  for task in sorted({task for task, _, _ in rows[RUN]}):
    path = run.workdir.example_scores_of(task, on)
    if path.exists():
      scores[task] = example_scores.read(path)
  return Scored(run, rows, scores)


def _methods(scored: Iterable[Scored]) -> list[Method]:
  methods: list[Method] = []
  for result in scored:
    overrides = study.without_seed(result.run.overrides)
    if not (method := next((m for m in methods if m.overrides == overrides), None)):
      methods.append(method := Method(overrides, {}))
    method.seeds[result.run.config.seed] = result
  return methods


def _chance_baselines(scored: Sequence[Scored], columns: Sequence[Column]) -> list[dict]:
  """One row for each baseline and data: the mean over the runs on that data, without interval."""
  values: dict[tuple[str, str], dict[Column, list[float]]] = {}
  for result in scored:
    data = _label(study.data_of(result.run.overrides))
    for model, rows in result.rows.items():
      for column in columns:
        if is_chance(model) and column in rows:
          cells = values.setdefault((model, f"{data}, {rows[column].data}"), {})
          cells.setdefault(column, []).append(rows[column].value)
  return [
    {
      "model": model,
      "data": data,
      "runs": max(map(len, cells.values())),
      "values": {
        column: Summary(over_seeds(np.array(cell)).value, math.nan, math.nan, len(cell))
        for column, cell in cells.items()
      },
    }
    for (model, data), cells in values.items()
  ]


def _examples(scores: ExampleScores) -> tuple:
  return scores.ids, scores.groups, scores.patients


def _label(overrides: Overrides) -> str:
  return study.name(overrides) if overrides else REFERENCE


def _as_json(value: object) -> object:
  """Converts columns to texts, summaries to objects, and NaN to null."""
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
