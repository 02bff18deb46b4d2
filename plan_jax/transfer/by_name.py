"""The transfer tasks by name, and the course that each of them takes."""

from input_pipeline.disk import disk_errors
from input_pipeline.locks import lock
from plan_jax.results.rows import Row
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.classification import Classification
from plan_jax.transfer.detection.task import Detection
from plan_jax.transfer.job import start
from plan_jax.transfer.linear_probe import LinearProbe
from plan_jax.transfer.segmentation.task import Segmentation
from plan_jax.transfer.settings import Settings
from plan_jax.transfer.task import Task

TASKS: dict[str, type[Task]] = {
  "detection": Detection,
  "segmentation": Segmentation,
  "classification": Classification,
  "linear_probe": LinearProbe,
}


@disk_errors()
def learn(settings: Settings) -> list[Row]:
  """Learns, or goes on, evaluates and writes; returns the rows of the evaluation.

  Raises UserError where run, records or --out are not fit, or another process learns into --out.
  """
  with lock(Workdir(settings.out).path):
    job = start(settings)
    task = TASKS[settings.TASK](job)
    validate = task.has_validation()
    outcome = task.evaluate(task.fit(validate), validate)
    job.finish(*outcome)
  return outcome.rows
