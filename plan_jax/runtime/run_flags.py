"""Flags of plan_jax.main: which there are, how they are read, and which go together."""

import argparse
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from input_pipeline.errors import UserError, one_line
from input_pipeline.terminal import escape
from plan_jax.runtime import bundled
from plan_jax.runtime.workdir import ON_OTHER_DATA, Workdir

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, e.g. configs/phantom.py; without, that of the run in --workdir."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
MODE = flags.DEFINE_enum(
  "mode",
  "all",
  ["all", "train", "evaluate", "features"],
  "The work to do; all: train, then evaluate; features: store those of a frozen encoder.",
)
PARAMETER_TABLE = flags.DEFINE_bool(
  "parameter_table", False, "Log the name and shape of every parameter before the first step."
)
STEPS = flags.DEFINE_integer(
  "steps",
  None,
  "Length of training, beyond its end too: trains on by a schedule of so many steps.",
  lower_bound=1,
)
ON = flags.DEFINE_string(
  "on",
  None,
  "Evaluates the run on this data set: a folder with manifest.csv, or of records, or of --dataset.",
)
DATASET = flags.DEFINE_string("dataset", "folder", "Reader of --on, e.g. nih14.")
SPLIT = flags.DEFINE_enum(
  "split", None, ["train", "validation", "test", "all"], "Split of --on; all: all of its images."
)
OUT = flags.DEFINE_string(
  "out", "", "Folder of the results of --on or --suite; by default WORKDIR/on/... or suites/NAME."
)
SUITE = flags.DEFINE_enum(
  "suite", None, ["aep", "radzero"], "Evaluates on the data sets of --sets by a suite's protocols."
)
SETS = flags.DEFINE_string(
  "sets", None, "Folder of --suite: a folder of each data set by its name."
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "This is one of several processes; all there is to say on TPU pods, Slurm, Open MPI.",
)
PROCESS = (
  flags.DEFINE_string("coordinator_address", None, "Elsewhere: HOST:PORT of process 0."),
  flags.DEFINE_integer("num_processes", None, "Elsewhere: the number of processes."),
  flags.DEFINE_integer("process_id", None, "Elsewhere: the number of this process, from 0."),
)
_OF_ON = (DATASET, SPLIT, OUT)
# Command -> its flags, the common ones first.
_HELP = {
  "train": (WORKDIR, CONFIG, STEPS, MODE, PARAMETER_TABLE, DISTRIBUTED, *PROCESS),
  "evaluate": (WORKDIR, ON, *_OF_ON, SUITE, SETS, CONFIG, DISTRIBUTED, *PROCESS),
}
_OWN = str(bundled.root() / "configs" / "run.py")  # the config of a run that has begun


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; an error in them is one line, with exit status 2 where a flag is wrong."""
  command = "evaluate" if "--mode=evaluate" in argv else "train"
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(f"usage: plan-jax {command} --workdir=FOLDER ...\n")
    for flag in _HELP[command]:
      print(f"  --{flag.name:<20} {flags.FLAGS[flag.name].help}")
    print("  --config.KEY=VALUE     overrides a key; configs/base.py has them all")
    sys.exit()
  bundled.add_to_path()
  try:
    rest = flags.FLAGS(_with_config(argv))
    if len(rest) > 1:
      raise flags.Error(f"unexpected argument {rest[1]!r}: flags begin with --")
    CONFIG.value.keys()  # a file that cannot be read is told here
    _check()
    return rest
  except UserError as error:
    sys.exit(f"error: {error}")
  except Exception as error:
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
      text = f"error: {escape(one_line(error))} (plan-jax {command} --help lists the flags)"
      print(text, file=sys.stderr)
      sys.exit(2)
    # Whatever the file of --config does; absl makes its traceback an error of the flag.
    sys.exit(f"error: in the flags: {escape(config_error(error, argv))}")


def config_error(error: Exception, argv: list[str]) -> str:
  """Says what is wrong with the config, or with a key of it."""
  if "Traceback" in str(error) or isinstance(error, OSError):
    return str(error).strip().splitlines()[-1].strip()  # of a file: the error itself comes last
  if not isinstance(error, (AttributeError, KeyError, TypeError)):
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + one_line(error)
  is_set, text = any("config.evaluation.sets." in argument for argument in argv), one_line(error)
  text = text if " " in text else f"there is no key {text}"
  return text + (ON_OTHER_DATA if is_set else " (configs/base.py has all keys)")


def _with_config(argv: list[str]) -> list[str]:
  """Completes --config: the library's own file of that name, or the run's config without any."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  for name in ("config", "workdir"):
    parser.add_argument(f"--{name}", f"-{name}", nargs="?", const="")
  given, rest = parser.parse_known_args(argv[1:])
  if not given.workdir:
    raise flags.Error("--workdir is missing: name the folder of the run, e.g. --workdir=runs/a")
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


def has_own_config() -> bool:
  """Tells whether the config is that of the run in --workdir."""
  file, _, run = flags.FLAGS[CONFIG.name].config_filename.partition(":")
  pairs = (file, _OWN), (run, WORKDIR.value)
  return all(Path(path).resolve() == Path(own).resolve() for path, own in pairs)


def _check() -> None:
  """Raises UserError, naming a flag that is given without another that it needs."""
  if STEPS.value is not None and MODE.value in ("evaluate", "features"):
    raise UserError(f"--steps={STEPS.value}: is to train, not with --mode={MODE.value}")
  if STEPS.value is not None and "baseline" in CONFIG.value:
    raise UserError(f"--steps={STEPS.value}: a baseline is not trained; leave --steps out")
  if SUITE.value is not None or SETS.value is not None:
    _check_suite()
  elif ON.value is None:
    if given := [flag.name for flag in _OF_ON if flags.FLAGS[flag.name].present]:
      raise UserError(f"--{given[0]} is for --on=FOLDER, another data set to evaluate on")
  elif MODE.value != "evaluate" or not has_own_config():
    raise UserError(
      "--on is of plan-jax evaluate (--mode=evaluate), by the run's own config: leave out --config"
    )
  elif not ON.value:
    raise UserError("--on is empty: name the folder of a data set")
  if not DISTRIBUTED.value and (wrong := [flag.name for flag in PROCESS if flag.value is not None]):
    raise UserError(f"--{wrong[0]} is for several processes: give --distributed too")


def _check_suite() -> None:
  """Raises UserError where --suite and --sets do not go with the other flags."""
  if not SUITE.value or not SETS.value:
    raise UserError("--suite=NAME and --sets=FOLDER go together: name both")
  if MODE.value != "evaluate":
    raise UserError("--suite is of plan-jax evaluate (--mode=evaluate)")
  if given := [flag.name for flag in (ON, DATASET, SPLIT) if flags.FLAGS[flag.name].present]:
    raise UserError(f"--suite has data sets and splits of its own: leave out --{given[0]}")
  if "baseline" not in CONFIG.value and not has_own_config():
    raise UserError(
      "--suite evaluates a run by its own config, or a baseline: leave out --config, or name"
      " --config=configs/baselines.py:NAME"
    )
