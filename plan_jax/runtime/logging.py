"""The log of a run: scalars to files, messages and progress to the terminal."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from input_pipeline import digests
from input_pipeline.disk import disk_errors
from input_pipeline.files import read_regular, replace_bytes
from input_pipeline.terminal import escape_lines

log = logging.getLogger("plan_jax")
_FLUSH_SECONDS = 120  # of the events


class Scalars:
  """Scalars by step, in `metrics.jsonl` and as TensorBoard events.

  A line of metrics.jsonl is a JSON object of `digests.seal`: "step", the values, and "digest".
  """

  def __init__(self, workdir: Path, *, from_step: int, mute: bool = False):
    """Opens the files, and cuts what an earlier run wrote after `from_step`: it will come again.

    A damaged line is named and stays; that of `from_step`, where it is missing, is named too. With
    `mute` there are no files: another process writes them.
    """
    self._mute = mute
    if mute:
      return
    # Not its SummaryWriter: that writes in a thread, whose end, of a full disk, it would wait for.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter

    self._path, events = Path(workdir) / "metrics.jsonl", Path(workdir) / "tensorboard"
    kept = [(line, row) for line, row in _lines(self._path) if not row or row["step"] <= from_step]
    if from_step and not any(row and row["step"] == from_step for _, row in kept):
      log.warning(f"{self._path} has no line of step {from_step}: the curves have a gap before it")
    replace_bytes(self._path, b"".join(line for line, _ in kept))
    events.mkdir(exist_ok=True)
    self._file = self._path.open("a")
    self._events = RecordWriter(
      str(events / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}")
    )
    self._flushed = time.monotonic()
    self._add(Event(file_version="brain.Event:2"))
    self._add(Event(step=from_step + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values at `step`; those that are not finite become null. Raises DiskError."""
    if self._mute:
      return
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    with disk_errors(self._path):
      self._file.write(digests.seal({"step": step, **finite}) + "\n")
      self._file.flush()
    with disk_errors(self._events.path):
      for name, value in values.items():
        self._add(Event(step=step, summary=scalar(name, value)))
      if time.monotonic() > self._flushed + _FLUSH_SECONDS:
        self._events.flush()
        self._flushed = time.monotonic()

  def _add(self, event) -> None:
    event.wall_time = time.time()
    self._events.write(event.SerializeToString())

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if not self._mute:
      with disk_errors(self._events.path), contextlib.closing(self._file):
        self._events.close()


def _lines(path: Path) -> Iterator[tuple[bytes, dict | None]]:
  """Yields the lines of a metrics.jsonl with their rows; a damaged one is named, and has none.

  The last line, where a kill cut it short, is named and not among them.
  """
  if not Path(path).exists():
    return
  *lines, rest = read_regular(Path(path)).split(b"\n")
  for number, line in enumerate([*lines, rest] if rest else lines, 1):
    try:
      row = digests.unseal(line)
    except ValueError as error:
      if number > len(lines):
        log.warning(f"{path}, line {number} is cut short and is left out of the curves")
        return
      row = None
      log.warning(f"{path}, line {number} {error}; it is left out of the curves: delete it")
    yield line + b"\n", row


def read_scalars(path: Path) -> list[dict]:
  """Reads the rows of a metrics.jsonl; damaged lines are named and left out."""
  return [row for _, row in _lines(path) if row]


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
  """Reads the curves of a metrics.jsonl: name -> [(step, value), ...]."""
  points: dict[str, list[tuple[int, float]]] = {}
  for row in read_scalars(path):
    for name, value in row.items():
      if name != "step" and value is not None:
        points.setdefault(name, []).append((row["step"], value))
  return points


class Progress:
  """One line now and then: step, share, rate, time left."""

  def __init__(self, total: int, *, start: int, per_step: int):
    """`total` steps of `per_step` images each; `start` of them are done before."""
    self._total, self._per_step = total, per_step
    self._last = (start, time.monotonic())

  def line(self, step: int, extra: str = "") -> str:
    """Writes the line at `step`; the rate is that since the line before."""
    before, then = self._last
    now = time.monotonic()
    self._last = (step, now)
    rate = (step - before) / max(now - then, 1e-9)
    left = duration((self._total - step) / rate) if rate else "?"
    return (
      f"step {step}/{self._total} ({step / self._total:.0%})"
      f"  {rate:.2f} steps/s, {rate * self._per_step:.0f} images/s  ETA {left}  {extra}"
    )

  def restart(self, step: int) -> None:
    """Begins the next rate at `step`, now: what came before (an evaluation) is left out."""
    self._last = (step, time.monotonic())

  def leave_out(self, seconds: float) -> None:
    """Leaves a time since the last line (a compilation) out of the next rate."""
    step, then = self._last
    self._last = (step, then + seconds)


def duration(seconds: float) -> str:
  """Writes hours, minutes and seconds: 1:02:03, or 2:03 below an hour."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Stdout(logging.Handler):
  """A handler that prints each message to standard output, whatever that is at the time."""

  def emit(self, record: logging.LogRecord) -> None:
    print(escape_lines(self.format(record)), flush=True)


def configure() -> None:
  """Sends the messages of the library to standard output; for commands, as a library is silent."""
  if not log.handlers:
    log.addHandler(_Stdout())
    log.setLevel(logging.INFO)
    log.propagate = False
