"""Errors of the disk."""

import errno
import os
import shutil

import pytest

from input_pipeline.disk import DiskError, disk_errors
from input_pipeline.errors import UserError


@pytest.mark.parametrize(
  ("number", "remedy"),
  [
    (errno.ENOSPC, "free some space, and run the same command again: it goes on"),
    (errno.EDQUOT, "free some space"),
    (errno.EROFS, "name a path that can be written"),
    (errno.EACCES, "mend its permissions"),
    (errno.EPERM, "mend its permissions"),
    (errno.EIO, "look after it"),
    (errno.EMFILE, "ulimit -n"),
    (errno.EISDIR, "remove what is in the way"),
  ],
)
def test_errors_of_the_disk_are_one_line(number, remedy):
  line = f"{os.strerror(number)}; .*{remedy}"
  with pytest.raises(DiskError, match=f"^/a/b: {line}"), disk_errors("/other"):
    raise OSError(number, os.strerror(number), "/a/b")
  with pytest.raises(DiskError, match=f"^/other: {line}"), disk_errors("/other"):
    raise OSError(number, os.strerror(number))
  with pytest.raises(DiskError, match=f"^{line}"), disk_errors():
    raise OSError(number, os.strerror(number))
  assert issubclass(DiskError, UserError)


def test_errors_of_the_disk_that_libraries_hide():
  """As tensorstore says it (long, with a path), and as tokenizers does."""
  text = (
    'Error writing "x/0" in "/run/checkpoints/2": 9 bytes: No space left on device [os_error=28]'
  )
  line = "^/run/checkpoints/2: No space left on device; free"
  with pytest.raises(DiskError, match=line), disk_errors():
    raise ValueError(text)
  with pytest.raises(DiskError, match="^/given: No space left"), disk_errors("/given"):
    raise shutil.Error([("/from", "/to", "[Errno 28] No space left on device: '/from' -> '/to'")])
  with pytest.raises(DiskError, match="^/to: No space left"), disk_errors():
    raise OSError(errno.ENOSPC, "x", "/from", None, "/to")
  with pytest.raises(DiskError, match="^No space left on device; free"), disk_errors():
    raise Exception("No space left on device (os error 28)")  # noqa: TRY002


def test_an_open_file_has_no_name():
  with pytest.raises(DiskError, match="^/given: No space left"), disk_errors("/given"):
    raise OSError(errno.ENOSPC, "x", 5)
  with pytest.raises(DiskError, match="^No space left"), disk_errors():
    raise OSError(errno.ENOSPC, "x", 0, None, 5)


class NumberedError(Exception):
  errno = errno.ENOSPC


@pytest.mark.parametrize(
  "error",
  [
    NumberedError(),
    FileNotFoundError(errno.ENOENT, "x", "a"),
    ValueError("x"),
    TypeError(),
    UserError("mine"),
  ],
)
def test_errors_that_are_no_disk_s_stay(error):
  with pytest.raises(type(error)) as raised, disk_errors():
    raise error
  assert raised.value is error
