"""The command: python -m plan_jax.main --config=configs/phantom.py --workdir=runs/phantom."""

import os
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline.errors import one_line

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, e.g. configs/phantom.py; --config.a.b=c overrides a key."
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
_CRASHED = 134  # the exit code of a process that aborts


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; an error in them is one line, not a traceback."""
  flags.mark_flags_as_required(["config", "workdir"])
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.keys()  # a file that cannot be read is told here
    return rest
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    is_file = "Traceback" in str(error) or isinstance(error, OSError)  # the error itself comes last
    text = str(error).strip().splitlines()[-1] if is_file else one_line(error)
    is_key = isinstance(error, (AttributeError, KeyError, TypeError))
    sys.exit(f"error: in the flags: {text.strip()}{is_key * ' (configs/base.py has all keys)'}")


def main(argv: list[str]) -> None:
  """Runs the experiment of the flags, with a compile cache; errors of the user are one line."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: flags begin with --")
  # Here, not above: converter and loader processes import this file, and need none of it.
  import jax

  from configs.local import localised
  from input_pipeline.errors import UserError
  from plan_jax.experiment import run
  from plan_jax.runtime import logging as run_logging
  from plan_jax.runtime import preemption, processes
  from plan_jax.runtime.workdir import Workdir

  logging.set_verbosity(logging.WARNING)
  run_logging.configure()
  if _PARAMETER_TABLE.value:
    run_logging.log.setLevel("DEBUG")  # the table alone is of that level
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/plan_jax/compiled")
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
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
    overrides = config_flags.get_override_values(flags.FLAGS[_CONFIG.name])
    run(localised(_CONFIG.value, overrides), Workdir(_WORKDIR.value), _MODE.value, overrides)
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
    # The CPU backend allocates its temporaries anew each step; huge pages save a fifth of the time.
    # glibc reads the setting when a process starts, hence the new start.
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, "-m", "plan_jax.main", *sys.argv[1:]])
  app.run(main, flags_parser=parse)
