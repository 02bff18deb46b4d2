"""Pre-training: records -> batches -> steps -> checkpoints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from input_pipeline import digests, images, loader, records
from input_pipeline.disk import disk_errors
from input_pipeline.files import replace_text
from input_pipeline.text import diagnostic_terms, mirror, tokenizer
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment.methods.base import Alignment
from plan_jax.inference.load import load_tokenizer
from plan_jax.runtime import processes
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import pretrained
from plan_jax.training.assembly import Assembly, assemble
from plan_jax.training.config import TextConfig
from plan_jax.training.loop import Loop
from plan_jax.training.state import TrainState
from plan_jax.training.step import StagedStep

# Enough for a vocabulary; reading a million reports more is not worth it.
_TOKENIZER_TEXTS = 50_000
_FLIP_TEXTS = 2_000

Validate = Callable[[Assembly, Tokenizer, TrainState], dict[str, float]]


@disk_errors()
def train(
  config: ConfigDict,
  workdir: Workdir,
  folder: Path,
  validate: Validate,
  features: Path | None = None,
) -> None:
  """Trains to config.train.steps, from the newest checkpoint if there is one.

  The config is checked, `workdir` is claimed for it, and `folder` holds the records, `features`
  their stored features if there are any; every config.evaluation.every_steps `validate` gives
  metrics by name.

  Raises DivergedError where the loss became NaN or infinite, and UserError where the data or
  devices do not fit the config.
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
    source = records.RecordSource(folder, "train", where="text", features=features)
    count = records.splits(folder)["train"]
    if len(source) < count:
      log.info(f"{count - len(source)} of {count} training images have no text and are left out")
    words = make_tokenizer(config, workdir, source)
    parts = assemble(config, words)
    if done is None:
      if config.data.flip_fraction:
        _tell_unflipped(source)
      state, done = _first_state(parts, workdir), 0
      log.info(_parameter_counts(state.params))
      log.debug(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
      state = checkpoints.restore(parts.abstract_state)
      log.info(f"resumed from step {done}")
    log.info(f"training to step {steps}; the first steps of a stage wait for its compilation")
    step = StagedStep(parts)
    loop = Loop(
      steps=steps,
      batch_size=config.train.batch_size,
      mesh=parts.mesh,
      update=step,
      log_every_steps=config.train.log_every_steps,
      evaluate_every_steps=config.evaluation.every_steps,
      save_every_steps=config.checkpoint.every_steps,
      evaluate=lambda state: validate(parts, words, state),
      describe=lambda number: f"stage {step.stage(number).name}",
      remedy=(
        "lower config.train.learning_rate or raise config.train.warmup_fraction, in a new --workdir"
      ),
    )
    loop.run(state, done, make_batches(config, words, source, done), checkpoints, workdir.path)
  finally:
    checkpoints.close()


def make_tokenizer(config: ConfigDict, workdir: Workdir, source) -> Tokenizer:
  """Makes the run's own vocabulary, trained on the training reports or copied from a folder.

  Raises TokenizerError, WeightsError or DamagedError, and UserError where a process does not see
  what the first one wrote.
  """

  def make():
    if folder := pretrained.tokenizer_folder(config):
      tokenizer.copy(folder, workdir.tokenizer)
    else:
      numbers = _spread(source, _TOKENIZER_TEXTS)
      texts = (" ".join(source[i].sentences) for i in numbers)
      tokenizer.train(texts, workdir.tokenizer, vocabulary_size=config.text.vocabulary_size)
    digests.write_sums(workdir.tokenizer)  # last: its presence says that the folder is whole

  path = workdir.tokenizer / digests.SUMS
  # What a run has learned is of the vocabulary that it began with.
  processes.on_primary(lambda: None if path.exists() or workdir.begun() else make())
  processes.require(path)
  return load_tokenizer(workdir)


def make_batches(
  config: ConfigDict, words: Tokenizer, source, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of this host from step `start_step` on, without an end.

  Raises TermsError, and UserError where the batches cannot be made of these records.
  """
  text = TextConfig.read(config.text)
  encode = loader.Encode(
    words,
    diagnostic_terms.load(text.terms, places=text.places),
    config.model.image_px,
    text.max_tokens,
    text.max_words,
    images.Augment() if config.data.augment else None,
    config.data.flip_fraction,
    Alignment(**config.alignment).swaps_sides,
    text.concise_fraction,
  )
  return loader.batches(
    source,
    encode,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start_step=start_step,
    workers=config.data.workers,
    threads=config.data.threads,
    process=(jax.process_index(), jax.process_count()),
  )


def _spread(source, texts: int) -> range:
  """Returns the numbers of about so many examples, spread evenly over the data."""
  return range(0, len(source), max(1, len(source) // texts))


def _tell_unflipped(source) -> None:
  """Logs how many reports are never mirrored, of a sample spread over the data."""
  numbers = _spread(source, _FLIP_TEXTS)
  untold = sum(not mirror.can_be_swapped(source[i].sentences) for i in numbers)
  log.info(
    f"data.flip_fraction: the sides of {untold} of {len(numbers)} training reports looked at cannot"
    " be told, and such are not mirrored"
  )


def _parameter_counts(params) -> str:
  """Returns two lines: the parameters in all, and those of each encoder and of the rest."""
  counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
  total = sum(counts.values())
  parts = {name: counts[name] for name in ("image_encoder", "text_encoder")}
  parts["the rest"] = total - sum(parts.values())
  listed = ", ".join(f"{name} {count:,}" for name, count in parts.items())
  return f"parameters: {total:,} in all (--parameter_table lists them)\n  {listed}"


def _first_state(parts: Assembly, workdir: Workdir) -> TrainState:
  """The state before the first step; encoders from foreign weights are noted in weights.json."""
  state = parts.initial_state()
  encoders = pretrained.load_encoders(parts.config.model, parts.model.text["vocabulary_size"])
  if not encoders:
    return state
  note = {name: encoder.provenance for name, encoder in encoders.items()}
  processes.assert_equal("the weights it starts from", json.dumps(note))
  processes.on_primary(lambda: replace_text(workdir.weights, digests.seal(note, indent=2)))
  for name, encoder in encoders.items():
    aside = len(encoder.provenance["left_aside"])
    log.info(
      f"{name} starts from {encoder.provenance['source']} ({aside} of its tensors are left aside)"
    )
  return parts.with_encoders(state, encoders)
