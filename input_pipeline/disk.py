"""Errors of the disk, as one line with their remedy."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from input_pipeline.errors import UserError

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
  errno.ELOOP: _IN_THE_WAY,
  errno.ENXIO: _IN_THE_WAY,
  errno.EISDIR: _IN_THE_WAY,
  errno.ENAMETOOLONG: "name a shorter path",
  errno.EMFILE: "raise the limit of open files (ulimit -n)",
  errno.EIO: "the disk or its network fails: look after it, and run the same command again",
}
# Libraries in other languages, and shutil, raise these as errors of other kinds, by their text.
_IN_TEXT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class DiskError(UserError):
  """The disk is full, read-only or not this user's; the message names path and remedy."""


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
