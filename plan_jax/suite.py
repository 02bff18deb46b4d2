"""A suite: one model on all data sets that a project reports together, and one table of them."""

from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.terminal import escape, join
from plan_jax import config as config_lib
from plan_jax import experiment
from plan_jax.evaluators.suites import SUITES, Shown, SuiteSet
from plan_jax.inference.load import load
from plan_jax.results import tables
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir

_HEAD = ("data", "task", "metric", "value [95 %]", "n", "threshold", "protocol")


@dataclass(frozen=True)
class Line:
  """A line of a suite's table."""

  data: str  # the set
  shown: Shown
  row: Row | None  # None where the set is not there, or nothing of it could be scored


def evaluate_suite(
  config: ConfigDict, workdir: Workdir, name: str, folder: Path, out: str = ""
) -> list[Line]:
  """Evaluates a run, or a baseline, on the sets of a suite that are in `folder`.

  Args:
    config: of the run, or of a baseline.
    workdir: of the run, of which nothing changes, or of the baseline.
    name: one of `SUITES`.
    folder: each set is a folder below, named as in the suite: raw data, or records.
    out: gets a folder for each set and suite.md, the table; by default WORKDIR/suites/NAME.

  Raises UserError where the folder holds no set of the suite, or model or data are not fit.
  """
  suite = SUITES[name]
  present = {key: chosen for key, chosen in suite.items() if (folder / key).is_dir()}
  if not present:
    raise UserError(
      f"--sets={folder} holds none of the folders {join(suite)} (docs/leaderboard.md)"
    )
  for key, chosen in suite.items():
    if key not in present:
      log.info(f"suite {name}: {key} is missing: {escape(remedy(key, chosen, folder))}")
  place, is_baseline = Path(out or workdir.suites / name), "baseline" in config
  configs = {key: _config_of(config, key, chosen, folder / key) for key, chosen in present.items()}
  first = next(iter(configs.values()))
  if is_baseline:
    model, provenance = experiment.load_baseline(first, workdir)
    processes.on_primary(lambda: workdir.claim(_without_data(config)))
    experiment.note_baseline(workdir, provenance)
    title = model.spec.title
    head = {"notes": experiment.baseline_notes(model, provenance)}
  else:
    model, head = load(workdir, first), {}
    title = f"{workdir.path.resolve().name} after {model.step} steps"
  rows: dict[str, list[Row]] = {}
  for key, chosen in present.items():
    rows[key] = experiment.evaluate_set(
      model,
      configs[key],
      workdir,
      Workdir(place / key),
      (key, _entry(key, chosen, folder / key)),
      findings=chosen.findings,
      title=f"suite {name}, {key}: {title}",
      **head,
    )
    lines = lines_of(suite, rows)
    # After every set: what stops the next costs none of those before.
    processes.on_primary(lambda: _write(place / "suite.md", name, title, lines, folder))  # noqa: B023
  log.info(f"\n{table(lines, folder, suite)}\n\nsuite: {place / 'suite.md'}")
  return lines


def lines_of(suite: dict[str, SuiteSet], rows: dict[str, list[Row]]) -> list[Line]:
  """Picks the shown rows of every set, in the suite's order."""
  return [
    Line(key, shown, next((row for row in rows.get(key, ()) if _is(row, shown)), None))
    for key, chosen in suite.items()
    for shown in chosen.shown
  ]


def _is(row: Row, shown: Shown) -> bool:
  protocol = row.protocol.partition(",")[0]
  wanted = (shown.task, shown.protocol, shown.group, shown.metric, RUN)
  return (row.task, protocol, row.group, row.metric, row.model) == wanted


def table(lines: list[Line], folder: Path, suite: dict[str, SuiteSet], style: str = "plain") -> str:
  """Returns the table; a set that is missing has a line of how to get it."""
  cells = []
  for line in lines:
    shown, row = line.shown, line.row
    group = "" if shown.group == "all" else f"{shown.group} "
    names = [line.data, shown.task, f"{group}{shown.metric}"]
    if row is None:
      chosen = suite[line.data]
      is_there = (folder / line.data).is_dir()
      reason = "not scored" if is_there else remedy(line.data, chosen, folder)
      cells.append([*names, "-", "-", shown.threshold, reason])
    else:
      value = tables.with_interval(row)
      cells.append([*names, value, row.n, shown.threshold, row.protocol])
  return tables.aligned(cells, _HEAD, texts=len(_HEAD), style=style)


def remedy(key: str, chosen: SuiteSet, folder: Path) -> str:
  """Writes how to get a set."""
  return f"put its folder at {folder / key} (docs/data/{chosen.dataset}.md)"


def _write(path: Path, name: str, title: str, lines: list[Line], folder: Path) -> None:
  text = table(lines, folder, SUITES[name], "github")
  head = f"# Suite {name}: {escape(title)}\n\nIntervals: 95 %, bootstrap of patients."
  replace_text(path, f"{head}\n\n{text}\n")


def _entry(key: str, chosen: SuiteSet, folder: Path) -> ConfigDict:
  """Makes an entry of config.evaluation.sets of a folder of raw data or of records."""
  is_records = (folder / "dataset_info.json").is_file()
  return ConfigDict(
    dict(
      dataset=chosen.dataset,
      source="" if is_records else str(folder),
      records=str(folder) if is_records else "",
      features="",
      split="test",
      selection="" if is_records else chosen.selection,
      selection_seed=0,
      options={} if is_records else dict(chosen.options),
    )
  )


def _config_of(config: ConfigDict, key: str, chosen: SuiteSet, folder: Path) -> ConfigDict:
  """Makes the config that a set is evaluated by. Raises ConfigError."""
  config = ConfigDict(config.to_dict())
  config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # of the devices here
  config.data.limit = 0  # of the run's own images
  evaluators = {name: {"protocols": protocols} for name, protocols in chosen.evaluators.items()}
  config.evaluation.update(compatibility=True, prompts=chosen.prompts)
  config.evaluation.sets = ConfigDict()
  config.evaluation.evaluators = ConfigDict(evaluators)
  if "baseline" in config:
    entry = _entry(key, chosen, folder)
    del entry["split"]
    config.data.update(entry)
    config.data.options = ConfigDict(dict(entry.options))
    config_lib.check_baseline(config)
  else:
    config.evaluation.transfer = ConfigDict()
    # The checkpoint was chosen in training, maybe by prompts that the suite does without.
    checked = ConfigDict(config.to_dict())
    checked.checkpoint.best_metric = ""
    config_lib.check(checked)
  return config


def _without_data(config: ConfigDict) -> ConfigDict:
  """Returns the config of a baseline as its workdir keeps it: its data are the suite's."""
  config = ConfigDict(config.to_dict())
  config.evaluation.sets = ConfigDict()
  return config
