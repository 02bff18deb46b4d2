"""Training of a head on an encoder: to the best state by validation, resumable at any step."""

import math
from collections.abc import Callable

import numpy as np

from input_pipeline import loader
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import curves, log
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.loop import Loop
from plan_jax.training.state import TrainState
from plan_jax.transfer.learner import Learner

_LOG_EVERY = 50


def settled(history: list[tuple[int, float]], patience: int) -> bool:
  """Tells whether the last `patience` measurements were no better than one before them."""
  values = [-math.inf if math.isnan(value) else value for _, value in history]
  return bool(values) and len(values) - 1 - int(np.argmax(values)) >= patience


def fit(
  learner: Learner,
  workdir: Workdir,
  source,
  encode: loader.RandomMap,
  *,
  followed: str,
  measure: Callable[[TrainState], float] | None,
) -> TrainState:
  """Trains to settings.steps, from the newest checkpoint if there is one; returns the best state.

  Every settings.validate_every_steps it measures and saves. It stops early after settings.patience
  measurements without a better one. The best state is that of the highest measure; without one it
  is the last.

  Args:
    learner: to be trained; its settings also hold validate_every_steps and patience.
    workdir: claimed.
    source: random access to examples.
    encode: example -> entry of a batch of the learner's loss, with "image" [S, S, 1].
    followed: the measure's name in the curves.
    measure: the metric of the validation images, higher is better; None without such images.

  Raises DivergedError where the loss is no number any more.
  """
  settings = learner.settings

  def stop(step: int, values: dict[str, float]) -> bool:
    history.append((step, values[followed]))
    stops = settled(history, settings.patience)
    if stops:
      log.info(f"no better {followed} for {settings.patience} measurements: stops at step {step}")
    return stops

  checkpoints = Checkpoints(workdir.checkpoints, keep_last=1, best_metric=followed)
  try:
    done = checkpoints.latest()
    if done is None:
      state, done = learner.initial_state(), 0
    else:
      state = checkpoints.restore(learner.abstract_state)
      log.info(f"resumed from step {done}")
    history = [point for point in curves(workdir.metrics).get(followed, ()) if point[0] <= done]
    if done < settings.steps and not settled(history, settings.patience):
      loop = Loop(
        steps=settings.steps,
        batch_size=settings.batch_size,
        mesh=learner.mesh,
        update=lambda _, state, batch: learner.update(state, batch),
        log_every_steps=_LOG_EVERY,
        evaluate_every_steps=settings.validate_every_steps if measure else 0,
        save_every_steps=settings.validate_every_steps,
        evaluate=lambda state: {followed: measure(state)},
        stop=stop,
        remedy="lower --learning_rate, in a new --out",
      )
      batches = loader.batches(
        source, encode, batch_size=settings.batch_size, seed=settings.seed, start_step=done
      )
      loop.run(state, done, batches, checkpoints, workdir.path)
    else:
      log.info(f"training is complete: {done} steps in {workdir.path}")
    # Without validation images nothing was scored.
    step = checkpoints.best() if measure else None
    state = checkpoints.restore(learner.abstract_state, step)
  finally:
    checkpoints.close()
  log.info(f"step {int(state.step)} is evaluated")
  return state
