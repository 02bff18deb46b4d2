"""Raw folders as publishers ship them: finding files, reading them, never leaving the folder."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.example import UnreadableError

_MOST_BYTES = 2**31  # of an image; a file without an end would be read until memory ends


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

  A name may hold "*", which must then match one path; a name with a suffix is a regular file's.
  Raises SourceError, which lists the names; `hint` tells where to get the file.
  """
  for name in names:
    paths = sorted(root.glob(name)) if "*" in name else [root / name]
    paths = [path for path in paths if os.path.exists(path)]
    if len(paths) > 1:
      listed = ", ".join(path.relative_to(root).as_posix() for path in paths[:4])
      raise SourceError(f"{root}: {name} is there {len(paths)} times ({listed}); keep one")
    if paths:
      return paths[0] if paths[0].is_dir() and not paths[0].suffix else regular(paths[0])
  raise SourceError(f"{root}: there is no {' or '.join(names)}" + (f"; {hint}" if hint else ""))


def regular(path: Path) -> Path:
  """Returns the path of a regular file: a pipe would not begin, a device might not end.

  Raises SourceError for anything else.
  """
  if not os.path.isfile(path):
    problem = "not a regular file" if os.path.exists(path) else "no such file"
    raise SourceError(f"{path}: {problem}")
  if not os.access(path, os.R_OK):
    raise SourceError(f"{path}: permission denied")
  return path


def read_bytes(root: Path, *files: str) -> bytes:
  """Reads a file below the root, which is resolved: the first of `files` that exists.

  Raises UnreadableError where it cannot be read, or lies outside the root: by "..", by an absolute
  path, or by a link.
  """
  file = next((file for file in files if os.path.exists(root / file)), files[0])
  try:
    path = Path(os.path.realpath(root / file))
  except ValueError:
    raise UnreadableError(f"{root / file}: no file can have such a name") from None
  if not path.is_relative_to(root):
    raise UnreadableError(f"{root / file} leads out of the source folder, to {path}; copy it there")
  try:
    if (size := os.path.getsize(regular(path))) > _MOST_BYTES:
      raise UnreadableError(f"{path}: has {size} bytes, more than an image can ({_MOST_BYTES})")
    return path.read_bytes()
  except (SourceError, OSError) as error:
    raise UnreadableError(str(error)) from None


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
