"""Command line of the conversion, shared by all that run it."""

from typing import Any

from input_pipeline.command_line import Parser, at_least
from input_pipeline.conversion.convert import convert, describe
from input_pipeline.errors import UserError
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.raw.stored_images import FORMATS, MAX_DECODED_PX


def parser(program: str, description: str) -> Parser:
  """Returns a parser of the arguments of `convert`, but for its workers."""
  parser = Parser(program, description)
  add = parser.add_argument
  add("--dataset", required=True, choices=readers.READERS, help="which reader reads the source")
  add("--source", default="", help="folder of the raw data (the phantom needs none)")
  add("--out", required=True, help="folder to write; a stopped conversion goes on in it")
  bound, whole = "bound of the short side (default %(default)s)", at_least(1)
  add("--image_px", type=whole, default=512, help=bound)
  formats = "keep: JPEG stays JPEG, all else becomes PNG (default %(default)s)"
  add("--image_format", choices=FORMATS, default="keep", help=formats)
  add("--shard_size", type=whole, default=256, help="images a shard (default %(default)s)")
  add("--limit", type=whole, help="only the first so many images of every split")
  add("--selection", default="", help="images chosen by name, or by a .json file of a selection")
  seed = "of a selection by name (default 0)"
  add("--selection_seed", type=at_least(0), default=0, help=seed)
  bound = "images of more pixels are left out (default %(default)s)"
  add("--max_decoded_px", type=whole, default=MAX_DECODED_PX, help=bound)
  bound = "share of images that may be unreadable (default %(default)s)"
  add("--max_skipped_fraction", type=float, default=0.01, help=bound)
  add("--retry_skipped", action="store_true", help="read again what was skipped, after repairs")
  readers.add_options(parser)
  return parser


def run(**arguments: Any) -> None:
  """Runs `convert` and prints its summary, or one error, which is exit status 1."""
  try:
    summary = convert(**arguments)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except KeyboardInterrupt:
    raise SystemExit("stopped; the same command goes on from here") from None
  print(describe(summary))
