"""A longer training: a run that goes on to more steps than its config named."""

from ml_collections import ConfigDict

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir


def extended(config: ConfigDict, workdir: Workdir, steps: int) -> ConfigDict:
  """Returns the config of a run with a training of `steps`.

  The learning rate follows the schedule of a training of so many steps from the newest checkpoint
  on, so it rises where it had come down. Stages that the curriculum has begin at the same steps as
  before, for what is learned in one was never learned without it. Before there is a checkpoint it
  is a new config, whose stages begin at their shares.

  Raises UserError where `steps` are fewer than the run has, or is to have.
  """
  before = config.train.steps
  if steps == before:
    return config
  config = ConfigDict(config.to_dict())
  config.train.steps = steps
  if not workdir.begun():
    return config
  if steps < before:
    raise UserError(
      f"--steps={steps}: {workdir.path} trains to step {before}, and a training grows only; begin"
      " another --workdir for a shorter one"
    )
  for stage in config.curriculum.values():
    stage.start_fraction *= before / steps
  return config


def extend(config: ConfigDict, workdir: Workdir) -> None:
  """Writes `extended`'s config of a run that has begun, and until where the one before led it."""
  before = workdir.load_config().train.steps
  if not workdir.begun() or before == config.train.steps:
    return
  checkpoints = Checkpoints(workdir.checkpoints, create=False)
  step = checkpoints.latest()
  checkpoints.close()
  note = read(workdir) | {str(step): before}
  replace_text(workdir.extended, digests.seal(note, indent=2))
  replace_text(workdir.config, digests.seal(config.to_dict(), indent=2))
  log.info(
    f"trains on from step {step} to {config.train.steps}, by the learning rates of a schedule of"
    f" {config.train.steps} steps (before: {before}); stages begin where they did. A training of so"
    " many steps from the start may end elsewhere"
  )


def read(workdir: Workdir) -> dict[str, int]:
  """Reads step -> length of the schedule that led to it, of a run that was extended."""
  if not workdir.extended.exists():
    return {}
  return digests.read_sealed(workdir.extended, "give it back from a copy, or delete it")
