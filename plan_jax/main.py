"""The command: python -m plan_jax.main --config=configs/phantom.py --workdir=runs/phantom."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline.errors import UserError, one_line
from plan_jax.runtime import bundled
from plan_jax.runtime.workdir import ON, Workdir

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, e.g. configs/phantom.py; without, that of the run in --workdir."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
_MODE = flags.DEFINE_enum(
  "mode",
  "all",
  ["all", "train", "evaluate", "features"],
  "The work to do; all: train, then evaluate; features: store those of a frozen encoder.",
)
_PARAMETER_TABLE = flags.DEFINE_bool(
  "parameter_table", False, "Log the name and shape of every parameter before the first step."
)
_STEPS = flags.DEFINE_integer(
  "steps", None, "Length of training, beyond its end too: trains on by a schedule of so many steps."
)
_ON = flags.DEFINE_string(
  "on",
  None,
  "Evaluates the run on this data set: a folder with manifest.csv, or of records, or of --dataset.",
)
_DATASET = flags.DEFINE_string("dataset", "folder", "Reader of --on, e.g. nih14.")
_SPLIT = flags.DEFINE_enum(
  "split", None, ["train", "validation", "test", "all"], "Split of --on; all: all of its images."
)
_OUT = flags.DEFINE_string("out", "", "Folder of the results of --on; by default in WORKDIR/on.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "This is one of several processes; all there is to say on TPU pods, Slurm, Open MPI.",
)
_PROCESS = (
  flags.DEFINE_string("coordinator_address", None, "Elsewhere: HOST:PORT of process 0."),
  flags.DEFINE_integer("num_processes", None, "Elsewhere: the number of processes."),
  flags.DEFINE_integer("process_id", None, "Elsewhere: the number of this process, from 0."),
)
_OF_ON = (_DATASET, _SPLIT, _OUT)
_HELP = (_CONFIG, _WORKDIR, _MODE, _STEPS, _ON, *_OF_ON, _DISTRIBUTED, *_PROCESS)
_CRASHED = 134  # the exit code of a process that aborts
_OWN = str(bundled.root() / "configs" / "run.py")  # the config of a run that has begun


def start(arguments: Sequence[str]) -> NoReturn:
  """Starts this command anew in place of the running process.

  The CPU backend allocates its temporaries anew each step; huge pages save a fifth of the time.
  glibc reads the setting when a process starts, hence the new start.
  """
  os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  os.execv(sys.executable, [sys.executable, "-m", "plan_jax.main", *arguments])


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; an error in them is one line, not a traceback."""
  if {"--help", "-h", "--helpfull"} & set(argv):
    lines = (f"  --{flag.name:<20} {flags.FLAGS[flag.name].help}" for flag in _HELP)
    print("usage: plan-jax train|evaluate --workdir=FOLDER ...\n", *lines, sep="\n")
    print("  --config.KEY=VALUE     overrides a key; configs/base.py has them all")
    sys.exit()
  bundled.add_to_path()
  flags.mark_flag_as_required("workdir")
  try:
    rest = flags.FLAGS(_with_config(argv))
    _CONFIG.value.keys()  # a file that cannot be read is told here
    return rest
  except UserError as error:
    sys.exit(f"error: {error}")
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    is_file = "Traceback" in str(error) or isinstance(error, OSError)  # the error itself comes last
    text = str(error).strip().splitlines()[-1] if is_file else one_line(error)
    is_key = isinstance(error, (AttributeError, KeyError, TypeError))
    hint = is_key * " (configs/base.py has all keys)"
    if is_key and any("config.evaluation.sets." in argument for argument in argv):
      hint = ON
    sys.exit(f"error: in the flags: {text.strip()}{hint}")


