"""Checks whether a data set is sound: one pass over its records, a table, and a page with images.

  python -m input_pipeline.checks --records=data/images --out=check.html
  python -m input_pipeline.checks --records=data/pretraining --against=data/evaluation

Exit status: 0 sound (warnings may be listed), 1 problems were detected, 2 it cannot be checked.
"""

import argparse
import sys
from pathlib import Path

from input_pipeline.checks import page
from input_pipeline.checks.check import check, describe
from input_pipeline.errors import UserError
from input_pipeline.terminal import escape


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.checks",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--records", required=True, help="folder of records, made by input_pipeline.conversion")
  add("--against", help="another folder of records, which must share no patient and no image")
  add("--out", help="HTML page to write")
  add("--workers", type=int, help="processes (default: one a core)")
  add("--strict", action="store_true", help="warnings are problems too")
  return parser


def main() -> None:
  """Runs the command line: prints the table, ends with the exit status given above."""
  arguments = _parser().parse_args()
  try:
    if arguments.out and Path(arguments.out).is_dir():
      raise UserError(f"{arguments.out} is a folder; --out names the page to write")
    result = check(arguments.records, arguments.against, workers=arguments.workers)
    print(describe(result, strict=arguments.strict))
    if arguments.out:
      page.write(arguments.out, result, strict=arguments.strict)
      print(f"page: {escape(arguments.out)}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
  except KeyboardInterrupt:
    print("stopped: nothing was decided", file=sys.stderr)
    raise SystemExit(2) from None
  raise SystemExit(0 if result.is_sound(strict=arguments.strict) else 1)


if __name__ == "__main__":
  main()
