"""Digests: what was written comes back, or a line that names the file."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from input_pipeline import digests
from input_pipeline.digests import DamagedError, MissingError

CONTENT = {"a": [1, 2.5, None, "é\ud800"], "b": {"c": True}, "d": (1e-05, -0.0)}


@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_sealed_comes_back(indent):
  text = digests.seal(CONTENT, indent=indent)
  assert digests.unseal(text) == CONTENT | {"d": [1e-05, -0.0]}
  # By another tool, in another layout.
  assert digests.unseal(json.dumps(json.loads(text), indent=3, sort_keys=True)) == digests.unseal(
    text
  )


def test_every_single_flipped_bit_is_an_error_or_changes_nothing():
  content = {"value": 0.4, "low": None, "name": "effusion", "rows": [{"n": 12}]}
  text = digests.seal(content, indent=1).encode()
  same = 0
  for i in range(len(text)):
    for bit in range(8):
      changed = text[:i] + bytes([text[i] ^ 1 << bit]) + text[i + 1 :]
      try:
        assert digests.unseal(changed) == content
        same += 1
      except ValueError as error:
        assert "\n" not in str(error)
  assert same == 0


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    (b"\xff\xfe\x00", "is no JSON"),
    ("[1]", "has no digest"),
    ('{"a": 1}', "has no digest"),
    ('{"a": 1, "digest": 7}', "is not as it was written"),
  ],
)
def test_what_is_not_sealed_is_named(tmp_path, text, message):
  path = tmp_path / "x.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(DamagedError, match=f"x.json {message}.*; mend it"):
    digests.read_sealed(path, "mend it")


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "x.json")
  monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it would wait for ever"))
  with pytest.raises(DamagedError, match="x.json cannot be read .it is no regular file.; mend it"):
    digests.read_sealed(tmp_path / "x.json", "mend it")


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(DamagedError, match="x.json cannot be read .No such file.*; mend it"):
    digests.read_sealed(tmp_path / "x.json", "mend it")
  with pytest.raises(DamagedError, match=r"cannot be read .Is a directory.*; mend it"):
    digests.read_sealed(tmp_path, "mend it")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "deep" / "er").mkdir(parents=True)
  for name in ("a", "deep/b  b", "deep/er/c"):
    (tmp_path / name).write_text(name)
  digests.write_sums(tmp_path, without=("a",))
  return tmp_path


def test_sums_are_those_of_sha256sum(folder):
  digests.check_sums(folder, "mend it")
  done = subprocess.run(
    ["sha256sum", "--check", "--strict", digests.SUMS], cwd=folder, capture_output=True, text=True
  )
  assert done.returncode == 0 and done.stdout == "deep/b  b: OK\ndeep/er/c: OK\n"


def test_files_that_are_not_listed_do_not_matter(folder):
  (folder / "a").write_text("changed")
  (folder / "new").write_text("new")
  digests.check_sums(folder, "mend it")


def test_damage_is_named(folder):
  (folder / "deep" / "er" / "c").write_text("changed")
  digests.check_sums(folder, "mend it", below="deep/b")
  with pytest.raises(DamagedError, match="deep/er/c is not as it was written.*; mend it"):
    digests.check_sums(folder, "mend it")
  (folder / "deep" / "er" / "c").unlink()
  with pytest.raises(MissingError, match="deep/er/c is missing; mend it"):
    digests.check_sums(folder, "mend it")


@pytest.mark.parametrize(
  "change", [lambda t: t[:-1], lambda t: t[: t.index("\n") + 1], lambda _: ""]
)
def test_sums_that_are_cut_off_are_an_error(folder, change):
  path = folder / digests.SUMS
  path.write_text(change(path.read_text()))
  with pytest.raises(DamagedError, match="SHA256SUMS is damaged; mend it"):
    digests.check_sums(folder, "mend it")
  path.unlink()
  with pytest.raises(MissingError, match="SHA256SUMS is missing.*; mend it"):
    digests.check_sums(folder, "mend it")
