"""The command plan-jax, also python -m plan_jax: NAME and what follows go to one module.

plan-jax train --config=configs/phantom.py --workdir=runs/phantom
"""

import importlib
import os
import select
import sys
from collections.abc import Sequence

from input_pipeline.terminal import escape
from plan_jax.runtime import bundled

# Name -> module, whose main(arguments) is called, and its line of the help.
COMMANDS = {
  "train": ("plan_jax.commands.train", "pre-train and evaluate a run, or go on with it"),
  "evaluate": ("plan_jax.commands.evaluate", "evaluate a run, on its own or on other data"),
  "ground": ("plan_jax.commands.ground", "show where in images phrases are"),
  "classify": ("plan_jax.commands.classify", "score images for findings by their names"),
  "embed": ("plan_jax.commands.embed", "write the embeddings of images or texts to a file"),
  "app": ("plan_jax.commands.app", "open a run in a browser"),
  "convert": ("input_pipeline.conversion.__main__", "convert a raw data set into records"),
  "check": ("input_pipeline.checks.__main__", "check whether records are sound"),
  "compile": ("plan_jax.commands.compile", "compile a config for a TPU topology, without a TPU"),
  "compare": ("plan_jax.compare", "tell which differences between two runs are real"),
  "tables": ("plan_jax.commands.tables", "make tables again from per-example scores"),
  "transfer": ("plan_jax.transfer.__main__", "learn a task on a run's image encoder"),
  "export": ("plan_jax.commands.export", "write a run's model as a folder to share"),
  "sweep": ("launch.sweep", "run the study that a config file describes"),
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Hands the command line on; ends with exit status 2 where it names no command."""
  name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
  if name in ("--help", "-h"):
    lines = (f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())
    print("usage: plan-jax NAME ...\n", *lines, "\nplan-jax NAME --help has the flags.", sep="\n")
  elif name == "--version":
    print(f"plan-jax {importlib.import_module('plan_jax').__version__}")
  elif name not in COMMANDS:
    print(f"error: no command {escape(name)!r}: plan-jax --help lists them", file=sys.stderr)
    raise SystemExit(2)
  else:
    bundled.add_to_path()
    try:
      importlib.import_module(COMMANDS[name][0]).main(rest)
      sys.stdout.flush()
    except BrokenPipeError:  # of stdout, whose reader went away as `head` does, or of a worker
      if not _lacks_a_reader(sys.stdout.fileno()):
        raise
      # What is left unwritten would be tried once more at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      raise SystemExit(1) from None


def _lacks_a_reader(descriptor: int) -> bool:
  poll = select.poll()
  poll.register(descriptor, 0)  # errors are told in any case
  return bool(poll.poll(0))


if __name__ == "__main__":
  main()
