"""Pre-training: records -> batches -> steps -> checkpoints."""

import contextlib
import json
import time
from collections.abc import Iterator

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from input_pipeline import images, loader, records
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.text import diagnostic_terms
from input_pipeline.text import tokenizer as tokens
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods import Alignment
from plan_jax.evaluate import validation_scalars
from plan_jax.inference import load as grounder
from plan_jax.models.weights import load
from plan_jax.runtime import mesh, preemption, processes
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import Progress, Scalars, duration, log
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import Assembly, assemble
from plan_jax.training.state import TrainState, make_step

# Enough for a vocabulary; reading a million reports more is not worth it.
_TOKENIZER_TEXTS = 50_000


class DivergedError(UserError):
  """The loss is no number any more; the message says since when and what to try."""


def train(config: ConfigDict, workdir: Workdir, folder) -> None:
  """Trains to config.train.steps, from the newest checkpoint if there is one.

  Args:
    config: checked.
    workdir: claimed for this config.
    folder: the record folder.

  Raises:
    DivergedError: the loss became NaN or infinite.
    UserError: the data or devices do not fit the config.
  """
  steps = config.train.steps
  checkpoints = Checkpoints(
    workdir.checkpoints,
    keep_last=config.checkpoint.keep_last,
    best_metric=config.checkpoint.best_metric,
  )
  try:
    done = checkpoints.latest()
    processes.assert_equal(f"the newest checkpoint in {workdir.checkpoints}", f"step {done}")
    if done == steps:
      log.info(f"training is complete: {done} steps in {workdir.path}")
      return
    source = records.RecordSource(folder, "train", where="text")
    images = records.splits(folder)["train"]
    if len(source) < images:
      log.info(f"{images - len(source)} of {images} training images have no text and are left out")
    tokenizer = make_tokenizer(config, workdir, source)
    parts = assemble(config, tokenizer)
    if done is None:
      state, done = _first_state(parts, workdir), 0
      log.info(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
      state = checkpoints.restore(parts.abstract_state)
      log.info(f"resumed from step {done}")
    batches = _batches(config, tokenizer, source, done)
    _loop(parts, state, done, batches, checkpoints, workdir, tokenizer, folder)
  finally:
    checkpoints.close()


def _first_state(parts: Assembly, workdir: Workdir) -> TrainState:
  """The state before the first step; encoders from foreign weights are noted in weights.json."""
  state = parts.initial_state()
  encoders = load.load_encoders(parts.config.model, parts.model.text["vocabulary_size"])
  if not encoders:
    return state
  note = json.dumps({name: encoder.provenance for name, encoder in encoders.items()}, indent=2)
  processes.assert_equal("the weights it starts from", note)
  processes.on_primary(lambda: replace_text(workdir.weights, f"{note}\n"))
  for name, encoder in encoders.items():
    aside = len(encoder.provenance["left_aside"])
    log.info(
      f"{name} starts from {encoder.provenance['source']} ({aside} of its tensors are left aside)"
    )
  return parts.with_encoders(state, encoders)


def make_tokenizer(config: ConfigDict, workdir: Workdir, source) -> tokens.Tokenizer:
  """The run's own vocabulary: trained on the training reports, or copied from a folder."""

  def make():
    if folder := load.tokenizer_folder(config):
      tokens.copy(folder, workdir.tokenizer)
    else:
      some = range(0, len(source), max(1, len(source) // _TOKENIZER_TEXTS))
      texts = (" ".join(source[i].sentences) for i in some)
      tokens.train(texts, workdir.tokenizer, vocabulary_size=config.text.vocabulary_size)

  made = workdir.tokenizer / "tokenizer_config.json"
  processes.on_primary(lambda: None if made.exists() else make())
  processes.wait_for(made)
  return tokens.Tokenizer(workdir.tokenizer)


def _batches(config, tokenizer, source, start_step) -> Iterator[dict[str, np.ndarray]]:
  return loader.batches(
    source,
    loader.Encode(
      tokenizer,
      diagnostic_terms.load(config.text.terms),
      config.model.image_px,
      config.text.max_tokens,
      config.text.max_words,
      images.Augment() if config.data.augment else None,
    ),
    batch_size=config.train.batch_size,
    seed=config.seed,
    start_step=start_step,
    workers=config.data.workers,
    threads=config.data.threads,
    process=(jax.process_index(), jax.process_count()),
  )


def _loop(
  parts: Assembly, state, done: int, batches, checkpoints, workdir, tokenizer, folder
) -> None:
  config = parts.config
  steps = config.train.steps
  update = _Updates(parts)
  model = None
  progress = Progress("step", steps, start=done, unit="images", per_step=config.train.batch_size)
  began, stop = time.monotonic(), False
  log.info(f"training to step {steps}; the first steps of a stage wait for its compilation")
  with (
    contextlib.closing(batches),
    Scalars(workdir.path, from_step=done, mute=not processes.is_primary()) as scalars,
    preemption.Notice() as notice,
  ):
    measured = _Log(parts, scalars, progress, done)
    for step in range(done, steps):
      # 1. The batch of this step, a function of (seed, step) alone.
      batch = mesh.to_global(next(batches), parts.mesh)
      # 2. The update, dispatched; the device works while the host goes on.
      state, metrics = update(step, state, batch)
      # 3. What earlier steps measured: to files and terminal, and a stop where it is no number.
      measured.tell()
      measured.add(metrics)
      now = step + 1
      stop = notice.came(now - done)
      # 4. Evaluation, before the checkpoint, so that the checkpoint knows its figures.
      figures = None
      evaluates = config.evaluation.every_steps and (
        now % config.evaluation.every_steps == 0 or now == steps
      )
      saves = _due(now, config.checkpoint) or now == steps or stop
      if evaluates or saves:  # they wait for this step in any case, and no checkpoint holds a NaN
        measured.tell(all_of_it=True)
      if evaluates:
        if model is None:
          model = grounder.of_state(parts, state, tokenizer)
        else:
          model.take(state)
        figures = validation_scalars(model, folder, config)
        if figures:
          scalars.write(now, figures)
          log.info("  " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        progress.skip()
      # 5. The checkpoint.
      if saves:
        checkpoints.save(now, state, figures)
      if stop:
        break
    checkpoints.wait()
    # The last evaluation and its checkpoint take their time.
    stop = stop or notice.came(now - done + 1)
  if stop:
    log.info(f"preempted: step {now} is saved")
    raise preemption.Preempted
  log.info(f"trained steps {done + 1} to {steps} in {duration(time.monotonic() - began)}")


class _Log:
  """What steps measured, told every so often, and a step late: the device then works already."""

  def __init__(self, parts: Assembly, scalars: Scalars, progress: Progress, done: int):
    self._parts, self._scalars, self._progress = parts, scalars, progress
    self._first = self._now = done
    self._every = parts.config.train.log_every_steps
    self._pending: list[dict] = []

  def add(self, metrics: dict) -> None:
    """The metrics of one more step, on the device."""
    self._pending.append(metrics)
    self._now += 1

  def tell(self, *, all_of_it: bool = False) -> None:
    """Tells if it is time; with `all_of_it` in any case.

    Raises:
      DivergedError: the loss or the parameters are no numbers.
    """
    now = self._now
    if not self._pending:
      return
    if all_of_it or now % self._every == 0:
      values = _mean(self._pending, now)
      self._pending.clear()
      self._scalars.write(now, {f"train/{name}": value for name, value in values.items()})
      stage = curriculum.stage_at(self._parts.stages, now - 1, self._parts.config.train.steps)
      log.info(self._progress.line(now, f"loss {values['loss']:.3f}  stage {stage.name}"))
    elif now == self._first + 1:
      log.info(self._progress.line(now, f"loss {float(self._pending[0]['loss']):.3f}"))


class _Updates:
  """The jitted update of the stage that a step belongs to."""

  def __init__(self, parts: Assembly):
    self._parts = parts
    self._compiled = {}

  def __call__(self, step: int, state: TrainState, batch: dict):
    parts, config = self._parts, self._parts.config
    stage = curriculum.stage_at(parts.stages, step, config.train.steps)
    if stage.name not in self._compiled:
      update = make_step(
        parts.model,
        parts.optimizer,
        parts.schedule,
        stage,
        Alignment(**config.alignment),
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        micro_batches=config.train.micro_batches,
        freeze=tuple(config.train.freeze),
      )
      batch_sharding = mesh.batch_sharding(parts.mesh)
      self._compiled[stage.name] = jax.jit(
        update,
        in_shardings=(parts.shardings, batch_sharding),
        out_shardings=(parts.shardings, None),
        donate_argnums=0,
      )
    with jax.set_mesh(parts.mesh):
      return self._compiled[stage.name](state, batch)


def _due(step: int, checkpoint) -> bool:
  return bool(checkpoint.every_steps) and step % checkpoint.every_steps == 0


def _mean(pending: list[dict], step: int) -> dict[str, float]:
  """Mean of each scalar over the steps since the last report; stages differ in what they have."""
  host = jax.device_get(pending)
  names = {name for metrics in host for name in metrics}
  values = {name: float(np.mean([m[name] for m in host if name in m])) for name in sorted(names)}
  # The loss is that before the update: the parameters after it must be numbers too.
  bad = [not np.isfinite(m["loss"] + m["gradient_norm"] + m["parameter_norm"]) for m in host]
  if any(bad):
    first = bad.index(True)
    raise DivergedError(
      f"loss or parameters are not finite since step {step - len(host) + first + 1}: lower"
      " config.train.learning_rate or raise config.train.warmup_fraction, in a new --workdir"
    )
  return values
