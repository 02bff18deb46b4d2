"""A study: the runs that the `sweep()` of a config file names, and which of them are complete."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline import records
from input_pipeline.errors import UserError, one_line
from plan_jax.results import rows
from plan_jax.runtime import bundled
from plan_jax.runtime.workdir import FREE, Workdir, flatten

BASE = "base"
_LONGEST = 240  # of a name: file systems end at 255, and the log adds to it

Overrides = dict[str, object]  # flattened key of the config, without "config." -> value


class StudyError(UserError):
  """An impossible study; the message names the file, the run and the key."""


@dataclass(frozen=True)
class Run:
  """One run of a study."""

  overrides: Overrides  # as in `sweep()`
  config: ConfigDict  # with the overrides, and all else that its command sets
  workdir: Workdir  # OUT/NAME
  flags: tuple[str, ...]  # of plan_jax.main

  @property
  def name(self) -> str:
    """Name of the run on disk; it stays when the sweep grows."""
    return name(self.overrides)

  @property
  def log(self) -> Path:
    """File of the run's output."""
    return self.workdir.path.with_name(f"{self.name}.log")

  def command(self, python: str = sys.executable) -> list[str]:
    """Returns the command that trains and evaluates the run, or goes on with it."""
    return [python, "-m", "plan_jax.main", *self.flags]

  def complete(self) -> bool:
    """Returns True where the last training step is evaluated, on the split and the sets wanted.

    Raises UserError where the evaluation is damaged, or the workdir is that of another config.
    """
    if not self.workdir.evaluation.exists():
      return False
    if self.workdir.config.exists():
      self._check_config()
    evaluation, steps = self.evaluation(), self.config.train.steps
    own = f"{self.config.data.dataset}/{self.config.evaluation.split}"
    if not (evaluation.complete and own in evaluation.data):
      return False
    for name, chosen in attached(self.config).items():
      folder, data = Path(chosen.records), f"{name}/{chosen.split}"
      if not records.is_complete(folder):
        return False
      if evaluation.data.get(data) != records.fingerprint(folder):
        return False
    if self.config.checkpoint.evaluate == "best":  # of any step, but chosen when all are done
      return (self.workdir.checkpoints / str(steps)).is_dir()
    return evaluation.step == steps

  def evaluation(self) -> rows.Evaluation:
    """Reads the evaluation. Raises DamagedError where it is not as it was written."""
    return rows.read(self.workdir.evaluation)

  def _check_config(self) -> None:
    # Results of another config must not enter a table. A key that only one of them knows does not
    # count, the library may have grown since; but a stage that only one of them has does.
    before = flatten(self.workdir.read_config())
    now = flatten(json.loads(json.dumps(self.config.to_dict())))
    different = [
      f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
      for key in sorted(before.keys() | now.keys())
      if before.get(key, "absent") != now.get(key, "absent")
      and not key.startswith(FREE)
      and (key.startswith("curriculum.") or (key in before and key in now))
    ]
    if different:
      raise StudyError(
        f"{self.workdir.path} belongs to a run of another config ({'; '.join(different)}):"
        " name another --out, or delete it"
      )


def load(file: str, out: str, extra: Sequence[str] = ()) -> list[Run]:
  """Returns the runs of the study that `file` describes, in its order; runs and writes nothing.

  Args:
    file: a config file with `get_config()`, and `sweep()` that returns one dict of overrides a run.
    out: folder of the study. Runs of the same data overrides share the records OUT/records/NAME,
      and those of the same image encoder too the stored features OUT/features/NAME. Likewise those
      of an evaluation set, in OUT/sets/SET-DIGEST, of how it is converted. Unless their config
      names others.
    extra: more flags for every run, each `--config.KEY=VALUE`.

  Raises:
    StudyError: the file lacks a function, a key or value does not fit the config, or two runs are
      the same or would share a name.
  """
  get_config, sweep = _read(file)
  for flag in extra:
    if not re.match(r"--config\.[^=]+=", flag):
      raise StudyError(f"{flag!r} after --: only --config.KEY=VALUE can stand there")
  runs = []
  for i, overrides in enumerate(sweep):
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
      raise StudyError(f"{file}: run {i} of sweep() is {overrides!r}, not a dict of overrides")
    runs.append(_run(file, get_config, out, overrides, tuple(extra)))
  _check_names(file, runs)
  return runs


def name(overrides: Overrides) -> str:
  """Joins overrides in their order, the seed last, to a file name: `alignment.beta=0.5,seed=3`."""
  ordered = without_seed(overrides) | {k: v for k, v in overrides.items() if k == "seed"}
  parts = [f"{key}={_text(value)}" for key, value in ordered.items()]
  return re.sub(r"[^A-Za-z0-9._=,-]", "_", ",".join(parts)) or BASE


def without_seed(overrides: Overrides) -> Overrides:
  """Returns what runs of the same method have in common."""
  return {key: value for key, value in overrides.items() if key != "seed"}


