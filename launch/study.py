"""A study: the runs that the `sweep()` of a config file names, and which of them are complete."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline.errors import UserError
from plan_jax.results import rows as results
from plan_jax.runtime.workdir import FREE, Workdir, flatten

BASE = "base"
_LONGEST = 240  # of a name: file systems end at 255, and the log adds to it


class StudyError(UserError):
  """A study cannot be; the message names the file, the run and the key."""


@dataclass(frozen=True)
class Run:
  """One run of a study.

  Attributes:
    overrides: flattened key, without "config." -> value.
    config: with the overrides, and all else its command sets.
    workdir: OUT/NAME.
    flags: of plan_jax.main.
  """

  overrides: dict[str, object]
  config: ConfigDict
  workdir: Workdir
  flags: tuple[str, ...]

  @property
  def name(self) -> str:
    """What the run is called on disk; it stays when the sweep grows."""
    return name(self.overrides)

  @property
  def log(self) -> Path:
    """What the run prints."""
    return self.workdir.path.with_name(f"{self.name}.log")

  @property
  def data(self) -> dict[str, object]:
    """The overrides that choose the data."""
    return {key: value for key, value in self.overrides.items() if key.startswith("data.")}

  def command(self, python: str = sys.executable) -> list[str]:
    """The command that trains and evaluates the run, or goes on with it."""
    return [python, "-m", "plan_jax.main", *self.flags]

  def complete(self) -> bool:
    """Whether the evaluation of the last training step is there, on the split that is wanted.

    Raises StudyError where the evaluation is damaged, or the workdir is that of another config.
    """
    if not self.workdir.evaluation.exists():
      return False
    if self.workdir.config.exists():
      self._check_config()
    found = self.results()
    step, rows = found.step, found.rows
    steps = self.config.train.steps
    wanted = f"{self.config.data.dataset}/{self.config.evaluation.split}"
    if not found.complete or any(row.data != wanted for row in rows):
      return False
    if self.config.checkpoint.evaluate == "best":  # of any step, but chosen when all are done
      return (self.workdir.checkpoints / str(steps)).is_dir()
    return step == steps

  def results(self) -> results.Evaluation:
    """What the evaluation found. Raises StudyError where the file is damaged."""
    try:
      return results.read(self.workdir.evaluation)
    except ValueError as error:
      raise StudyError(f"{error}: delete the file, and the run evaluates again") from error

  def _check_config(self) -> None:
    # Figures of another config must not enter a table. A key that only one of them knows does not
    # count, the library may have grown since; but a stage that only one of them has does.
    before = flatten(self.workdir.read_config())
    now = flatten(json.loads(json.dumps(self.config.to_dict())))
    differ = [
      f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
      for key in sorted(before.keys() | now.keys())
      if before.get(key, "absent") != now.get(key, "absent")
      and not key.startswith(FREE)
      and (key.startswith("curriculum.") or (key in before and key in now))
    ]
    if differ:
      raise StudyError(
        f"{self.workdir.path} belongs to a run of another config ({'; '.join(differ)}):"
        " name another --out, or delete it"
      )


def load(file: str, out: str, extra: Sequence[str] = ()) -> list[Run]:
  """The runs of the study that `file` describes, in its order; nothing is run or written.

  Args:
    file: a config file with `get_config()`, and `sweep()` that returns one dict of overrides a run.
    out: folder of the study. Runs of the same data overrides share the records OUT/records/NAME,
      unless their config names others.
    extra: more flags for every run, each `--config.KEY=VALUE`.

  Raises:
    StudyError: the file lacks a function, a key or value does not fit the config, or two runs are
      the same or would share a name.
  """
  get_config, listed = _read(file)
  for flag in extra:
    if not re.match(r"--config\.[^=]+=", flag):
      raise StudyError(f"{flag!r} after --: only --config.KEY=VALUE can stand there")
  runs, seeds, keys, folders = [], {}, {}, {}
  for i, overrides in enumerate(listed):
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
      raise StudyError(f"{file}: run {i} of sweep() is {overrides!r}, not a dict of overrides")
    run = _run(file, get_config, out, overrides, tuple(extra))
    same = tuple(sorted(without_seed(overrides).items()))
    key = (same, run.config.seed)
    if key in seeds:
      raise StudyError(f"{file}: sweep() names the run {run.name} twice (also as {seeds[key]})")
    seeds[key] = run.name
    for label in (run.name, name(without_seed(overrides))):
      if keys.setdefault(label, same) != same:
        raise StudyError(f"{file}: two runs of sweep() would both be called {label}")
    folder = run.config.data.records
    if folder == _records(out, run.data) and folders.setdefault(folder, run.data) != run.data:
      raise StudyError(f"{file}: runs of different data would share the records {folder}")
    if len(run.name) > _LONGEST:
      raise StudyError(
        f"{file}: the name {run.name} is longer than {_LONGEST}: let the run override fewer keys"
      )
    runs.append(run)
  return runs


def name(overrides: dict[str, object]) -> str:
  """The overrides in their order, the seed last, as a file name: `alignment.eta=0.5,seed=3`."""
  ordered = without_seed(overrides)
  if "seed" in overrides:
    ordered["seed"] = overrides["seed"]
  parts = [f"{key}={_text(value)}" for key, value in ordered.items()]
  return re.sub(r"[^A-Za-z0-9._=,-]", "_", ",".join(parts)) or BASE


def without_seed(overrides: dict[str, object]) -> dict[str, object]:
  """What runs of the same method have in common."""
  return {key: value for key, value in overrides.items() if key != "seed"}


def _text(value: object) -> str:
  if isinstance(value, tuple):
    return "_".join(_text(item) for item in value) or "none"
  return str(value)


def _read(file: str) -> tuple[Callable[[], ConfigDict], list]:
  try:
    content = runpy.run_path(file)
  except (OSError, SyntaxError) as error:
    raise StudyError(f"--config={file}: {error}") from error
  for function in ("get_config", "sweep"):
    if not callable(content.get(function)):
      raise StudyError(f"{file} has no function {function}(): --config names the file of a study")
  listed = content["sweep"]()
  if not isinstance(listed, list) or not listed:
    raise StudyError(f"{file}: sweep() returns {listed!r}, not a list of runs")
  return content["get_config"], listed


def _run(file: str, get_config, out: str, overrides: dict, extra: tuple[str, ...]) -> Run:
  from plan_jax import (
    config as config_lib,  # here: workers of a conversion import this file without need of it
  )

  called = name(overrides)
  more = tuple(f"--config.{key}={value}" for key, value in overrides.items()) + extra
  config = get_config()
  try:
    config = _parse(config, more)
    config_lib.check(config)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, UserError) as error:
    told = error.args[0] if isinstance(error, KeyError) else error
    raise StudyError(f"{file}, run {called}: {' '.join(str(told).split())}") from error
  there = {key: _at(config, key) for key in overrides}
  for key, value in overrides.items():
    if not _equal(there[key], value):
      raise StudyError(
        f"{file}, run {called}: config.{key} is {value!r} ({type(value).__name__}) in sweep(), but"
        f" its command would make it {there[key]!r} ({type(there[key]).__name__})"
      )
  if not config.data.records:
    data = {key: value for key, value in overrides.items() if key.startswith("data.")}
    config.data.records = _records(out, data)
    more += (f"--config.data.records={config.data.records}",)
  workdir = Workdir(Path(out, called))
  every = (f"--config={file}", *more, f"--workdir={workdir.path}")
  return Run(dict(overrides), config, workdir, every)


def _records(out: str, data: dict[str, object]) -> str:
  return str(Path(out, "records", name(data)))


def _parse(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
  """The config as plan_jax.main gets it from these flags."""
  values = flags.FlagValues()
  argv = ["plan_jax.main", *arguments]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  values(argv)
  return values["config"].value


def _at(config: ConfigDict, key: str) -> object:
  for part in key.split("."):
    config = config[part]
  return config


def _equal(there: object, value: object) -> bool:
  """Whether the flag says what sweep() says; a whole number may stand for a float."""
  fits = type(there) is type(value) or (type(there), type(value)) == (float, int)
  return fits and there == value
