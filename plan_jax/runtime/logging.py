"""The log of a run: scalars to files, messages and progress to the terminal."""

import json
import logging
import math
import time
from pathlib import Path

from input_pipeline.files import replace_text
from input_pipeline.terminal import escape_lines

log = logging.getLogger("plan_jax")


class Scalars:
  """Scalars by step, in `metrics.jsonl` (one JSON object a line) and as TensorBoard events."""

  def __init__(self, workdir: Path, *, from_step: int, mute: bool = False):
    """Opens the files, and cuts what an earlier run wrote after `from_step`: it will come again.

    With `mute` there are no files: another process writes them.
    """
    self._mute = mute
    if mute:
      return
    from tensorboardX import SummaryWriter

    path = Path(workdir) / "metrics.jsonl"
    kept = [row for row in read_scalars(path) if row["step"] <= from_step]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    self._events = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=from_step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values at `step`; those that are not finite become null in the JSON."""
    if self._mute:
      return
    finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
    self._file.write(json.dumps({"step": step, **finite}) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if not self._mute:
      self._file.close()
      self._events.close()


def read_scalars(path: Path) -> list[dict]:
  """Reads the lines of a metrics.jsonl; a last line cut short by a kill is left out."""
  if not Path(path).exists():
    return []
  rows = []
  for line in Path(path).read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


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

  def skip(self) -> None:
    """Leaves the time since the last line (an evaluation) out of the next rate."""
    self._last = (self._last[0], time.monotonic())


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
