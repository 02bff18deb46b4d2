"""Locks of folders."""

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
from input_pipeline import locks
from input_pipeline.disk import DiskError
from input_pipeline.locks import LockedError
from paths import ROOT

TEMPORARY = "a.json.tmp-" + 32 * "0"


def names(folder):
  return sorted(path.name for path in folder.iterdir())


HOLD = "from input_pipeline import locks\nwith locks.lock({!r}): print('held', flush=True); input()"


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
  with pytest.raises(LockedError, match=re.escape(message)), locks.lock(run):
    pytest.fail("both have it")
  assert names(run) == [".lock"]
  holder.kill()
  holder.wait()
  (run / TEMPORARY).write_text("half")
  (run / f"{TEMPORARY}0").write_text("not ours")
  with locks.lock(run):
    assert names(run) == [".lock", f"{TEMPORARY}0"]
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "), locks.lock(run):
      pytest.fail("this process has it twice")
  assert names(run) == [f"{TEMPORARY}0"]


def test_the_lease_of_another_host_is_waited_for(tmp_path, holder, monkeypatch):
  """That host may be gone, and its lock with it a little later; on this one a lock is in use."""
  (tmp_path / "run" / ".lock").write_text("process 7 on node3\nanother kernel")
  monkeypatch.setattr(time, "sleep", lambda _: (holder.kill(), holder.wait()))
  with locks.lock(tmp_path / "run"):
    pass
  monkeypatch.setattr(locks, "_LEASE_SECONDS", -1)
  with locks.lock(tmp_path / "run"):
    (tmp_path / "run" / ".lock").write_text("process 7 on node3\nanother kernel")
    line = "run is in use by process 7 on node3: wait"
    with pytest.raises(LockedError, match=line), locks.lock(tmp_path / "run"):
      pytest.fail("both have it")


def test_an_end_lets_go(tmp_path, holder):
  holder.communicate("\n")
  assert not (tmp_path / "run").exists()  # it was made for the lock, and nothing came into it
  with locks.lock(tmp_path / "run"):
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
  with locks.lock(tmp_path):
    assert len(calls) == 2
    with pytest.raises(LockedError), locks.lock(tmp_path):
      pytest.fail("both have it")


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with locks.lock(tmp_path):
    pass
  assert f"{tmp_path} cannot be locked" in caplog.text and "nothing else writes" in caplog.text


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_in_the_place_of_a_lock_is_one_line(tmp_path, kind):
  path = tmp_path / ".lock"
  make = {"link": lambda: path.symlink_to("none"), "pipe": lambda: os.mkfifo(path)}
  make.get(kind, path.mkdir)()
  with (
    pytest.raises(DiskError, match=f"^{path}: .*; name another path, or remove what is in the"),
    locks.lock(tmp_path),
  ):
    pytest.fail("there is no lock")
  assert os.path.lexists(path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number):
  def refuse(path, *_):
    raise OSError(number, os.strerror(number), str(path))

  monkeypatch.setattr(os, "open", refuse)
  line = f"{tmp_path}/.lock: {os.strerror(number)}; "
  with pytest.raises(DiskError, match=line), locks.lock(tmp_path):
    pytest.fail("there is nothing to hold")


def test_a_lock_that_cannot_be_written_is_no_lock(tmp_path):
  with full_disk(0), pytest.raises(DiskError, match="File too large"), locks.lock(tmp_path):
    pytest.fail("nobody would know who has it")
  with locks.lock(tmp_path):
    pass


def test_a_folder_with_less_than_a_file_is_vacant(tmp_path):
  assert locks.is_vacant(tmp_path / "none") and locks.is_vacant(tmp_path)
  for name in (".lock", TEMPORARY):
    (tmp_path / name).touch()
  assert locks.is_vacant(tmp_path)
  (tmp_path / "thesis.txt").touch()
  assert not locks.is_vacant(tmp_path)
  shutil.rmtree(tmp_path)