def _with_config(argv: list[str]) -> list[str]:
  """Completes --config: the library's own file of that name, or the run's config without any."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  for name in ("config", "workdir"):
    parser.add_argument(f"--{name}", f"-{name}", nargs="?", const="")  # empty: absl tells
  given, rest = parser.parse_known_args(argv[1:])
  if not given.workdir:
    return argv
  config = bundled.find(given.config or "")
  if given.config is None:
    if not Workdir(given.workdir).config.exists():
      raise UserError(
        f"{given.workdir} holds no run: name its folder, or begin one by --config, e.g."
        " --config=configs/phantom.py"
      )
    Workdir(given.workdir).read_config()  # raises where it is damaged
    config = f"{_OWN}:{given.workdir}"
  return [argv[0], f"--config={config}", f"--workdir={given.workdir}", *rest]


def _is_same(path: str, other: str) -> bool:
  return Path(path).resolve() == Path(other).resolve()


def _run() -> None:
  """Runs what the flags say. Raises UserError."""
  from configs.base import evaluation_set
  from configs.local import localised
  from plan_jax import experiment

  overrides = config_flags.get_override_values(flags.FLAGS[_CONFIG.name])
  config, workdir, mode = _CONFIG.value, Workdir(_WORKDIR.value), _MODE.value
  file, _, run = flags.FLAGS[_CONFIG.name].config_filename.partition(":")
  is_own = all(map(_is_same, (file, run), (_OWN, _WORKDIR.value)))
  if _STEPS.value is not None and (_STEPS.value < 1 or mode in ("evaluate", "features")):
    raise UserError(f"--steps={_STEPS.value}: 1 or more, to train (not with --mode={mode})")
  if _STEPS.value is not None and "baseline" in config:
    raise UserError(f"--steps={_STEPS.value}: a baseline is not trained; leave --steps out")
  if _ON.value is None:
    if given := [flag.name for flag in _OF_ON if flags.FLAGS[flag.name].present]:
      raise UserError(f"--{given[0]} is for --on=FOLDER, another data set to evaluate on")
    if not is_own:  # which is small already, where it was to be
      if _STEPS.value:
        config.train.steps = overrides["train.steps"] = _STEPS.value
      config = localised(config, overrides)
    try:
      experiment.run(config, workdir, mode, overrides, _STEPS.value if is_own else None)
    except UserError as error:
      if mode == "evaluate" and any(key.startswith("data.") for key in overrides):
        raise UserError(f"{error}{ON}") from error
      raise
    return
  if mode != "evaluate" or not is_own:
    raise UserError("--on needs --mode=evaluate and the run's own config: leave out --config")
  chosen = evaluation_set(_DATASET.value, split=_SPLIT.value or "")
  chosen.source = _ON.value
  experiment.evaluate_on(config, workdir, chosen, _OUT.value)


def main(argv: list[str]) -> None:
  """Runs the experiment of the flags, with a compile cache; errors of the user are one line."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: flags begin with --")
  # Here, not above: converter and loader processes import this file, and need none of it.
  import jax

  from plan_jax.runtime import compilation, preemption, processes
  from plan_jax.runtime import logging as run_logging

  logging.set_verbosity(logging.WARNING)
  run_logging.configure()
  if _PARAMETER_TABLE.value:
    run_logging.log.setLevel("DEBUG")  # the table alone is of that level
  compilation.use_cache()
  signal.signal(signal.SIGTERM, preemption.interrupt)
  try:
    if _DISTRIBUTED.value:
      processes.start(*(flag.value for flag in _PROCESS))
      preemption.take_over()
      if jax.default_backend() == "cpu":
        # A program of the cache may order its collectives otherwise than one that is compiled.
        jax.config.update("jax_enable_compilation_cache", False)
    elif wrong := [flag.name for flag in _PROCESS if flag.value is not None]:
      raise UserError(f"--{wrong[0]} is for several processes: give --distributed too")
    _run()
  except UserError as error:
    processes.exit(1, f"error: {error}")
  except preemption.Preempted:
    processes.exit(
      preemption.EXIT_CODE, "preempted; the same command goes on from the last checkpoint"
    )
  except KeyboardInterrupt:
    processes.exit(1, "stopped; the same command goes on from the last checkpoint")
  except Exception:
    if not jax.distributed.is_initialized():
      raise
    # Another process may be lost, which is no error of this one: it ends as if it had aborted.
    processes.exit(_CRASHED, traceback.format_exc())


os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it warns that there is no torch

if __name__ == "__main__":
  if "GLIBC_TUNABLES" not in os.environ:
    start(sys.argv[1:])
  app.run(main, flags_parser=parse)
