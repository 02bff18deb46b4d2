"""Images and texts of a command line: a file, a folder, or a CSV table; what fails is counted."""

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from input_pipeline.command_line import Parser
from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError
from input_pipeline.readers.raw import stored_images, tables
from input_pipeline.terminal import escape
from plan_jax.runtime.logging import log

_DICOM = ("", ".dcm", ".dicom")  # suffixes of DICOM files, which often have none
_LISTED = 20  # failures


@contextlib.contextmanager
def command(out: str | None = None) -> Iterator[None]:
  """Ends as `errors` where it fails; compiles with the cache.

  The log goes to stderr, for stdout has the results.
  """
  from plan_jax.runtime import compilation  # jax, which --help does without

  compilation.use_cache()
  if not log.handlers:
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.WARNING)
    log.propagate = False
  with errors(out):
    yield


@contextlib.contextmanager
def errors(out: str | None = None) -> Iterator[None]:
  """Ends with one line and exit status 1 for what a user can mend; `out` is what is written."""
  try:
    with disk_errors(Path(out) if out else None):
      yield
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except KeyboardInterrupt:
    raise SystemExit("stopped") from None


def check_place(flag: str, out: str) -> None:
  """Raises UserError, before the work, where no file can be written."""
  folder = next(path for path in Path(out).absolute().parents if path.exists())
  if Path(out).is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
    raise UserError(f"{flag}={out} cannot be written: name another path")


def print_path(kind: str, path: str | Path, stream: TextIO | None = None) -> None:
  """Prints a path that was written, to stdout where no stream is given."""
  print(f"{kind}: {escape(str(path))}", file=stream)


def parser(name: str, description: str) -> Parser:
  """Makes the parser of a command that loads a model, with its --workdir."""
  made = Parser(f"plan-jax {name}", description)
  made.add_argument("--workdir", required=True, help="folder of a run, or of an exported model")
  return made


def is_table(given: str) -> bool:
  """Tells whether an argument names a CSV table."""
  return given.lower().endswith(".csv")


def is_file(given: str) -> bool:
  """Tells whether an argument is one image, or at least neither table nor folder."""
  return not is_table(given) and not Path(given).is_dir()


def read_table(given: str, *columns: str) -> list[tables.Row]:
  """Reads the rows of a table that has these columns. Raises SourceError."""
  rows = list(tables.read(Path(given), columns))
  if not rows:
    raise UserError(f"{given}: there is no row below the column names")
  return rows


def beside(table: str, image: str) -> Path:
  """Returns the path of an image that a table names: absolute, or relative to the table."""
  return Path(table).parent / image


def list_images(given: str) -> list[Path]:
  """Lists a file, the images in and below a folder, or those of a table's column "image".

  Of a folder, hidden files and those whose names are of no image are left aside, and counted in the
  log by their suffix. Raises UserError where there is no image, or a folder cannot be read.
  """
  if not given:
    raise UserError("the images have an empty name: name an image, a folder, or a CSV table")
  if is_table(given):
    return [beside(given, row["image"]) for row in read_table(given, "image")]
  if is_file(given):
    return [Path(given)]
  images, aside, suffixes = [], Counter(), {*_DICOM, *stored_images.suffixes()}
  for path in sorted(_files(given)):
    suffix = path.suffix.lower()
    if path.name.startswith("."):
      aside["hidden"] += 1
    elif suffix in suffixes:
      images.append(path)
    else:
      aside[suffix] += 1
  reasons = ", ".join(f"{count} {reason}" for reason, count in aside.most_common(8))
  if not images:
    raise UserError(
      f"{given} holds no image{f' by name, but {reasons}' * bool(aside)}: name a folder of"
      f" {', '.join(sorted(filter(None, suffixes)))}"
    )
  if aside:
    log.warning(
      f"{aside.total()} files of {escape(given)} are left aside, no images by name:"
      f" {escape(reasons)}"
    )
  return images


def _files(folder: str) -> Iterator[Path]:
  def refuse(error: OSError):
    raise UserError(f"{error.filename} cannot be read ({error.strerror})")

  for parent, _, names in os.walk(folder, onerror=refuse):
    yield from filter(Path.is_file, (Path(parent, name) for name in names))


class Failures:
  """Items that could not be read, or that failed otherwise."""

  def __init__(self, total: int):
    """`total` items are tried."""
    self._unread, self._errors, self._reasons = f"of {total} could not be read", [], Counter()

  def add(self, item: str, error: UserError, reason: str = "") -> None:
    """Counts an item by its reason; without one, as one that could not be read."""
    text = str(error)
    self._reasons[reason or self._unread] += 1
    self._errors.append(text if escape(item) in text else f"{escape(item)}: {text}")

  def finish(self, note: str) -> None:
    """Lists the first on stderr, and ends the process with exit status 1 where there are any.

    Before, it logs a line about what else is amiss, `Predictor.note`, if it is not empty.
    """
    if note:
      log.warning(note)
    if not self._errors:
      return
    shown = self._errors[:_LISTED]
    more = [f"and {len(self._errors) - _LISTED} more"] * (len(self._errors) > _LISTED)
    print(*shown, *more, sep="\n", file=sys.stderr)
    counts = ", ".join(f"{count} {reason}" for reason, count in self._reasons.items())
    raise SystemExit(f"error: {counts}")
