"""The command of all transfer tasks: what can be learned on the image encoder of a run?

  plan-jax transfer --task=detection --workdir=runs/a --records=FOLDER --out=OUT
  plan-jax transfer --task=detection --help

Into --out go evaluation.json and example_scores/ (`plan-jax compare OUT OUT` compares
two), and what the task's help names. The same command goes on where it stopped.
"""

import argparse
import dataclasses
import inspect
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

from input_pipeline.command_line import Parser
from input_pipeline.errors import UserError
from plan_jax.runtime.logging import configure
from plan_jax.transfer.settings import SETTINGS, Settings

_PROGRAM = "plan-jax transfer"


def main(arguments: Sequence[str] | None = None) -> None:
  """Learns what the command line says; one error and exit status 1, or 75 where preempted."""
  configure()
  try:
    _learn(parse(arguments))
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except KeyboardInterrupt:
    raise SystemExit("stopped; the same command goes on from the last checkpoint") from None


def _learn(settings: Settings) -> None:
  # Here, as in `parse`: they take seconds to import, and --help needs none of it.
  from plan_jax.runtime import compilation, preemption
  from plan_jax.transfer.by_name import learn

  compilation.use_cache()
  signal.signal(signal.SIGTERM, preemption.interrupt)
  try:
    learn(settings)
  except preemption.Preempted:
    print("preempted; the same command goes on from the last checkpoint", file=sys.stderr)
    raise SystemExit(preemption.EXIT_CODE) from None


def parse(arguments: Sequence[str] | None = None) -> Settings:
  """Returns the settings of a command line. Raises UserError for a value that cannot be."""
  common = Parser(_PROGRAM, __doc__, add_help=False)
  common.add_argument("--task", choices=tuple(SETTINGS), required=True, help="--help: its flags")
  words = sys.argv[1:] if arguments is None else arguments
  if {"--help", "-h"} & set(words) and not any(word.startswith("--task") for word in words):
    Parser(_PROGRAM, __doc__, parents=[common]).parse_args(["--help"])
  from plan_jax.transfer.by_name import TASKS

  task = common.parse_known_args(arguments)[0].task
  parser = Parser(
    f"{_PROGRAM} --task={task}",
    inspect.getmodule(TASKS[task]).__doc__,
    argument_default=argparse.SUPPRESS,
    parents=[common],
  )
  kinds = get_type_hints(SETTINGS[task])
  for field in dataclasses.fields(SETTINGS[task]):
    required = field.default is dataclasses.MISSING
    text = field.metadata["help"]
    if not required and field.default not in (None, ()):
      text += f" (default: {field.default})"
    kind = _PARSERS[kinds[field.name]]
    parser.add_argument(f"--{field.name}", type=kind, required=required, help=text)
  flags = vars(parser.parse_args(arguments))
  del flags["task"]
  return SETTINGS[task](**flags)


def _truth(text: str) -> bool:
  if text.lower() not in ("true", "false"):
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
  return text.lower() == "true"


def _names(text: str) -> tuple[str, ...]:
  return tuple(filter(None, (name.strip() for name in text.split(","))))


# Type of a field of the settings -> parser of its flag.
_PARSERS = {
  int: int,
  float: float,
  str: str,
  Path: Path,
  tuple: _names,
  bool: _truth,
  bool | None: _truth,
}


if __name__ == "__main__":
  main()
