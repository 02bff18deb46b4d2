"""Locks of folders: one process of all hosts writes into each."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError
from input_pipeline.files import TEMPORARY, remove

_LOCK = ".lock"
_LEASE_SECONDS = 120  # after 90 an NFS server frees what a host held that is gone


class LockedError(UserError):
  """Another process writes into the folder; the message names it and its host."""


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
    for path in folder.glob(TEMPORARY):
      remove(path)
    yield
  finally:
    remove(folder / _LOCK)
    os.close(descriptor)
    if made:
      with contextlib.suppress(OSError):  # it holds something now
        folder.rmdir()


def is_vacant(folder: Path) -> bool:
  """Tells whether a folder is absent or empty, but for what `lock` puts or removes there."""
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return all(name == _LOCK or Path(name).match(TEMPORARY) for name in names)


def _locked(path: Path) -> int:
  """Opens and locks a file, and writes this process into it; returns its descriptor."""
  deadline = time.monotonic() + _LEASE_SECONDS
  while True:
    # For writing, as NFS wants it. Processes that this one starts do not inherit it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
      os.close(descriptor)
      raise FileExistsError(errno.EEXIST, "it is no regular file", str(path))
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
      remove(path)
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
