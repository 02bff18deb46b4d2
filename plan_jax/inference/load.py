"""The Predictor of a run, from its folder or from a state of training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import digests
from input_pipeline.section import SectionError
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.inference import calibration, exported
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.run_spec import run_spec
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.training.assembly import Assembly, assemble
from plan_jax.training.state import TrainState, weights_of


def load(
  workdir: str | Path | Workdir, config: ConfigDict | None = None, *, step: int | None = None
) -> Predictor:
  """Loads the model of a finished or running training, or of an exported folder.

      model = plan_jax.load("runs/a")
      grounding = model.ground("image.png", "small left effusion")

  Args:
    workdir: folder of the run, or of `plan_jax.export`, which has one step and its own config.
    config: of the run, for other evaluation settings; by default as it was trained.
    step: of a checkpoint; by default as config.checkpoint.evaluate says.

  Raises:
    WorkdirError: `workdir` holds no run, or one of another version; or an argument is of another
      type.
    CheckpointError: it has no such checkpoint.
    DamagedError: a file of it is not as it was written.
    WeightsError: an exported folder does not fit this version.
  """
  if not isinstance(workdir, Workdir):
    workdir = Workdir(workdir)
  if workdir.is_exported():
    if not (step is None and config is None):
      raise WorkdirError(f"{workdir.path} is an exported folder: give no step and no config")
    with of_this_version(workdir):
      return _calibrated(of_state(*exported.read(workdir.path)), workdir)
  if not (step is None or isinstance(step, int | np.integer)) or isinstance(step, bool):
    raise WorkdirError(f"step is {step!r}: give a whole number, or leave it out")
  if config is None:
    config = workdir.load_model_config()
    config.mesh = {"data": -1, "fsdp": 1}  # of the devices here, not those it was trained on
  elif not isinstance(config, ConfigDict):
    raise WorkdirError(
      f"config is of type {type(config).__name__}: change what Workdir(...).load_config() gives"
    )
  checkpoints = Checkpoints(
    workdir.checkpoints, best_metric=config.checkpoint.best_metric, create=False
  )
  try:
    if step is None:
      step = checkpoints.to_evaluate(config.checkpoint.evaluate)
    tokenizer = load_tokenizer(workdir)
    with of_this_version(workdir):
      parts = assemble(config, tokenizer)
    state = checkpoints.restore(parts.abstract_state, step)
  finally:
    checkpoints.close()
  return _calibrated(of_state(parts, state, tokenizer), workdir)


@contextlib.contextmanager
def of_this_version(workdir: Workdir) -> Iterator[None]:
  """Raises WorkdirError where a key of the config is unknown here, or one of today is missing."""
  try:
    yield
  except SectionError as error:
    raise WorkdirError(
      f"{workdir.path} is of another version of plan_jax: in its config {error}. Use the version"
      " that made it, or train anew"
    ) from error


def _calibrated(model: Predictor, workdir: Workdir) -> Predictor:
  model.calibration = calibration.read(workdir.calibration, model.step)
  return model


def load_tokenizer(workdir: Workdir) -> Tokenizer:
  """Loads the vocabulary of a run. Raises DamagedError where it is not as it was written."""
  remedy = f"give back {workdir.tokenizer} from a copy, or name another --workdir"
  digests.check_sums(workdir.tokenizer, remedy)
  return Tokenizer(workdir.tokenizer)


def of_state(parts: Assembly, state: TrainState, tokenizer: Tokenizer) -> Predictor:
  """Builds the model at a point of training; `Predictor.take` moves it to another."""
  return Predictor(
    run_spec(parts.model, tokenizer, parts.config),
    weights_of(state),
    parts.mesh,
    batch_size=parts.config.evaluation.batch_size,
    step=int(state.step),
  )
