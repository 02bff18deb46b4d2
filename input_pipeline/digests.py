"""Digests of what is written: damage on disk is an error, and never another value.

A JSON object holds its own digest, so that both are replaced in one step (`seal`, `read_sealed`).
Files of a folder that are written once have theirs in SHA256SUMS beside them (`write_sums`,
`check_sums`), which `sha256sum --check` of any system reads too.
"""

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.files import read_regular, replace_text

SUMS = "SHA256SUMS"
_KEY = "digest"
_THREADS = 8  # hashlib lets them run side by side


class DamagedError(UserError):
  """A file is missing, or not as it was written; the message names it and the remedy."""


class MissingError(DamagedError):
  """A file is missing, or there are no digests of a folder."""


def seal(content: dict, *, indent: int | None = None) -> str:
  """Returns JSON of an object with 16 hex digits under "digest" that change when any value does.

  With `indent` it has several lines. The layout of the text does not count.
  """
  content = json.loads(json.dumps(content))
  return json.dumps(content | {_KEY: _digest(content)}, indent=indent)


def unseal(text: str | bytes) -> dict:
  """Returns the object that `seal` got. Raises ValueError where the text is not of `seal`."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"is no JSON: {error}") from error
  if not isinstance(content, dict) or _KEY not in content:
    raise ValueError(f"has no {_KEY}: it is damaged, or of another version")
  if content.pop(_KEY) != _digest(content):
    raise ValueError(f"is not as it was written: its {_KEY} differs")
  return content


def read_sealed(path: Path, remedy: str) -> dict:
  """Reads a file of `seal`. Raises DamagedError."""
  try:
    return unseal(read_regular(path))
  except OSError as error:
    problem = f"cannot be read ({error.strerror})"
  except ValueError as error:
    problem = str(error)
  raise DamagedError(f"{path} {problem}; {remedy}")


def write_sums(folder: Path, *, without: Collection[str] = ()) -> None:
  """Writes SHA256SUMS of the files in and below a folder, but for those `without`, whole."""
  files = (path for path in folder.rglob("*") if path.is_file())
  names = {path.relative_to(folder).as_posix() for path in files} - {SUMS, *without}
  names = sorted(names)
  with ThreadPoolExecutor(_THREADS) as pool:
    sums = list(pool.map(_sha256, [folder / name for name in names]))
  lines = [f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)]
  # Whole lines may be cut off too; sha256sum takes this one for a comment.
  replace_text(folder / SUMS, "".join([f"# {len(lines)} files\n", *lines]))


def has_sums(folder: Path, name: str = "") -> bool:
  """Tells whether a folder has SHA256SUMS of `write_sums`, of the file `name` where it is given.

  Those of others have no head.
  """
  path = Path(folder) / SUMS
  content = path.read_bytes() if path.is_file() else b""
  return content.startswith(b"# ") and (not name or f"  {name}\n".encode() in content)


def check_sums(folder: Path, remedy: str, *, below: str = "") -> None:
  """Compares the files of a folder with its SHA256SUMS; files that it does not list are left.

  With `below` only those whose names begin so.

  Raises DamagedError, naming the first file that differs, or MissingError.
  """

  def check(digest: str, name: str) -> None:
    path = folder / name
    try:
      if not path.is_file():
        raise MissingError(f"{path} is missing; {remedy}")
      if _sha256(path) != digest:
        raise DamagedError(f"{path} is not as it was written (see {SUMS} beside it); {remedy}")
    except (OSError, ValueError) as error:
      raise DamagedError(f"{path} cannot be read ({error}); {remedy}") from error

  pairs = [pair for pair in _read_sums(folder / SUMS, remedy) if pair[1].startswith(below)]
  with ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(check, *zip(*pairs, strict=True)))


def _read_sums(path: Path, remedy: str) -> list[tuple[str, str]]:
  """Returns the digests of SHA256SUMS, each with its name."""
  if not path.is_file():
    raise MissingError(
      f"{path} is missing: the folder is not whole, or of another version; {remedy}"
    )
  try:
    head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if head == f"# {len(lines)} files":
      return [(digest, name) for digest, name in (line.split("  ", 1) for line in lines)]
  except (OSError, ValueError):  # also of bytes that are not UTF-8
    pass
  raise DamagedError(f"{path} is damaged; {remedy}")


def _digest(content: dict) -> str:
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
