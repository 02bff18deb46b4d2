import json
import math
import os
import struct
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fakes.disk import full_disk
from input_pipeline import shards
from input_pipeline.disk import DiskError, disk_errors
from plan_jax.runtime import logging as reporting


def test_scalars_cut_what_will_happen_again(tmp_path):
  with reporting.Scalars(tmp_path, from_step=0) as scalars:
    for step in (1, 2, 3):
      scalars.write(step, {"train/loss": step, "bad": math.nan})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')  # a line that a kill cut short
  with reporting.Scalars(tmp_path, from_step=2) as scalars:
    scalars.write(3, {"train/loss": 30})
  with reporting.Scalars(tmp_path, from_step=0, mute=True) as other:
    other.write(9, {"train/loss": 9})  # another process: it touches nothing
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["bad"] is None
  assert reporting.curves(tmp_path / "metrics.jsonl") == {
    "train/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]
  }
  assert list((tmp_path / "tensorboard").iterdir())


def test_messages_cannot_move_the_cursor(capsys):
  reporting.configure()
  reporting.log.info("one\ntwo \x1b[1A\rthree")
  assert capsys.readouterr().out == "one\ntwo \\x1b[1A\\rthree\n"


@pytest.fixture
def curves(tmp_path, caplog, monkeypatch):
  """The curves of a run after twenty steps: their file, and what is logged about them."""
  monkeypatch.setattr(reporting.log, "propagate", True)
  with reporting.Scalars(tmp_path, from_step=0) as scalars:
    for step in range(1, 21):
      scalars.write(step, {"loss": step / 3, "none": math.nan})
  return tmp_path / "metrics.jsonl", caplog


def test_a_bad_line_loses_nothing_and_is_named(curves):
  """Of eighteen rows four stayed, and those of earlier starts were gone."""
  path, caplog = curves
  lines = path.read_bytes().splitlines(keepends=True)
  bad = lines[4].replace(b"step", b"st\xffp")
  path.write_bytes(b"".join([*lines[:4], bad, *lines[5:]]))
  with reporting.Scalars(path.parent, from_step=18) as scalars:
    scalars.write(19, {"loss": 1.0})
  assert f"{path}, line 5 is no JSON" in caplog.text and "delete it" in caplog.text
  assert path.read_bytes().splitlines(keepends=True)[:-1] == [*lines[:4], bad, *lines[5:18]]
  steps = [row["step"] for row in reporting.read_scalars(path)]
  assert steps == [1, 2, 3, 4, *range(6, 20)]


def test_a_line_without_its_newline_is_whole(curves):
  path, caplog = curves
  whole, rows = path.read_bytes(), reporting.read_scalars(path)
  path.write_bytes(whole[:-1])
  assert reporting.read_scalars(path) == rows
  with reporting.Scalars(path.parent, from_step=20):
    pass
  assert path.read_bytes() == whole and not caplog.text


def test_a_pipe_in_place_of_the_curves_is_one_line(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "metrics.jsonl")
  monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it would wait for ever"))
  with (
    pytest.raises(DiskError, match="metrics.jsonl: File exists; .*remove what is in the way"),
    disk_errors(),
  ):
    reporting.Scalars(tmp_path, from_step=0)


def test_a_flipped_bit_is_never_another_value(curves):
  path, caplog = curves
  whole, wanted = path.read_bytes(), reporting.read_scalars(path)
  for place in range(0, len(whole), 7):
    caplog.clear()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    rows = reporting.read_scalars(path)
    assert all(row in wanted for row in rows)
    assert rows == wanted or "metrics.jsonl, line " in caplog.text, place


@pytest.mark.parametrize("kept", [0, 3, None])
def test_missing_lines_are_named(curves, kept):
  path, caplog = curves
  lines = path.read_bytes().splitlines(keepends=True)
  path.unlink()
  if kept is not None:
    path.write_bytes(b"".join(lines[:kept]))
  with reporting.Scalars(path.parent, from_step=20):
    pass
  assert f"{path} has no line of step 20: the curves have a gap" in caplog.text


@pytest.mark.parametrize(("most", "kept"), [(100, []), (6000, [1])])
def test_a_full_disk_is_one_line_and_does_not_hang(tmp_path, most, kept):
  """TensorBoard's own writer would stand still for ever, as its thread has ended."""
  values = {f"name/{i}": 0.5 for i in range(200)}
  with (
    full_disk(most),
    pytest.raises(DiskError, match=r"/(metrics.jsonl|events.*): File too large; raise"),
    reporting.Scalars(tmp_path, from_step=0) as scalars,
  ):
    scalars.write(1, values)
  assert [row["step"] for row in reporting.read_scalars(tmp_path / "metrics.jsonl")] == kept
  with reporting.Scalars(tmp_path, from_step=0) as scalars:
    scalars.write(1, values)
  assert [row["step"] for row in reporting.read_scalars(tmp_path / "metrics.jsonl")] == [1]


def events(path):
  """The events of a file: (step, name, value), or what else they tell."""
  data, place, out = path.read_bytes(), 0, []
  while place < len(data):
    size = struct.unpack_from("<Q", data, place)[0] + 16
    event = Event.FromString(shards.unframe(data[place : place + size], size))
    values = [(v.tag, v.simple_value) for v in event.summary.value]
    out.append((event.step, values or event.file_version or event.session_log.status))
    assert event.wall_time > 1e9
    place += size
  return out


def test_events_are_those_of_tensorboard(tmp_path):
  """Those after `from_step`, which an earlier start may have written, are purged."""
  with reporting.Scalars(tmp_path, from_step=4) as scalars:
    scalars.write(5, {"train/loss": 0.5, "none": math.inf})
  (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  with SummaryWriter(str(tmp_path / "wanted"), purge_step=5) as writer:
    writer.add_scalar("train/loss", 0.5, 5)
    writer.add_scalar("none", math.inf, 5)
  (wanted,) = (tmp_path / "wanted").iterdir()
  version = "brain.Event:2"
  assert events(path) == [event for event in events(wanted) if event != (5, version)]
  assert (5, SessionLog.START) in events(path) and events(path)[0] == (0, version)


def test_progress_has_rate_and_eta(monkeypatch):
  clock = iter([0.0, 10.0, 30.0, 31.0, 50.0])
  monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
  progress = reporting.Progress(100, start=0, per_step=8)
  assert "20/100 (20%)  2.00 steps/s, 16 images/s  ETA 0:40" in progress.line(20)
  assert "1.00 steps/s" in progress.line(40)
  progress.restart(50)
  progress.leave_out(9.0)
  assert "1.00 steps/s" in progress.line(60)


def test_duration():
  assert reporting.duration(59.6) == "1:00" and reporting.duration(3723) == "1:02:03"
