"""Converts a raw data set into a folder of records: parallel, resumable, the same bytes every time.

  plan-jax convert --dataset=folder --source=/data/images --out=/data/records

A conversion that was stopped, by Ctrl-C or a kill, goes on with the same command: finished shards
stay. Images that cannot be read are left out and listed in `skipped.jsonl` of the output folder.
"""

from collections.abc import Sequence

from input_pipeline.command_line import at_least
from input_pipeline.conversion import command


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = command.parser("plan-jax convert", __doc__)
  parser.add_argument("--workers", type=at_least(0), help="processes (default: one a core)")
  command.run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
  main()
