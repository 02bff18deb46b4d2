"""A longer training: a run that goes on to more steps than its config named."""

import math

from ml_collections import ConfigDict

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir, WorkdirError, differences


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
    stage.start_fraction = _scaled(stage.start_fraction, before, steps)
  return config


def _scaled(fraction: float, before: int, steps: int) -> float:
  """Scales a share of `before` steps to one of `steps` that begins at the very same step."""
  begin, fraction = math.ceil(fraction * before), fraction * before / steps
  while late := math.ceil(fraction * steps) - begin:  # by rounding, where a stage begins on a step
    fraction = math.nextafter(fraction, -late)
  return fraction


def extend(config: ConfigDict, workdir: Workdir) -> None:
  """Writes `extended`'s config of a run that has begun, and until where the one before led it.

  Raises WorkdirError, naming the keys, where `config` differs in more than its length.
  """
  written = workdir.load_config()
  before, steps = written.train.steps, config.train.steps
  if not workdir.begun() or before == steps:
    return
  longer = extended(written, workdir, steps)
  if differ := differences(longer.to_dict(), config.to_dict()):
    raise WorkdirError(
      f"--steps={steps}: {workdir.path} belongs to a run of another config ({differ}): leave these"
      " keys out, or name another --workdir"
    )
  step = workdir.newest_step()  # not by Orbax, which would wait for the other processes
  note = read(workdir)
  note.setdefault(str(step), before)  # where no step was done since, the schedule before led here
  replace_text(workdir.extended, digests.seal(note, indent=2))
  replace_text(workdir.config, digests.seal(longer.to_dict(), indent=2))
  log.info(
    f"trains on from step {step} to {steps}, by the learning rates of a schedule of"
    f" {steps} steps (before: {before}); stages begin where they did. A training of so"
    " many steps from the start may end elsewhere"
  )


def read(workdir: Workdir) -> dict[str, int]:
  """Reads step -> length of the schedule that led to it, of a run that was extended."""
  if not workdir.extended.exists():
    return {}
  return digests.read_sealed(workdir.extended, "give it back from a copy, or delete it")
