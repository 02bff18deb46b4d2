"""The command: python -m plan_jax.main --config=configs/phantom.py --workdir=runs/phantom."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from input_pipeline.errors import UserError
from plan_jax.runtime import run_flags
from plan_jax.runtime.workdir import ON_OTHER_DATA, Workdir

_CRASHED = 134  # the exit code of a process that aborts


def start(arguments: Sequence[str]) -> NoReturn:
  """Starts this command anew in place of the running process.

  The CPU backend allocates its temporaries anew each step; huge pages save a fifth of the time.
  glibc reads the setting when a process starts, hence the new start.
  """
  os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  os.execv(sys.executable, [sys.executable, "-m", "plan_jax.main", *arguments])


def _run() -> None:
  """Runs what the flags say. Raises UserError."""
  from configs.base import evaluation_set
  from configs.local import localised
  from plan_jax import experiment, suite

  config, workdir = run_flags.CONFIG.value, Workdir(run_flags.WORKDIR.value)
  if (name := run_flags.SUITE.value) is not None:
    folder = Path(run_flags.SETS.value)
    suite.evaluate_suite(config, workdir, name, folder, run_flags.OUT.value)
    return
  if (source := run_flags.ON.value) is not None:
    chosen = evaluation_set(run_flags.DATASET.value, split=run_flags.SPLIT.value or "")
    chosen.source = source
    experiment.evaluate_on(config, workdir, chosen, run_flags.OUT.value)
    return
  overrides = config_flags.get_override_values(flags.FLAGS[run_flags.CONFIG.name])
  mode, steps = run_flags.MODE.value, run_flags.STEPS.value
  if not run_flags.has_own_config():  # which is small already, where it was to be
    if steps:
      config.train.steps = overrides["train.steps"] = steps
    config, steps = localised(config, overrides), None
  try:
    experiment.run(config, workdir, mode, overrides, steps)
  except UserError as error:
    if mode == "evaluate" and any(key.startswith("data.") for key in overrides):
      raise UserError(f"{error}{ON_OTHER_DATA}") from error
    raise


def main(_: list[str]) -> None:
  """Runs the experiment of the flags, with a compile cache; errors of the user are one line."""
  # Here, not above: converter and loader processes import this file, and need none of it.
  import jax

  from plan_jax.runtime import compilation, preemption, processes
  from plan_jax.runtime import logging as run_logging

  logging.set_verbosity(logging.WARNING)
  run_logging.configure()
  if run_flags.PARAMETER_TABLE.value:
    run_logging.log.setLevel("DEBUG")  # the table alone is of that level
  compilation.use_cache()
  signal.signal(signal.SIGTERM, preemption.interrupt)
  try:
    if run_flags.DISTRIBUTED.value:
      processes.start(*(flag.value for flag in run_flags.PROCESS))
      preemption.take_over()
      if jax.default_backend() == "cpu":
        # A program of the cache may order its collectives otherwise than one that is compiled.
        jax.config.update("jax_enable_compilation_cache", False)
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
  app.run(main, flags_parser=run_flags.parse)
