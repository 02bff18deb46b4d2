"""Atomic writes."""

import errno
import re

import pytest

from fakes.disk import full_disk
from input_pipeline import files
from input_pipeline.disk import DiskError


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


def test_a_folder_that_takes_no_files_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "temporary_path", lambda path: tmp_path / "none" / "a.tmp")
  with pytest.raises(DiskError, match=r"a cannot be written \(No such file or directory\); name"):
    files.replace_text(tmp_path / "a", "text")
  with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "a"):  # nothing was written
    pass
