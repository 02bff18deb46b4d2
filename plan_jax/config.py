"""The sections of a config, read, and the rules across them, checked before any work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.readers.config import DataConfig
from input_pipeline.section import Count, Section
from input_pipeline.text import diagnostic_terms
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment
from plan_jax.alignment.methods.by_name import METHODS, pair_tile
from plan_jax.evaluators import datasets
from plan_jax.evaluators.by_name import configured
from plan_jax.evaluators.config import EvaluationConfig, RunEvaluationConfig
from plan_jax.models import freezing
from plan_jax.models.config import ModelConfig
from plan_jax.results.rows import FOLLOWED, scalar_name
from plan_jax.runtime.mesh import make_mesh
from plan_jax.training.assembly import abstract_params, alignment_on, pair_shapes
from plan_jax.training.config import CheckpointConfig, TextConfig, TrainConfig
from plan_jax.transfer.entries import entries


class ConfigError(UserError):
  """A key of the config cannot be; the message names it."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
  """The config of a run, as configs/base.py has it."""

  seed: Count
  runlocal: bool
  data: DataConfig
  text: TextConfig
  model: ModelConfig
  alignment: Alignment
  curriculum: dict[str, Any]
  train: TrainConfig
  checkpoint: CheckpointConfig
  evaluation: RunEvaluationConfig
  mesh: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Section):
  """The config of a baseline, as configs/baselines.py has it."""

  seed: Count
  data: DataConfig
  text: dict[str, str]
  evaluation: EvaluationConfig
  baseline: dict[str, str]
  mesh: dict[str, int]


def check(config: ConfigDict) -> None:
  """Raises ConfigError at the first impossible key: its name, its value and the rule."""
  run = with_key(RunConfig.read, config.to_dict())
  _check_data(config)
  _check_best_checkpoint(run)
  check_programs(config)
  with_key(entries, config)
  _check_files(config)


def check_programs(config: ConfigDict) -> None:
  """Checks as `check` what the programs of a run are made from: no data, no files."""
  run = with_key(RunConfig.read, config.to_dict())
  _check_positions(run)
  _check_curriculum(run)
  if config.train.freeze:
    with_key(
      lambda: freezing.check(abstract_params(config), config.train.freeze), key="train.freeze: "
    )
  _check_stored_features(run, config)


def check_baseline(config: ConfigDict) -> None:
  """Raises ConfigError at the first impossible key of a config of a baseline."""
  with_key(BaselineConfig.read, config.to_dict())
  _check_data(config)
  _check_files(config)


def check_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh of these devices, by default those here, which wakes the backend.

  Raises UserError, naming the key, where they do not make the config's mesh.
  """
  where = () if devices is None else (devices,)
  return with_key(make_mesh, config.mesh.data, config.mesh.fsdp, *where, key="mesh.")


def check_devices(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh as `check_mesh`. Raises UserError where it cannot train by the config."""
  mesh = check_mesh(config, devices)
  train = config.train
  _require(
    "train.batch_size",
    train.batch_size % mesh.size == 0,
    f"is {train.batch_size}; must be a multiple of the {mesh.size} devices",
  )
  share = train.batch_size // mesh.size
  _require(
    "train.micro_batches",
    share % train.micro_batches == 0,
    f"is {train.micro_batches}; must divide the {share} pairs of a device",
  )
  alignment = alignment_on(mesh, config)
  _require(
    "alignment.implementation",
    alignment.implementation != "chunked" or mesh.size == 1,
    f"is 'chunked'; runs on one device, not on {mesh.size}; use \"ring\"",
  )
  with jax.set_mesh(mesh):
    for stage in curriculum.stages(config.curriculum):
      with_key(pair_tile, alignment, stage, *pair_shapes(config), key="alignment.")
  return mesh


def _check_data(config: ConfigDict) -> None:
  """Checks that the run's data are given, and that no further set has their name."""
  name = config.data.dataset
  _require(
    "data.source",
    datasets.is_given(config.data),
    f"is empty; name the folder of the {name} data (or config.data.records, where they are"
    " converted)",
  )
  _require(
    f"evaluation.sets.{name}",
    name not in config.evaluation.sets,
    "is the name of the run's own data",
  )


