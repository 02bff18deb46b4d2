"""Writes a run's model as a folder to share, see docs/weights.md.

plan-jax export --workdir=runs/a --out=exported
"""

from collections.abc import Sequence

from input_pipeline.command_line import Parser, at_least, path
from plan_jax.commands import inputs


def main(arguments: Sequence[str]) -> None:
  """Runs the command line."""
  parser = Parser("plan-jax export", __doc__)
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--out", type=path, required=True, help="new folder")
  parser.add_argument("--step", type=at_least(0), help="by default as config.checkpoint.evaluate")
  options = parser.parse_args(arguments)
  with inputs.command(options.out):
    from plan_jax.export import write
    from plan_jax.runtime.workdir import Workdir

    inputs.print_path("export", write(Workdir(options.workdir), options.out, step=options.step))
