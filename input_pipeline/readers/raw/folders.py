"""Raw folders as publishers ship them: finding files, reading them, never leaving the folder."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.example import UnreadableError


class SourceError(UserError):
  """Error of a source that is missing or contradicts itself; names file, row and column."""


def check_option(name: str, value: str, allowed: Sequence[str]) -> None:
  """Raises SourceError where a reader's option has none of the allowed values."""
  if value not in allowed:
    raise SourceError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def folder(source: str | os.PathLike, content: str) -> Path:
  """Returns the folder, with links resolved. Raises SourceError, which names its `content`."""
  if not os.fspath(source):
    raise SourceError(f"a source is needed: the folder that holds {content} (--source)")
  path = Path(source)
  if not path.is_dir():
    raise SourceError(f"{path}: there is no such folder; it should hold {content}")
  return path.resolve()


def find(root: Path, *names: str, hint: str = "") -> Path:
  """Finds the first of the names (paths relative to the root) that exists.

  A name may hold "*", which must then match one path. Raises SourceError, which lists the names;
  `hint` tells where to get the file.
  """
  for name in names:
    paths = sorted(root.glob(name)) if "*" in name else [root / name]
    paths = [path for path in paths if path.exists()]
    if len(paths) > 1:
      listed = ", ".join(path.relative_to(root).as_posix() for path in paths[:4])
      raise SourceError(f"{root}: {name} is there {len(paths)} times ({listed}); keep one")
    if paths:
      return paths[0]
  raise SourceError(f"{root}: there is no {' or '.join(names)}" + (f"; {hint}" if hint else ""))


def read_bytes(root: Path, *files: str) -> bytes:
  """Reads a file below the root, which is resolved: the first of `files` that exists.

  Raises UnreadableError where it cannot be read, or lies outside the root: by "..", or by a link.
  """
  file = next((file for file in files if (root / file).exists()), files[0])
  path = Path(os.path.realpath(root / file))
  if not path.is_relative_to(root):
    raise UnreadableError(f"{root / file} leads out of the source folder, to {path}")
  if not path.is_file():
    raise UnreadableError(f"{root / file}: {'not a file' if path.exists() else 'no such file'}")
  if not os.access(path, os.R_OK):
    raise UnreadableError(f"{root / file}: permission denied")
  return path.read_bytes()


@functools.lru_cache(maxsize=4)
def file_names(directory: Path, suffix: str = "") -> dict[str, str]:
  """Lists the files of that suffix below a folder, however deep: name -> relative path.

  Raises SourceError where there is no such folder, or two files share a name.
  """
  if not directory.is_dir():
    raise SourceError(f"{directory}: there is no such folder")
  paths: dict[str, str] = {}
  for parent, _, names in os.walk(directory):
    for name in filter(lambda name: name.endswith(suffix), names):
      path = os.path.relpath(os.path.join(parent, name), directory)
      if paths.setdefault(name, path) != path:
        raise SourceError(f"{directory}: {paths[name]} and {path} have the same name")
  return paths


def text(data: bytes) -> str:
  """Decodes a report: UTF-8, else Windows-1252, which reads Latin-1's letters too."""
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    return data.decode("cp1252", errors="replace")
