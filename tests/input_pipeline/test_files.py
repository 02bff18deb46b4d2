"""Atomic writes, locks of folders, and errors of the disk."""

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from fakes.disk import full_disk
from input_pipeline import files
from input_pipeline.errors import UserError
from input_pipeline.files import DiskError, LockedError
from paths import ROOT

TEMPORARY = "a.json.tmp-" + 32 * "0"


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", [None, "old"])
def test_a_text_that_does_not_fit_leaves_what_was(tmp_path, before):
  path = tmp_path / "a.txt"
  if before:
    files.replace_text(path, before)
  message = f"{path}: File too large; raise the limit (ulimit -f), and run the same command again"
  with full_disk(), pytest.raises(DiskError, match=re.escape(message)):
    files.replace_text(path, "x" * 5000)
  assert names(tmp_path) == (["a.txt"] if before else [])
  assert not before or path.read_text() == before
  files.replace_text(path, "ü")
  assert path.read_bytes() == b"\xc3\xbc" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
  "error", [OSError(errno.ENOSPC, "x"), KeyboardInterrupt(), ValueError("x")]
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_whatever_fails_leaves_nothing(tmp_path, error, kind):
  wanted = DiskError if isinstance(error, OSError) else type(error)
  with pytest.raises(wanted), files.replacing(tmp_path / "a") as temporary:  # noqa: PT012
    if kind == "file":
      temporary.write_text("half")
    else:
      (temporary / "deep").mkdir(parents=True)
      (temporary / "deep" / "file").write_text("half")
    raise error
  assert names(tmp_path) == []


def test_a_folder_appears_whole_and_takes_nothing_s_place(tmp_path):
  def write(text):
    with files.replacing(tmp_path / "a") as temporary:
      temporary.mkdir()
      (temporary / "file").write_text(text)
      assert not (tmp_path / "a" / "file").exists() or text == "second"

  write("first")
  with pytest.raises(DiskError, match="Directory not empty; name another path"):
    write("second")
  assert names(tmp_path) == ["a"] and (tmp_path / "a" / "file").read_text() == "first"


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
  with pytest.raises(DiskError, match=f"^/a/b: {line}"), files.disk_errors("/other"):
    raise OSError(number, os.strerror(number), "/a/b")
  with pytest.raises(DiskError, match=f"^/other: {line}"), files.disk_errors("/other"):
    raise OSError(number, os.strerror(number))
  with pytest.raises(DiskError, match=f"^{line}"), files.disk_errors():
    raise OSError(number, os.strerror(number))
  assert issubclass(DiskError, UserError)


def test_errors_of_the_disk_that_libraries_hide():
  """As tensorstore says it (long, with a path), and as tokenizers does."""
  text = (
    'Error writing "x/0" in "/run/checkpoints/2": 9 bytes: No space left on device [os_error=28]'
  )
  line = "^/run/checkpoints/2: No space left on device; free"
  with pytest.raises(DiskError, match=line), files.disk_errors():
    raise ValueError(text)
  with pytest.raises(DiskError, match="^/given: No space left"), files.disk_errors("/given"):
    raise shutil.Error([("/from", "/to", "[Errno 28] No space left on device: '/from' -> '/to'")])
  with pytest.raises(DiskError, match="^/to: No space left"), files.disk_errors():
    raise OSError(errno.ENOSPC, "x", "/from", None, "/to")
  with pytest.raises(DiskError, match="^No space left on device; free"), files.disk_errors():
    raise Exception("No space left on device (os error 28)")  # noqa: TRY002


def test_an_open_file_has_no_name():
  with pytest.raises(DiskError, match="^/given: No space left"), files.disk_errors("/given"):
    raise OSError(errno.ENOSPC, "x", 5)
  with pytest.raises(DiskError, match="^No space left"), files.disk_errors():
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
  with pytest.raises(type(error)) as raised, files.disk_errors():
    raise error
  assert raised.value is error


HOLD = "from input_pipeline import files\nwith files.lock({!r}): print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of the folder `run`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD.format(str(tmp_path / "run"))],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_the_second_is_refused_and_a_dead_one_is_none(tmp_path, holder):
  run = tmp_path / "run"
  message = f"{run} is in use by process {holder.pid} on {socket.gethostname()}: wait for its end"
  with pytest.raises(LockedError, match=re.escape(message)), files.lock(run):
    pytest.fail("both have it")
  assert names(run) == [".lock"]
  holder.kill()
  holder.wait()
  (run / TEMPORARY).write_text("half")
  (run / f"{TEMPORARY}0").write_text("not ours")
  with files.lock(run):
    assert names(run) == [".lock", f"{TEMPORARY}0"]
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "), files.lock(run):
      pytest.fail("this process has it twice")
  assert names(run) == [f"{TEMPORARY}0"]


def test_the_lease_of_another_host_is_waited_for(tmp_path, holder, monkeypatch):
  """That host may be gone, and its lock with it a little later; on this one a lock is in use."""
  (tmp_path / "run" / ".lock").write_text("process 7 on node3\nanother kernel")
  monkeypatch.setattr(time, "sleep", lambda _: (holder.kill(), holder.wait()))
  with files.lock(tmp_path / "run"):
    pass
  monkeypatch.setattr(files, "_LEASE_SECONDS", -1)
  with files.lock(tmp_path / "run"):
    (tmp_path / "run" / ".lock").write_text("process 7 on node3\nanother kernel")
    line = "run is in use by process 7 on node3: wait"
    with pytest.raises(LockedError, match=line), files.lock(tmp_path / "run"):
      pytest.fail("both have it")


def test_an_end_lets_go(tmp_path, holder):
  holder.communicate("\n")
  assert not (tmp_path / "run").exists()  # it was made for the lock, and nothing came into it
  with files.lock(tmp_path / "run"):
    pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
  """Between opening and locking the one before may end."""
  real, calls = fcntl.flock, []

  def flock(descriptor, how):
    calls.append(descriptor)
    if len(calls) == 1:
      (tmp_path / ".lock").unlink()
    real(descriptor, how)

  monkeypatch.setattr(fcntl, "flock", flock)
  with files.lock(tmp_path):
    assert len(calls) == 2
    with pytest.raises(LockedError), files.lock(tmp_path):
      pytest.fail("both have it")


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with files.lock(tmp_path):
    pass
  assert f"{tmp_path} cannot be locked" in caplog.text and "nothing else writes" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number):
  def refuse(path, *_):
    raise OSError(number, os.strerror(number), str(path))

  monkeypatch.setattr(os, "open", refuse)
  line = f"{tmp_path}/.lock: {os.strerror(number)}; "
  with pytest.raises(DiskError, match=line), files.lock(tmp_path):
    pytest.fail("there is nothing to hold")


def test_a_lock_that_cannot_be_written_is_no_lock(tmp_path):
  with full_disk(0), pytest.raises(DiskError, match="File too large"), files.lock(tmp_path):
    pytest.fail("nobody would know who has it")
  with files.lock(tmp_path):
    pass


def test_a_folder_with_less_than_a_file_is_vacant(tmp_path):
  assert files.is_vacant(tmp_path / "none") and files.is_vacant(tmp_path)
  for name in (".lock", TEMPORARY):
    (tmp_path / name).touch()
  assert files.is_vacant(tmp_path)
  (tmp_path / "thesis.txt").touch()
  assert not files.is_vacant(tmp_path)
  shutil.rmtree(tmp_path)
