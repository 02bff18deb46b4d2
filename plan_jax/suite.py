"""A suite: one model on all data sets that a project reports together, and one table of them."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.conversion import convert, selections, settings
from input_pipeline.errors import UserError
from input_pipeline.readers.by_name import default_options
from input_pipeline.terminal import escape, join
from plan_jax import config as config_lib
from plan_jax import experiment
from plan_jax.evaluators import suite_table
from plan_jax.evaluators.suite_table import Head, Line
from plan_jax.evaluators.suites import SUITES, SuiteSet
from plan_jax.inference.load import load
from plan_jax.results.rows import Row
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir


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

  Raises UserError where the folder holds no set of the suite, records were converted by other rules
  than the suite's, or model or data are not fit.
  """
  suite = SUITES[name]
  present = {key: chosen for key, chosen in suite.items() if (folder / key).is_dir()}
  if not present:
    raise UserError(
      f"--sets={folder} holds none of the folders {join(suite)} (docs/leaderboard.md)"
    )
  for key, chosen in suite.items():
    if key not in present:
      log.info(f"suite {name}: {key} is missing: {escape(suite_table.remedy(key, chosen, folder))}")
  for key, chosen in present.items():
    _check_records(chosen, folder / key)
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
    top = Head(name, folder.absolute(), title, tuple(rows))
    # After every set: what stops the next costs none of those before.
    processes.on_primary(lambda: suite_table.write(place, top, rows))  # noqa: B023
  lines = suite_table.lines_of(name, rows)
  log.info(f"\n{suite_table.table(top, lines)}\n\nsuite: {place / suite_table.FILE}")
  return lines


def _check_records(chosen: SuiteSet, folder: Path) -> None:
  """Raises UserError where a folder of records was converted otherwise than the suite has it."""
  if not _is_records(folder):
    return
  stored = settings.read(folder)
  if str(stored["selection"]).startswith("hash "):  # of a file, whose name and seed lie beside
    selection = selections.load(folder / convert.SELECTION)
    stored |= {"selection": selection.name, "selection_seed": selection.seed}
  flags = {"dataset": chosen.dataset, "selection": chosen.selection} | dict(chosen.options)
  wanted = default_options(chosen.dataset) | {"selection_seed": 0, "limit": None} | flags
  different = [
    f"{name}={stored.get(name)!r} instead of {value!r}"
    for name, value in wanted.items()
    if stored.get(name) != value
  ]
  if different:
    command = " ".join(f"--{name}={value}" for name, value in flags.items() if value)
    raise UserError(
      f"{folder} was converted with {join(different)}, which is not the suite's: convert it by"
      f" python -m input_pipeline.conversion {command}, or put the raw data there"
    )


def _is_records(folder: Path) -> bool:
  return (folder / "dataset_info.json").is_file()


def _entry(key: str, chosen: SuiteSet, folder: Path) -> ConfigDict:
  """Makes an entry of config.evaluation.sets of a folder of raw data or of records."""
  is_records = _is_records(folder)
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
    checked.checkpoint.update(best_metric="", evaluate="last")
    config_lib.check(checked)
  return config


def _without_data(config: ConfigDict) -> ConfigDict:
  """Returns the config of a baseline as its workdir keeps it: its data are the suite's."""
  config = ConfigDict(config.to_dict())
  config.evaluation.sets = ConfigDict()
  return config