def data_of(overrides: Overrides) -> Overrides:
  """Returns the overrides that choose the data."""
  return {key: value for key, value in overrides.items() if key.startswith("data.")}


def attached(config: ConfigDict) -> dict[str, ConfigDict]:
  """Returns the evaluation sets that have data, beside the run's own."""
  # Here: workers of a conversion import this file without need of it.
  from plan_jax.evaluators.datasets import given

  return given(config)


def _check_names(file: str, runs: Sequence[Run]) -> None:
  names, seeds = {}, {}
  for run in runs:
    method = tuple(sorted(without_seed(run.overrides).items()))
    other = seeds.setdefault((method, run.config.seed), run)
    if other is not run:
      raise StudyError(f"{file}: sweep() names the run {run.name} twice (also as {other.name})")
    for label in (run.name, name(without_seed(run.overrides))):
      if names.setdefault(label, method) != method:
        raise StudyError(f"{file}: two runs of sweep() would both be called {label}")
    records, data = _records(run.workdir.path.parent, run.overrides), data_of(run.overrides)
    shared = run.config.data.records == records
    if shared and names.setdefault(records, data) != data:
      raise StudyError(f"{file}: runs of different data would share the records {records}")
    if len(run.name) > _LONGEST:
      raise StudyError(
        f"{file}: the name {run.name} is longer than {_LONGEST}: let the run override fewer keys"
      )


def _records(out: str | Path, overrides: Overrides) -> str:
  return str(Path(out, "records", name(data_of(overrides))))


def _encodes(key: str) -> bool:
  """Tells whether stored features depend on a key of the encoder."""
  return key.startswith(("model.image", "model.dtype")) and key != "model.image.adapter"


def _text(value: object) -> str:
  if isinstance(value, tuple):
    return "_".join(_text(item) for item in value) or "none"
  return str(value)


def _read(file: str) -> tuple[Callable[[], ConfigDict], list]:
  try:
    content = runpy.run_path(bundled.find(file))
  except Exception as error:  # whatever the file does
    raise StudyError(f"--config={file}: {type(error).__name__}: {one_line(error)}") from error
  for function in ("get_config", "sweep"):
    if not callable(content.get(function)):
      raise StudyError(f"{file} has no function {function}(): --config names the file of a study")
  sweep = content["sweep"]()
  if not isinstance(sweep, list) or not sweep:
    raise StudyError(f"{file}: sweep() returns {sweep!r}, not a list of runs")
  return content["get_config"], sweep


def _run(file: str, get_config, out: str, overrides: Overrides, extra: tuple[str, ...]) -> Run:
  # Here: workers of a conversion import this file without need of it.
  from configs.local import localised
  from plan_jax import config as config_lib
  from plan_jax.evaluators.datasets import conversion_digest
  from plan_jax.training import pretrained

  workdir = Workdir(Path(out, name(overrides)))
  arguments = tuple(f"--config.{key}={value}" for key, value in overrides.items()) + extra
  config = get_config()
  try:
    config = _parse(config, arguments)
    # As its command makes it.
    given = {flag[9:].partition("=")[0] for flag in arguments}
    config = localised(config, given)
    config = pretrained.with_settings(config, workdir, given)
    config_lib.check(config)
    if not workdir.begun():
      pretrained.tokenizer_folder(config)  # raises where it is not there
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, UserError) as error:
    raise StudyError(f"{file}, run {name(overrides)}: {one_line(error)}") from error
  for key, value in overrides.items():
    parsed = config
    for part in key.split("."):
      parsed = parsed[part]
    # A whole number may stand for a float.
    if parsed != value or (type(parsed) is not type(value) and type(parsed) is not float):
      raise StudyError(
        f"{file}, run {name(overrides)}: config.{key} is {value!r} ({type(value).__name__}) in"
        f" sweep(), but its command would make it {parsed!r} ({type(parsed).__name__})"
      )
  encoder = {key: value for key, value in overrides.items() if _encodes(key)}
  folders = {"data.records": _records(out, overrides)}
  if config.data.store_features:
    folders["data.features"] = str(Path(out, "features", name(data_of(overrides) | encoder)))
  for which, chosen in attached(config).items():
    folder = Path(out, "sets", f"{which}-{conversion_digest(config, chosen)}")
    folders[f"evaluation.sets.{which}.records"] = str(folder / "records")
    if config.data.store_features:
      folders[f"evaluation.sets.{which}.features"] = str(folder / "features" / name(encoder))
  folders = {key: folder for key, folder in folders.items() if not attrgetter(key)(config)}
  config.update_from_flattened_dict(folders)
  arguments += tuple(f"--config.{key}={folder}" for key, folder in folders.items())
  every = (f"--config={file}", *arguments, f"--workdir={workdir.path}")
  return Run(dict(overrides), config, workdir, every)


def _parse(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
  """Returns the config as plan_jax.main gets it from these flags."""
  values = flags.FlagValues()
  argv = ["plan_jax.main", *arguments]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  values(argv)
  return values["config"].value