def _check_files(config: ConfigDict) -> None:
  """Checks the evaluators, and that the lists of terms and prompts can be read."""
  with_key(diagnostic_terms.load, config.text.terms, key="text.terms: ")
  with_key(configured, config, key="evaluation.")


def _check_stored_features(run: RunConfig, config: ConfigDict) -> None:
  """Checks that nothing changes the features that are stored once."""
  if not run.data.store_features:
    return
  key = "data.store_features"
  _require(key, bool(run.model.image.weights), "needs the encoder's model.image.weights")
  _require(key, not run.data.augment, "needs data.augment=False: features cannot be augmented")
  _require(
    key, not run.model.image.lora_rank, "needs model.image.lora_rank=0: updates change the features"
  )
  _require(
    key,
    run.model.image.name == "vit" or not run.model.image.spread_stage,
    "needs model.image.spread_stage=0: the last features alone are stored",
  )
  encoder = {"image_encoder": abstract_params(config)["image_encoder"]}
  frozen = jax.tree.leaves(freezing.labels(encoder, run.train.freeze))
  _require(
    key, set(frozen) == {"frozen"}, "needs a frozen encoder: train.freeze=('image_encoder',)"
  )


def _check_best_checkpoint(run: RunConfig) -> None:
  """Checks that the metric of the best checkpoint is measured where checkpoints are saved."""
  metric, every = run.checkpoint.best_metric, run.evaluation.every_steps
  if not metric:
    return
  key = "checkpoint.best_metric"
  names = [scalar_name(task, name) for task, _, name in FOLLOWED]
  _require(key, metric in names, f"is {metric!r}; must be empty, or one of {', '.join(names)}")
  _require(key, every > 0, "needs config.evaluation.every_steps above 0")
  _require(
    key,
    "zero-shot-ours" not in metric or "ours" in run.evaluation.prompts,
    "needs 'ours' in config.evaluation.prompts",
  )
  _require(
    "evaluation.every_steps",
    not run.checkpoint.every_steps or every % run.checkpoint.every_steps == 0,
    "must be a multiple of checkpoint.every_steps, for the best checkpoint is chosen among those"
    " that were evaluated",
  )


def _check_positions(run: RunConfig) -> None:
  """Checks that the text encoder has positions for the longest text."""
  positions = run.model.text.max_position
  lengths = {"text": run.text.max_tokens, "evaluation": run.evaluation.max_tokens}
  if run.model.text.across_sentences:
    for section, length in lengths.items():
      _require(
        f"{section}.max_tokens",
        length <= positions,
        f"is {length}; exceeds model.text.max_position {positions}",
      )
  else:
    # Positions count within a sentence; a sentence alone may fill the whole report.
    longest = max(lengths.values())
    _require(
      "model.text.max_position",
      positions >= longest,
      f"is {positions}; must hold a sentence as long as max_tokens, {longest}",
    )


def _check_curriculum(run: RunConfig) -> None:
  """Checks the method, the stages, and that the method can learn by each."""
  method = run.alignment.method
  _require(
    "alignment.method", method in METHODS, f"is {method!r}; must be one of {', '.join(METHODS)}"
  )
  for stage in with_key(curriculum.stages, run.curriculum, key="curriculum."):
    _require(
      f"curriculum.{stage.name}.global_weight",
      method != "none" or stage.global_weight > 0,
      "is 0; method 'none' learns by nothing else",
    )


def _require(key: str, holds: bool, text: str) -> None:
  if not holds:
    raise ConfigError(f"config.{key}: {text}")


def with_key(function: Callable, *arguments, key: str = ""):
  """Calls a function whose errors begin with a key of the config, or with one below `key`."""
  try:
    return function(*arguments)
  except (ValueError, UserError) as error:
    raise ConfigError(f"config.{key}{error}") from error
