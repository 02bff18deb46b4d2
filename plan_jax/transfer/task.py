"""The interface of a transfer task, and what tasks that train a head share."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from input_pipeline import loader, records
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import curves, log
from plan_jax.training.loop import Loop
from plan_jax.training.state import TrainState
from plan_jax.transfer.job import Job
from plan_jax.transfer.learner import Learner

_LOG_EVERY = 50


class Outcome(NamedTuple):
  """The evaluation of what was learned: step of the encoder scored, rows, and scores by example."""

  step: int
  rows: list[Row]
  scores: ExampleScores


class Task(Protocol):
  """A task, made of a `Job`; `by_name.learn` calls its methods in this order.

  Attributes:
    REQUIRED: what images need to be scored.
    OTHERWISE: what is done without validation images.
    job: of the task.
  """

  REQUIRED: ClassVar[str]
  OTHERWISE: ClassVar[str]
  job: Job

  def __init__(self, job: Job):
    """Reads the training split. Raises UserError where there is nothing to learn."""

  def findings_in(self, split: str) -> set[str]:
    """Returns the findings that the images of a split can be scored for."""

  def has_validation(self) -> bool:
    """Returns True where there are validation images to choose by; logs what is done without.

    Raises UserError where the test split has nothing to score.
    """
    folder, tested = self.job.settings.records, self.findings_in("test")
    if not tested:
      raise UserError(f"the test split of {folder} has no {self.REQUIRED}: nothing to score")
    if not records.splits(folder).get("validation"):
      reason = "no validation split"
    elif not tested & self.findings_in("validation"):
      reason = f"the validation split has no {self.REQUIRED} as the test split has, and is not used"
    else:
      return True
    log.info(f"{reason}: {self.OTHERWISE}")
    return False

  def fit(self, validate: bool) -> Any:
    """Learns, and returns what is learned; `validate`: by the validation split."""

  def evaluate(self, fitted: Any, validate: bool) -> Outcome:
    """Scores the test split, and writes what the task alone has into the job's folder."""


class HeadTask(Task, Protocol):
  """A task that trains a head.

  Attributes:
    FOLLOWED: name of the metric of the validation split in the curves.
    learner: of the head.
    source: examples to learn from.
    encode: example -> one row of a batch.
  """

  FOLLOWED: ClassVar[str]
  learner: Learner
  source: Sequence[Example]
  encode: loader.RandomMap

  def measure(self, state: TrainState) -> float:
    """Returns the metric of the validation split, higher is better; NaN where there is none."""

  def fit(self, validate: bool) -> TrainState:
    """Trains to settings.steps, from the newest checkpoint if there is one; returns the best state.

    Every settings.validate_every_steps it measures and saves. It stops early after
    settings.patience measurements without a better one. Without `validate` nothing is measured, and
    the best state is the last.

    Raises DivergedError where the loss is no number any more.
    """
    settings, learner, out = self.job.settings, self.learner, self.job.out

    def stop(step: int, values: dict[str, float]) -> bool:
      history.append((step, values[self.FOLLOWED]))
      stops = settled(history, settings.patience)
      if stops:
        log.info(
          f"no better {self.FOLLOWED} for {settings.patience} measurements: stops at step {step}"
        )
      return stops

    checkpoints = Checkpoints(out.checkpoints, keep_last=1, best_metric=self.FOLLOWED)
    try:
      done = checkpoints.latest()
      if done is None:
        state, done = learner.initial_state(), 0
      else:
        state = checkpoints.restore(learner.abstract_state)
        log.info(f"resumed from step {done}")
      history = [point for point in curves(out.metrics).get(self.FOLLOWED, ()) if point[0] <= done]
      if done < settings.steps and not settled(history, settings.patience):
        loop = Loop(
          steps=settings.steps,
          batch_size=settings.batch_size,
          mesh=learner.mesh,
          update=lambda _, state, batch: learner.update(state, batch),
          log_every_steps=_LOG_EVERY,
          evaluate_every_steps=settings.validate_every_steps if validate else 0,
          save_every_steps=settings.validate_every_steps,
          evaluate=lambda state: {self.FOLLOWED: self.measure(state)},
          stop=stop,
          remedy="lower --learning_rate, in a new --out",
        )
        batches = loader.batches(
          self.source,
          self.encode,
          batch_size=settings.batch_size,
          seed=settings.seed,
          start_step=done,
        )
        loop.run(state, done, batches, checkpoints, out.path)
      else:
        log.info(f"training is complete: {done} steps in {out.path}")
      # Without validation images nothing was scored.
      step = checkpoints.best() if validate else None
      state = checkpoints.restore(learner.abstract_state, step)
    finally:
      checkpoints.close()
    log.info(f"step {int(state.step)} is evaluated")
    return state


def settled(history: list[tuple[int, float]], patience: int) -> bool:
  """Tells whether the last `patience` measurements were no better than one before them."""
  values = [-math.inf if math.isnan(value) else value for _, value in history]
  return bool(values) and len(values) - 1 - int(np.argmax(values)) >= patience
