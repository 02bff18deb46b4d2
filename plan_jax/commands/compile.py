"""Compiles the programs of a config for a TPU topology, on a machine without a TPU.

  plan-jax compile --config=configs/mimic.py --topology=v5e:4x4
  plan-jax compile --config=configs/mimic.py:vit,512 --topology=v5p:2x2x4 \
    --config.train.batch_size=1024 --stage=words --json=programs.json

The training step of each stage, and the two encoders as the evaluation runs them: from shapes
alone, without data and weights. A table says what each needs of a chip's memory, and does. Large
programs take minutes. Needs libtpu: pip install 'plan_jax[compile]'. Exit status 1 says that a
program does not fit.
"""

import argparse
from collections.abc import Sequence

from input_pipeline import command_line
from plan_jax.commands import inputs
from plan_jax.runtime import bundled


def main(arguments: Sequence[str]) -> None:
  """Runs the command line; an error is one line, with exit status 1."""
  options, rest = _parser().parse_known_args(arguments)
  # Here, for help needs none of it.
  from plan_jax.commands import programs

  bundled.add_to_path()
  with inputs.errors(options.json):
    fits = programs.run(options, rest)
  if not fits:
    raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
  overrides = "--config.KEY=VALUE overrides a key; configs/base.py has them all."
  parser = command_line.Parser("plan-jax compile", __doc__, epilog=overrides)
  add = parser.add_argument
  add("--config", required=True, help="a config file, e.g. configs/mimic.py:vit")
  chips = "chip and chips along each side, e.g. v5e:4x4, v5p:2x2x4 or v6e:16x16"
  add("--topology", required=True, help=chips)
  add("--stage", help="compile the step of this stage of the curriculum alone")
  add("--json", type=command_line.path, help="file to write the same values to")
  return parser
