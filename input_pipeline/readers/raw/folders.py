"""Raw folders as publishers ship them: finding files, reading them, never leaving the folder."""

import functools
import os
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.example import UnreadableError


class SourceError(UserError):
  """A source is missing or contradicts itself; the message names file, row and column."""


def folder(source: str | os.PathLike, what: str) -> Path:
  """The folder, with links resolved. Raises SourceError; `what` says what it should hold."""
  if not os.fspath(source):
    raise SourceError(f"a source is needed: the folder that holds {what} (--source)")
  path = Path(source)
  if not path.is_dir():
    raise SourceError(f"{path}: there is no such folder; it should hold {what}")
  return path.resolve()


def find(root: Path, *names: str, what: str = "") -> Path:
  """The first of the names (paths relative to the root) that is there.

  A name may hold "*", which must then match one path. Raises SourceError, naming all that was
  looked for; `what` tells where to get it.
  """
  for name in names:
    found = sorted(root.glob(name)) if "*" in name else [root / name]
    found = [path for path in found if path.exists()]
    if len(found) > 1:
      listed = ", ".join(path.relative_to(root).as_posix() for path in found[:4])
      raise SourceError(f"{root}: {name} is there {len(found)} times ({listed}); keep one")
    if found:
      return found[0]
  looked_for = " or ".join(names)
  raise SourceError(f"{root}: there is no {looked_for}" + (f"; {what}" if what else ""))


def read_bytes(root: Path, file: str) -> bytes:
  """The bytes of a file below the root.

  Args:
    root: resolved (as `folder` gives it).
    file: path relative to it.

  Raises UnreadableError where it cannot be read, or lies outside the root: by "..", or by a link.
  """
  return inside(root, file).read_bytes()


def inside(root: Path, file: str) -> Path:
  """The path of a readable file below the root. Raises UnreadableError as `read_bytes` does."""
  path = Path(os.path.realpath(root / file))
  if not path.is_relative_to(root):
    raise UnreadableError(f"{root / file} leads out of the source folder, to {path}")
  if not path.is_file():
    raise UnreadableError(f"{root / file}: {'not a file' if path.exists() else 'no such file'}")
  if not os.access(path, os.R_OK):
    raise UnreadableError(f"{root / file}: permission denied")
  return path


@functools.lru_cache(maxsize=4)
def file_names(directory: Path, suffix: str = "") -> dict[str, str]:
  """Of the files below a folder: name -> path relative to it, for data sets spread over archives.

  Args:
    directory: the folder.
    suffix: takes only the files whose names end so (".png").

  Raises SourceError where there is no such folder, or two files share a name.
  """
  if not directory.is_dir():
    raise SourceError(f"{directory}: there is no such folder")
  found: dict[str, str] = {}
  for parent, _, names in os.walk(directory):
    for name in filter(lambda name: name.endswith(suffix), names):
      path = os.path.relpath(os.path.join(parent, name), directory)
      if found.setdefault(name, path) != path:
        raise SourceError(f"{directory}: {found[name]} and {path} have the same name")
  return found


def text(data: bytes) -> str:
  """A report's bytes as text: UTF-8, else Windows-1252, which reads Latin-1's letters too."""
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    return data.decode("cp1252", errors="replace")
