"""The training loop, of pre-training and of heads."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.errors import UserError
from plan_jax.runtime import preemption, processes
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import Progress, Scalars, duration, log
from plan_jax.runtime.mesh import to_global
from plan_jax.training.state import TrainState

_NORMS = ("loss", "gradient_norm", "parameter_norm")  # each must stay finite
_DROPPED = (
  "train/dropped_sentences counts the sentences of a batch that do not fit into"
  " config.text.max_tokens and .max_words and are not trained on in this step: {:.1f} in the mean"
)


class DivergedError(UserError):
  """The loss is no number any more; the message says since when and what to try."""


@dataclass(frozen=True)
class Loop:
  """A training: its step, its evaluation, and how often it logs, evaluates and saves.

  Attributes:
    steps: length of the training.
    batch_size: images a step, for the rate that is logged.
    mesh: the devices that share each batch.
    update: (step, state, global batch) -> (state, scalar metrics); `step` counts from 0.
    log_every_steps: steps whose mean is one point of the curves.
    evaluate_every_steps: how often `evaluate` is called, and after the last step; 0: never.
    save_every_steps: how often the state is saved, and after the last step; 0: then alone.
    evaluate: state -> metrics by name, for the curves and the choice of the best checkpoint.
    stop: (step, metrics of an evaluation) -> whether to end early.
    describe: step -> a note beside the loss; where it changes, the step is compiled anew.
    remedy: advice where the loss diverges.
  """

  steps: int
  batch_size: int
  mesh: Mesh
  update: Callable[[int, TrainState, dict], tuple[TrainState, dict]]
  log_every_steps: int
  evaluate_every_steps: int
  save_every_steps: int
  evaluate: Callable[[TrainState], dict[str, float]]
  stop: Callable[[int, dict[str, float]], bool] = lambda *_: False
  describe: Callable[[int], str] = lambda _: ""
  remedy: str = ""

  def run(
    self,
    state: TrainState,
    done: int,
    batches: Iterator[dict],
    checkpoints: Checkpoints,
    folder: Path,
  ) -> None:
    """Trains from step `done` to the end; the states to use are in the checkpoints then.

    The memory of `state` is given away. The hosts' `batches`, from step `done` on, are closed in
    the end. `folder` is that of the curves.

    Raises DivergedError where the loss or the parameters are no numbers, and Preempted, with the
    state saved, where the machine is taken away.
    """
    began, early = time.monotonic(), False
    with (
      contextlib.closing(batches),
      Scalars(folder, from_step=done, mute=not processes.is_primary()) as scalars,
      preemption.Notice() as notice,
    ):
      curves = _Curves(self, scalars, done)
      for step in range(done, self.steps):
        # 1. The batch of this step, a function of (seed, step) alone.
        batch = to_global(next(batches), self.mesh)
        # 2. The update, dispatched; the device works while the host goes on.
        with curves.compilation(step):
          state, metrics = self.update(step, state, batch)
        # 3. The metrics of earlier steps, to files and terminal; it ends where one is no number.
        curves.flush_if_due()
        curves.add(metrics)
        now = step + 1
        preempted = notice.received(now - done)
        # 4. Evaluation, before the checkpoint, so that the checkpoint knows its metrics.
        last = now == self.steps
        evaluates = self.evaluate_every_steps and (last or now % self.evaluate_every_steps == 0)
        saves = last or preempted or (self.save_every_steps and now % self.save_every_steps == 0)
        if evaluates or saves:  # they wait for this step in any case, and no checkpoint holds a NaN
          curves.flush()
        values = None
        if evaluates:
          values = self.evaluate(state)
          curves.add_evaluation(values)
          early = self.stop(now, values)
        # 5. The checkpoint.
        if saves or early:
          checkpoints.save(now, state, values)
        if preempted or early:
          break
      checkpoints.wait()
      # The last evaluation and its checkpoint take their time.
      preempted = preempted or notice.received(now - done + 1)
    if preempted:
      log.info(f"preempted: step {now} is saved")
      raise preemption.Preempted
    log.info(f"trained steps {done + 1} to {now} in {duration(time.monotonic() - began)}")


class _Curves:
  """Metrics of steps, written every so often and a step late: the device then works already."""

  def __init__(self, loop: Loop, scalars: Scalars, done: int):
    self._loop, self._scalars = loop, scalars
    self._progress = Progress(loop.steps, start=done, per_step=loop.batch_size)
    self._first = self._now = done
    self._pending: list[dict] = []
    self._note: str | None = None  # that of the step before
    self._told_dropped = False

  @contextlib.contextmanager
  def compilation(self, step: int) -> Iterator[None]:
    """Leaves the time in here out of the rate where `step` is the first of its stage."""
    before, self._note = self._note, self._loop.describe(step)
    began = time.monotonic()
    yield
    if self._note != before:
      self._progress.leave_out(time.monotonic() - began)

  def add(self, metrics: dict) -> None:
    """Adds the metrics of one more step, on the device."""
    self._pending.append(metrics)
    self._now += 1

  def add_evaluation(self, values: dict[str, float]) -> None:
    """Writes the metrics of an evaluation, whose time is left out of the rate."""
    if values:
      self._scalars.write(self._now, values)
      log.info("  " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
    self._progress.restart(self._now)

  def flush_if_due(self) -> None:
    """Writes a point of the curves if it is time for one; logs the first loss at once."""
    if self._pending and self._now % self._loop.log_every_steps == 0:
      self.flush()
    elif self._pending and self._now == self._first + 1:
      self._tell(f"loss {float(self._pending[0]['loss']):.3f}")

  def flush(self) -> None:
    """Writes the mean of each metric since the last point. Raises DivergedError."""
    if not self._pending:
      return
    values = self._mean()
    self._pending.clear()
    self._scalars.write(self._now, {f"train/{name}": value for name, value in values.items()})
    note = self._loop.describe(self._now - 1)
    self._tell(f"loss {values['loss']:.3f}  {note}".rstrip())
    if not self._told_dropped and (dropped := values.get("dropped_sentences")):
      log.info(_DROPPED.format(dropped))
      self._told_dropped = True

  def _tell(self, text: str) -> None:
    """Logs a line of progress; the first without a rate, which would be the start of the loader."""
    if self._now == self._first + 1:
      log.info(f"step {self._now}/{self._loop.steps}  {text}  (rate and ETA follow)")
      self._progress.restart(self._now)
    else:
      log.info(self._progress.line(self._now, text))

  def _mean(self) -> dict[str, float]:
    """Mean of each metric over the pending steps; stages differ in which they have."""
    steps = jax.device_get(self._pending)
    # The loss is that before the update: the parameters after it must be numbers too.
    finite = [np.isfinite(sum(step.get(name, 0.0) for name in _NORMS)) for step in steps]
    if not all(finite):
      first = self._now - len(steps) + finite.index(False) + 1
      raise DivergedError(
        f"loss or parameters are not finite since step {first}: {self._loop.remedy}"
      )
    names = sorted({name for step in steps for name in step})
    return {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}
