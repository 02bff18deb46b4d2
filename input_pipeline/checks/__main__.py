"""Checks whether a data set is sound: one pass over its records, a table, and a page with images.

  plan-jax check --records=data/images --out=check.html
  plan-jax check --records=data/pretraining --against=data/evaluation

Exit status: 0 sound (warnings may be listed), 1 problems were detected, 2 it cannot be checked.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.checks import page
from input_pipeline.checks.check import check, describe
from input_pipeline.command_line import Parser, at_least
from input_pipeline.errors import UserError
from input_pipeline.terminal import escape


def _parser() -> Parser:
  parser = Parser("plan-jax check", __doc__)
  add = parser.add_argument
  add("--records", required=True, help="folder of records, made by input_pipeline.conversion")
  add("--against", help="another folder of records, which must share no patient and no image")
  add("--out", help="HTML page to write")
  add("--workers", type=at_least(0), help="processes (default: one a core)")
  add("--strict", action="store_true", help="warnings are problems too")
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command line: prints the table, ends with the exit status given above."""
  options = _parser().parse_args(arguments)
  try:
    if options.out and Path(options.out).is_dir():
      raise UserError(f"{options.out} is a folder; --out names the page to write")
    result = check(options.records, options.against, workers=options.workers)
    print(describe(result, strict=options.strict))
    if options.out:
      page.write(options.out, result, strict=options.strict)
      print(f"page: {escape(options.out)}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
  except KeyboardInterrupt:
    print("stopped: nothing was decided", file=sys.stderr)
    raise SystemExit(2) from None
  raise SystemExit(0 if result.is_sound(strict=options.strict) else 1)


if __name__ == "__main__":
  main()
