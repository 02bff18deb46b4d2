"""Training of a head on an encoder: to the best state by validation, resumable at any step."""

import contextlib
import math
import time
from collections.abc import Callable

import jax
import numpy as np

from input_pipeline import loader
from input_pipeline.errors import UserError
from plan_jax.runtime import logging as reporting
from plan_jax.runtime import preemption
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import Progress, Scalars, duration, log
from plan_jax.runtime.mesh import to_global
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.learner import Learner, LearnerState

_LOG_EVERY = 50


def fit(
  learner: Learner,
  workdir: Workdir,
  source,
  encode: loader.RandomMap,
  *,
  followed: str,
  measure: Callable[[LearnerState], float] | None,
) -> LearnerState:
  """Trains to settings.steps, from the newest checkpoint if there is one; returns the best state.

  Every settings.validate_every_steps it measures and saves. It stops early after settings.patience
  measurements without a better one. The best state is that of the highest measure; without one it
  is the last.

  Args:
    learner: to be trained; its settings also hold validate_every_steps and patience.
    workdir: claimed.
    source: random access to studies.
    encode: study -> example of a batch of the learner's loss, with "image" [S, S, 1].
    followed: the measure's name in the curves.
    measure: the figure of the validation images, higher is better; None without such images.

  Raises UserError where the loss is no number any more.
  """
  settings = learner.settings
  checkpoints = Checkpoints(workdir.checkpoints, keep_last=1, best_metric=followed)
  try:
    done = checkpoints.latest()
    if done is None:
      state, done = learner.initial_state(), 0
    else:
      state = checkpoints.restore(learner.abstract_state)
      log.info(f"resumed from step {done}")
    history = [
      point for point in reporting.curves(workdir.metrics).get(followed, ()) if point[0] <= done
    ]
    if done < settings.steps and not settled(history, settings.patience):
      _loop(learner, state, done, history, checkpoints, workdir, source, encode, followed, measure)
    else:
      log.info(f"training is complete: {done} steps in {workdir.path}")
    # Without validation images nothing was scored.
    step = checkpoints.best() if measure else None
    state = checkpoints.restore(learner.abstract_state, step)
  finally:
    checkpoints.close()
  log.info(f"step {int(state.step)} is evaluated")
  return state


def settled(history: list[tuple[int, float]], patience: int) -> bool:
  """Whether the last `patience` measurements were no better than one before them."""
  values = [-math.inf if math.isnan(value) else value for _, value in history]
  return bool(values) and len(values) - 1 - int(np.argmax(values)) >= patience


def _loop(
  learner, state, done, history, checkpoints, workdir, source, encode, followed, measure
) -> None:
  settings = learner.settings
  batches = loader.batches(
    source, encode, batch_size=settings.batch_size, seed=settings.seed, start_step=done
  )
  progress = Progress(
    "step", settings.steps, start=done, unit="images", per_step=settings.batch_size
  )
  began, stop = time.monotonic(), False
  with (
    contextlib.closing(batches),
    Scalars(workdir.path, from_step=done) as scalars,
    preemption.Notice() as notice,
  ):
    pending = []
    for now in range(done + 1, settings.steps + 1):
      state, metrics = learner.update(state, to_global(next(batches), learner.mesh))
      pending.append(metrics)
      last = now == settings.steps
      stop = notice.came(now - done) and not last
      measures = now % settings.validate_every_steps == 0 or last
      if now % _LOG_EVERY == 0 or measures or stop:
        values = _mean(pending, now)
        pending.clear()
        scalars.write(now, {f"train/{name}": value for name, value in values.items()})
        log.info(progress.line(now, f"loss {values['loss']:.3f}"))
      figures = None
      if measures and measure:
        value = measure(state)
        figures = {followed: value}
        history.append((now, value))
        scalars.write(now, figures)
        log.info(f"  {followed} {value:.3f}")
        progress.skip()
      if measures or stop:
        checkpoints.save(now, state, figures)
      if stop or settled(history, settings.patience):
        break
    checkpoints.wait()
  if stop:
    log.info(f"preempted: step {now} is saved")
    raise preemption.Preempted
  if now < settings.steps:
    log.info(f"no better {followed} for {settings.patience} measurements: stopped at step {now}")
  log.info(f"trained steps {done + 1} to {now} in {duration(time.monotonic() - began)}")


def _mean(pending: list[dict], step: int) -> dict[str, float]:
  host = jax.device_get(pending)
  values = {name: float(np.mean([metrics[name] for metrics in host])) for name in host[0]}
  if not math.isfinite(values["loss"]):
    raise UserError(
      f"the loss is not finite at or before step {step}: lower --learning_rate, in a new --out"
    )
  return values
