"""Images and texts of a command line: a file, a folder, or a CSV table; what fails is counted."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError
from input_pipeline.readers.raw import tables
from input_pipeline.terminal import escape
from plan_jax.runtime import compilation
from plan_jax.runtime.logging import log

# Files of a folder that may be images; DICOM files often have no suffix.
SUFFIXES = ("", ".dcm", ".dicom", ".jpeg", ".jpg", ".png")
_LISTED = 20  # failures


@contextlib.contextmanager
def command(out: str | None = None) -> Iterator[None]:
  """Ends with one line and exit status 1 for what a user can mend; compiles with the cache.

  The log goes to stderr, for stdout has the results.
  """
  compilation.use_cache()
  if not log.handlers:
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.WARNING)
    log.propagate = False
  try:
    with disk_errors(Path(out) if out else None):
      yield
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except KeyboardInterrupt:
    raise SystemExit("stopped") from None


def parser(name: str, description: str) -> argparse.ArgumentParser:
  """Makes the parser of a command that loads a model, with its --workdir."""
  made = argparse.ArgumentParser(
    prog=f"plan-jax {name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
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

  Files of a folder whose names are not of images are left aside, and counted on stderr. Raises
  UserError where there is none.
  """
  if not given:
    raise UserError("the images have an empty name: name an image, a folder, or a CSV table")
  if is_table(given):
    return [beside(given, row["image"]) for row in read_table(given, "image")]
  if is_file(given):
    return [Path(given)]
  below = sorted(path for path in Path(given).rglob("*") if path.is_file())
  images = [p for p in below if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
  if not images:
    raise UserError(f"{given} holds no image ({', '.join(filter(None, SUFFIXES))})")
  if aside := len(below) - len(images):
    print(f"{aside} files of {escape(given)} are left aside: no images by name", file=sys.stderr)
  return images


class Failures:
  """Items that could not be read."""

  def __init__(self, total: int):
    """`total` items are tried."""
    self._total, self._errors = total, []

  def add(self, item: str, error: UserError) -> None:
    """Counts an item."""
    text = str(error)
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
    raise SystemExit(f"error: {len(self._errors)} of {self._total} could not be read")
