"""Files that appear whole or not at all, and are read to an end."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.disk import DiskError, disk_errors

TEMPORARY = "*.tmp-" + 32 * "[0-9a-f]"  # names of `temporary_path`


def temporary_path(path: Path) -> Path:
  """Returns a name beside a file that no other process of any host uses."""
  return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a temporary path, for a file or a folder, that is renamed to `path` in the end.

  The folder around it is made. Where anything fails inside, nothing is left. Raises DiskError.
  """
  path = Path(path)
  temporary = temporary_path(path)
  try:
    with disk_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      yield temporary
      os.replace(temporary, path)
  except BaseException as error:
    remove(temporary)
    # Its folder is there, but takes no files, as /proc.
    missing = isinstance(error, FileNotFoundError) and error.filename2 is None
    if missing and str(error.filename) == str(temporary):
      raise DiskError(f"{path} cannot be written ({error.strerror}); name another path") from error
    raise


def replace_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file, whole or not at all; makes its folder. Raises DiskError."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all; makes its folder. Raises DiskError."""
  replace_bytes(path, text.encode())


def read_regular(path: Path) -> bytes:
  """Reads a regular file: a pipe would not begin, a device might not end. Raises OSError."""
  if path.exists() and not path.is_file() and not path.is_dir():
    raise FileExistsError(errno.EEXIST, "it is no regular file", str(path))
  return path.read_bytes()


def remove(path: Path) -> None:
  """Removes a file or a folder, as far as that can be done."""
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()
