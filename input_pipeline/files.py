"""Files that appear whole or not at all, folders of one writer, and errors of the disk."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import UserError

_LOCK = ".lock"
_LEASE_SECONDS = 120  # after 90 an NFS server frees what a host held that is gone
_TEMPORARY = "*.tmp-" + 32 * "[0-9a-f]"  # names of `temporary_path`
_FULL = "free some space, and run the same command again: it goes on"
_OTHER = "mend its permissions, or name another path"
_IN_THE_WAY = "name another path, or remove what is in the way"
# What a user can mend; any other error of the system is a bug, or is dealt with where it arises.
_REMEDIES = {
  errno.ENOSPC: _FULL,
  errno.EDQUOT: _FULL,
  errno.EFBIG: "raise the limit (ulimit -f), and run the same command again: it goes on",
  errno.EROFS: "name a path that can be written",
  errno.EACCES: _OTHER,
  errno.EPERM: _OTHER,
  errno.EEXIST: _IN_THE_WAY,
  errno.ENOTEMPTY: _IN_THE_WAY,
  errno.ENOTDIR: _IN_THE_WAY,
  errno.EISDIR: _IN_THE_WAY,
  errno.ENAMETOOLONG: "name a shorter path",
  errno.EMFILE: "raise the limit of open files (ulimit -n)",
  errno.EIO: "the disk or its network fails: look after it, and run the same command again",
}
# Libraries in other languages, and shutil, raise these as errors of other kinds, by their text.
_IN_TEXT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class DiskError(UserError):
  """The disk is full, read-only or not this user's; the message names path and remedy."""


class LockedError(UserError):
  """Another process writes into the folder; the message names it and its host."""


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike | None = None) -> Iterator[None]:
  """Raises DiskError for those errors inside that the disk is to blame for.

  `path` is what is written, where the system does not say it. Also decorates functions.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:
      names = (error.filename2, error.filename)  # numbers are open files
      name = next((name for name in names if name and not isinstance(name, int)), path)
    else:
      number = next((n for n in _IN_TEXT if os.strerror(n) in str(error)), None)
      quoted = re.search('"(/[^"]+)"', str(error))
      name = path or (quoted and quoted[1])
    if number not in _REMEDIES:
      raise
    place = f"{os.fsdecode(name)}: " if name else ""
    raise DiskError(f"{place}{os.strerror(number)}; {_REMEDIES[number]}") from error


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
  except BaseException:
    _remove(temporary)
    raise


def replace_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file, whole or not at all; makes its folder. Raises DiskError."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def replace_text(path: str | os.PathLike, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all; makes its folder. Raises DiskError."""
  replace_bytes(path, text.encode())


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes, of all hosts, out of a folder, which is made if it is not there.

  The lock is the kernel's (flock, which NFS passes on to its server), on the file `.lock`. It ends
  with the process that holds it, however that ends, or with the lease of a host that is gone, which
  is waited for: who starts again, on whatever host, takes over, and no clock of ours decides who is
  alive. What a killed process left half-written is removed.

  Raises LockedError, naming the process that has it, and DiskError where nothing can be written.
  """
  folder = Path(folder)
  with disk_errors(folder):
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder / _LOCK)
  try:
    for path in folder.glob(_TEMPORARY):
      _remove(path)
    yield
  finally:
    _remove(folder / _LOCK)
    os.close(descriptor)
    if made:
      with contextlib.suppress(OSError):  # it holds something now
        folder.rmdir()


def is_vacant(folder: Path) -> bool:
  """Tells whether a folder is absent or empty, but for what `lock` puts or removes there."""
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return all(name == _LOCK or Path(name).match(_TEMPORARY) for name in names)


def _locked(path: Path) -> int:
  """Opens and locks a file, and writes this process into it; returns its descriptor."""
  deadline = time.monotonic() + _LEASE_SECONDS
  while True:
    # For writing, as NFS wants it. Processes that this one starts do not inherit it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      _flock(descriptor, path.parent)
      # Who had it before may have removed the file since it was opened here.
      if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
        os.truncate(descriptor, 0)
        here = f"process {os.getpid()} on {socket.gethostname()}\n{_kernel()}"
        os.pwrite(descriptor, here.encode(), 0)
        return descriptor
    except BlockingIOError:
      holder, _, kernel = os.pread(descriptor, 500, 0).decode(errors="replace").partition("\n")
      if kernel == _kernel() or time.monotonic() > deadline:
        os.close(descriptor)
        raise LockedError(
          f"{path.parent} is in use by {holder}: wait for its end, or name another folder"
        ) from None
      time.sleep(1)
    except BaseException:
      _remove(path)
      os.close(descriptor)
      raise
    os.close(descriptor)


def _flock(descriptor: int, folder: Path) -> None:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError as error:
    logging.getLogger(__name__).warning(
      "%s cannot be locked (%s): take care that nothing else writes there", folder, error
    )


def _kernel() -> str:
  """Names the running system; a host's name may be that of another after a restart."""
  path = Path("/proc/sys/kernel/random/boot_id")
  return path.read_text().strip() if path.exists() else socket.gethostname()


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()
