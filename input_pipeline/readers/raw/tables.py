"""Tables as data sets ship them: CSV, plain, gzipped or zipped, and JSON; errors name the place."""

import csv
import gzip
import io
import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from input_pipeline.readers.raw.folders import SourceError, regular

_MOST_CHARACTERS = 1 << 24  # of a line, and of a cell, for which the csv module's bound is 131,072
_INTEGER_DIGITS = 300  # a float holds as many


class Row(dict[str, str]):
  """Cells of a row by column, stripped of white space.

  Attributes:
    file: the table.
    number: the row's line as a spreadsheet counts: the column names are row 1.
  """

  def __init__(self, cells: Iterable[tuple[str, str]], file: Path, number: int):
    super().__init__(cells)
    self.file, self.number = file, number

  @property
  def place(self) -> str:
    """File and row, for errors."""
    return f"{self.file.name} row {self.number}"

  def error(self, column: str, problem: str) -> SourceError:
    """Makes the error of a cell; a long problem is cut, as a cell may hold megabytes."""
    return SourceError(f"{self.file}, row {self.number}, column {column!r}: {problem:.1000}")

  def wrong(self, column: str, expected: str) -> SourceError:
    """Makes the error of a cell that is not as expected."""
    return self.error(column, f"is {self[column]!r:.200}; it must be {expected}")

  def text(self, column: str) -> str:
    """Returns a cell that must not be empty. Raises SourceError."""
    if not self[column]:
      raise self.wrong(column, "filled")
    return self[column]

  def number_or_none(self, column: str) -> float | None:
    """Parses a finite number; None for an empty cell or "nan". Raises SourceError."""
    cell = self[column]
    if is_blank(cell):
      return None
    try:
      value = float(cell)
    except ValueError:
      raise self.wrong(column, "a number") from None
    if not math.isfinite(value):
      raise self.wrong(column, "a finite number")
    return value

  def numbers(self, *columns: str) -> tuple[float, ...] | None:
    """Parses finite numbers; None where all cells are blank. Raises SourceError."""
    values = [self.number_or_none(column) for column in columns]
    if all(value is None for value in values):
      return None
    for column, value in zip(columns, values, strict=True):
      if value is None:
        raise self.wrong(column, f"a number where {', '.join(columns)} are not all empty")
    return tuple(values)

  def one_of(self, column: str, allowed: Sequence[str]) -> str:
    """Returns a cell that must be one of the allowed. Raises SourceError."""
    if self[column] not in allowed:
      raise self.wrong(column, f"one of {', '.join(allowed)}")
    return self[column]

  def label(self, column: str) -> int | None:
    """Parses 1, 0 or -1 as CheXpert writes them ("1.0"); None for a blank. Raises SourceError."""
    value = self.number_or_none(column)
    if value is None:
      return None
    if value not in (1, 0, -1):
      raise self.wrong(column, "1.0, 0.0, -1.0 or empty")
    return int(value)

  def labels(self, columns: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Parses the labels that are not blank: (column, 1, 0 or -1). Raises SourceError."""
    filled = (column for column in columns if self[column])
    return tuple((name, value) for name in filled if (value := self.label(name)) is not None)


def is_blank(cell: str) -> bool:
  """Tells whether a cell holds nothing, or the word that pandas writes for nothing."""
  return cell.lower() in ("", "nan", "none", "null")


def parse_json(text: str) -> Any:
  """Parses JSON that can be reckoned with and written as UTF-8.

  Whole numbers beyond all floats become infinite, as json makes others. Raises ValueError for what
  is no JSON, is nested too deep, has a key twice in an object, or holds half a character (a lone
  surrogate).
  """
  try:
    value = json.loads(text, parse_int=_parse_int, object_pairs_hook=_once)
    json.dumps(value, ensure_ascii=False).encode()
  except RecursionError:
    raise ValueError("it is nested too deep") from None
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise ValueError(f"it holds half a character, {half!a}") from None
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes an object of JSON. Raises ValueError for two equal keys, of which one would be lost."""
  content = dict(pairs)
  if len(content) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the key {twice!r} stands twice")
  return content


def _parse_int(digits: str) -> int | float:
  return int(digits) if len(digits) < _INTEGER_DIGITS else float(digits)


def read_json(path: Path) -> Any:
  """Reads a JSON file as `parse_json` does. Raises SourceError where it is none."""
  try:
    return parse_json(regular(path).read_text(encoding="utf-8-sig"))
  except (ValueError, OSError) as error:
    raise SourceError(f"{path}: not JSON in UTF-8 ({error}); download it again") from None


def read_list(path: Path, noun: str) -> list[Any]:
  """Reads a JSON file that holds a list of nouns. Raises SourceError where it is none."""
  entries = read_json(path)
  if not isinstance(entries, list):
    raise SourceError(f"{path}: must be a list of {noun}")
  return entries


def read(
  path: Path, required: Sequence[str], *, names: Sequence[str] | None = None
) -> Iterator[Row]:
  """Reads the rows of a CSV table, blank ones left out.

  Args:
    path: a .csv, .csv.gz, or a .zip with one table in it.
    required: columns that must be there.
    names: the columns' names where the file's own first row cannot be used; that row is then
      skipped, and cells beyond the names must be empty.

  Raises SourceError: a damaged or truncated file, not UTF-8, a column missing or twice, a row of
  another length.
  """
  csv.field_size_limit(_MOST_CHARACTERS)
  with _errors(path), _open(path) as binary:
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    rows = csv.reader(_lines(text), strict=True)
    first = next(rows, None)
    columns = [name.strip() for name in names or first or []]
    if missing := [name for name in required if name not in columns]:
      raise SourceError(
        f"{path}: no column {', '.join(map(repr, missing))};"
        f" the first row names {', '.join(map(repr, columns)) or 'nothing'}"
      )
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
      raise SourceError(f"{path}: the first row names {', '.join(map(repr, twice))} twice")
    for number, cells in enumerate(rows, start=2):
      if not any(cells):
        continue
      if names and not any(cells[len(columns) :]):
        cells = cells[: len(columns)]
      if len(cells) != len(columns):
        raise SourceError(
          f"{path}, row {number}: {len(cells)} cells for {len(columns)} columns: cut short, or a"
          " comma without quotes"
        )
      yield Row(zip(columns, map(str.strip, cells), strict=True), path, number)


def _lines(text: IO[str]) -> Iterator[str]:
  """Reads lines, none of which may fill the memory, as a small archive can."""
  while line := text.readline(_MOST_CHARACTERS):
    if len(line) == _MOST_CHARACTERS:
      raise csv.Error(f"a line has {_MOST_CHARACTERS} characters or more")
    yield line


@contextmanager
def _errors(path: Path) -> Iterator[None]:
  """Turns the libraries' errors into a SourceError that names the file."""
  try:
    yield
  except UnicodeDecodeError as error:
    raise SourceError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
  except csv.Error as error:
    raise SourceError(f"{path}: not a CSV file with commas and double quotes ({error})") from None
  except (EOFError, zlib.error, zipfile.BadZipFile, OSError, RuntimeError) as error:
    raise SourceError(f"{path}: cannot be read to its end ({error}); download it again") from None


def _open(path: Path) -> IO[bytes]:
  regular(path)
  if path.suffix == ".gz":
    return gzip.open(path, "rb")
  if path.suffix != ".zip":
    return open(path, "rb")
  with zipfile.ZipFile(path) as archive:  # what is opened in it stays open
    tables = [n for n in archive.namelist() if n.endswith(".csv") and "__MACOSX" not in n]
    if len(tables) != 1:
      raise SourceError(f"{path}: holds {len(tables)} tables, not one")
    return archive.open(tables[0])
