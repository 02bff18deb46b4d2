"""The interface of a transfer task, and what tasks that train a head share."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from input_pipeline import loader, records
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row
from plan_jax.runtime.logging import log
from plan_jax.training.state import TrainState
from plan_jax.transfer.fitting import fit
from plan_jax.transfer.job import Job
from plan_jax.transfer.learner import Learner


class Outcome(NamedTuple):
  """The evaluation of what was learned: step of the encoder scored, rows, and scores by example."""

  step: int
  rows: list[Row]
  scores: ExampleScores


class Task(Protocol):
  """A task, made of a `Job`; `by_name.learn` calls its methods in this order.

  Attributes:
    STRIDE: that the image's side must be a multiple of; None: the encoder's.
    REQUIRED: what images need to be scored.
    OTHERWISE: what is done without validation images.
    job: of the task.
  """

  STRIDE: ClassVar[int | None]
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
    """Trains, or goes on, to the best state by the validation split, else to the last."""
    measure = self.measure if validate else None
    return fit(
      self.learner, self.job.out, self.source, self.encode, followed=self.FOLLOWED, measure=measure
    )
