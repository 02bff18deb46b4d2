"""Is a config possible? Asked before any work."""

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.example import SPLITS
from input_pipeline.readers.by_name import READERS, default_options
from plan_jax.alignment import curriculum, pairwise
from plan_jax.alignment.methods import METHODS, Alignment, pair_tile
from plan_jax.alignment.regions import SPARSIFIERS
from plan_jax.alignment.similarity import EVIDENCE
from plan_jax.evaluators import datasets
from plan_jax.evaluators.by_name import configured
from plan_jax.models import freezing
from plan_jax.models.layers.remat import REMAT
from plan_jax.models.resnet import BLOCKS, NORMS
from plan_jax.models.two_towers import IMAGE_ENCODERS, image_encoder
from plan_jax.results.rows import FOLLOWED, scalar_name
from plan_jax.runtime.mesh import make_mesh
from plan_jax.training.assembly import abstract_params
from plan_jax.transfer import attached

# What `config.runlocal` changes, beside the encoders' sizes.
_LOCAL = {
  "data.limit": 64,
  "text.vocabulary_size": 500,
  "model.image_px": 64,
  "model.embed_dim": 32,
  "model.dtype": "float32",
  "model.remat": "none",
  "alignment.dtype": "float32",
  "alignment.tile_mib": 16,
  "train.steps": 4,
  "train.batch_size": 8,
  "train.micro_batches": 1,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 2,
  "evaluation.every_steps": 2,
  "evaluation.during_images": 8,
  "evaluation.batch_size": 8,
  "evaluation.resamples": 20,
  "evaluation.report_images": 2,
}
_LOCAL_FLAGS = {
  "image_px": 64,
  "steps": 4,
  "batch_size": 8,
  "validate_every_steps": 2,
  "channels": 8,
  "resamples": 20,
}
_LOCAL_IMAGE = {
  "width": 0.25,
  "vit.embed_dim": 48,
  "vit.depth": 2,
  "vit.num_heads": 2,
  "vit.mlp_dim": 96,
  "vit.grid": 4,
}
_LOCAL_TEXT = {"embed_dim": 48, "depth": 2, "num_heads": 2, "mlp_dim": 96}


class ConfigError(UserError):
  """A key of the config cannot be; the message names it."""


def localised(config: ConfigDict) -> ConfigDict:
  """What is to be run: the config, or with `config.runlocal` its small likeness.

  An encoder whose weights are given keeps its size. Selections are dropped: few images hold none.
  """
  if not config.runlocal:
    return config
  changes = dict(_LOCAL)
  for encoder, sizes in (("image", _LOCAL_IMAGE), ("text", _LOCAL_TEXT)):
    if not config.model[encoder].weights:
      changes |= {f"model.{encoder}.{key}": value for key, value in sizes.items()}
  config = ConfigDict(config.to_dict())
  config.update_from_flattened_dict(changes)
  for chosen in (config.data, *config.evaluation.sets.values()):
    chosen.selection = ""
  for entry in config.evaluation.transfer.values():
    known = attached.known_flags(entry.task) if entry.task in attached.TASKS else ()
    entry.flags.update({key: value for key, value in _LOCAL_FLAGS.items() if key in known})
    entry.fractions = entry.fractions[-1:]
  return config


def check(config: ConfigDict) -> None:
  """Raises ConfigError at the first impossible key: its name, what it is and what it may be."""
  check_sets(config)
  _one_of(config, "model.dtype", ("float32", "bfloat16"))
  _one_of(config, "model.remat", tuple(REMAT))
  _one_of(config, "model.image.name", tuple(IMAGE_ENCODERS))
  _one_of(config, "model.image.depth", tuple(BLOCKS))
  _one_of(config, "model.image.output_stride", (4, 8, 16, 32))
  _one_of(config, "model.image.norm", NORMS)
  _one_of(config, "model.image.stages", (1, 2, 3, 4))
  _one_of(config, "alignment.method", tuple(METHODS))
  _one_of(config, "alignment.sparsifier", tuple(SPARSIFIERS))
  _one_of(config, "alignment.evidence", EVIDENCE)
  _one_of(config, "alignment.implementation", pairwise.IMPLEMENTATIONS)
  _one_of(config, "alignment.dtype", ("float32", "bfloat16"))
  _one_of(config, "checkpoint.evaluate", ("last", "best"))
  for key in (
    "text.vocabulary_size", "text.max_tokens", "text.max_words", "model.image_px",
    "model.embed_dim", "train.steps", "train.batch_size", "train.log_every_steps",
    "alignment.tile_mib", "train.micro_batches", "train.learning_rate",
    "train.clip_norm", "checkpoint.keep_last", "evaluation.max_tokens",
    "evaluation.max_words", "model.image.width", "model.text.num_heads", "model.text.depth",
    "model.text.embed_dim", "model.text.mlp_dim", "model.text.max_position", "model.text.last_layers",
    "model.image.vit.embed_dim", "model.image.vit.depth", "model.image.vit.num_heads",
    "train.image_rate", "train.text_rate", "model.image.vit.mlp_dim",
    "model.image.vit.patch_px", "model.image.vit.grid", "data.threads",
  ):  # fmt: skip
    _check(config, key, lambda value: value > 0, "must be positive")
  _check(
    config, "alignment.beta", lambda value: 0 < value < math.inf, "must be positive and finite"
  )
  if config.evaluation.every_steps:
    _check(config, "evaluation.during_images", lambda value: value > 0, "must be positive")
  for key in ("text.max_tokens", "evaluation.max_tokens"):
    _check(config, key, lambda value: value > 2, "must have room for a token and its two marks")
  for key in ("alignment.eta", "data.max_skipped_fraction"):
    _check(config, key, lambda value: 0 <= value <= 1, "must lie in [0, 1]")
  for key in ("train.warmup_fraction", "train.ema_decay", "train.beta2", "model.text.dropout"):
    _check(config, key, lambda value: 0 <= value < 1, "must lie in [0, 1)")
  for key in (
    "data.workers", "checkpoint.every_steps", "evaluation.every_steps", "train.weight_decay",
    "alignment.word_weight", "alignment.term_weight",
    "alignment.tile_images", "alignment.tile_reports",
    "model.image.projector", "model.text.projector",
  ):  # fmt: skip
    _check(config, key, lambda value: value >= 0, "must not be negative")
  highest = config.model.scale_max
  _check(config, "model.scale_init", lambda value: 1 <= value <= highest, f"must be 1 to {highest}")
  names = tuple(scalar_name(task, metric) for task, _, metric in FOLLOWED)
  _one_of(config, "checkpoint.best_metric", ("", *names))
  _check_downstream(config)
  _check(config, "train.batch_size", lambda value: value > 1, "a contrast needs at least two pairs")
  least = 2 ** (1 + config.model.image.stages)  # the stride that these stages can reach
  _check(
    config, "model.image.output_stride", lambda value: value <= least,
    f"{config.model.image.stages} stages reach a stride of {least} only",
  )  # fmt: skip
  stride = image_encoder(config.model.image).output_stride
  _check(
    config, "model.image_px", lambda value: value % stride == 0, f"must be a multiple of {stride}"
  )
  _check(config, "model.image.mean", lambda value: len(value) in (1, 3), "must be 1 or 3 values")
  channels = len(config.model.image.mean)
  _check(
    config, "model.image.std", lambda value: len(value) == channels and min(value) > 0,
    f"must be {channels} positive values, as model.image.mean",
  )  # fmt: skip
  text, vit = config.model.text, config.model.image.vit
  for key, heads in (
    ("model.text.embed_dim", text.num_heads),
    ("model.image.vit.embed_dim", vit.num_heads),
  ):
    must = f"must be a multiple of {heads} heads"
    _check(config, key, lambda value, heads=heads: value % heads == 0, must)
  _check(
    config, "model.text.last_layers", lambda value: value <= text.depth,
    f"there are {text.depth} layers",
  )  # fmt: skip
  if text.across_sentences:
    for key in ("text.max_tokens", "evaluation.max_tokens"):
      _check(
        config,
        key,
        lambda value: value <= text.max_position,
        f"exceeds model.text.max_position {text.max_position}",
      )
  else:
    # Positions count within a sentence; a sentence alone may fill the whole report.
    longest = max(config.text.max_tokens, config.evaluation.max_tokens)
    _check(
      config,
      "model.text.max_position",
      lambda value: value >= longest,
      f"must hold a sentence as long as max_tokens, {longest}",
    )
  if config.checkpoint.best_metric and not config.evaluation.every_steps:
    raise ConfigError("config.checkpoint.best_metric: needs config.evaluation.every_steps above 0")
  if "zero-shot-ours" in config.checkpoint.best_metric and "ours" not in config.evaluation.prompts:
    raise ConfigError("config.checkpoint.best_metric: needs 'ours' in config.evaluation.prompts")
  if config.checkpoint.evaluate == "best" and not config.checkpoint.best_metric:
    raise ConfigError('config.checkpoint.evaluate: "best" needs config.checkpoint.best_metric')
  if (
    config.checkpoint.best_metric
    and config.checkpoint.every_steps
    and (config.evaluation.every_steps % config.checkpoint.every_steps)
  ):
    raise ConfigError(
      "config.evaluation.every_steps: must be a multiple of checkpoint.every_steps, for the best"
      " checkpoint is chosen among those that were evaluated"
    )
  try:
    stages = curriculum.stages(config.curriculum)
  except ValueError as error:
    raise ConfigError(f"config.{error}") from error
  method = config.alignment.method
  for stage in stages:
    if method == "none" and not stage.global_weight:
      raise ConfigError(
        f"config.curriculum.{stage.name}.global_weight: is 0; method 'none' learns by nothing else"
      )
    if len(stage.local_weight) > 1 and method in ("gloria", "sparc", "mgca"):
      raise ConfigError(
        f"config.curriculum.{stage.name}.local_weight: is {stage.local_weight}; method {method!r}"
        " has one round (tau and gamma need as many values)"
      )
  _check(config, "train.layer_decay", lambda value: 0 < value <= 1, "must lie in (0, 1]")
  if config.train.freeze:
    freezing.check(abstract_params(config), config.train.freeze)
  configured(config)
  if config.text.tokenizer and not Path(config.text.tokenizer).is_dir():
    raise ConfigError(f"config.text.tokenizer: there is no folder {config.text.tokenizer}")


def check_sets(config: ConfigDict) -> None:
  """Raises ConfigError at the first impossible key of the data, or of what is evaluated on."""
  _one_of(config, "data.dataset", tuple(READERS))
  _one_of(config, "evaluation.split", SPLITS)
  for key in ("data.stored_px", "evaluation.batch_size"):
    _check(config, key, lambda value: value > 0, "must be positive")
  for key in ("evaluation.resamples", "evaluation.rerank_top", "evaluation.report_images", "seed"):
    _check(config, key, lambda value: value >= 0, "must not be negative")
  if not datasets.is_given(config.data):
    raise ConfigError(
      f"config.data.source: is empty; name the folder of the {config.data.dataset} data (or"
      " config.data.records, where they are converted)"
    )
  for name, chosen in config.evaluation.sets.items():
    _one_of(config, f"evaluation.sets.{name}.dataset", tuple(READERS))
    _one_of(config, f"evaluation.sets.{name}.split", SPLITS)
    if name == config.data.dataset:
      raise ConfigError(f"config.evaluation.sets.{name}: is the name of the run's own data")
    options = default_options(chosen.dataset)
    _check(
      config, f"evaluation.sets.{name}.options",
      lambda value, options=options: set(value) <= set(options),
      f"its keys must be options of the reader: {', '.join(options) or 'it has none'}",
    )  # fmt: skip


def _check_downstream(config: ConfigDict) -> None:
  for name, entry in config.evaluation.transfer.items():
    key = f"evaluation.transfer.{name}"
    _one_of(config, f"{key}.task", tuple(attached.TASKS))
    _one_of(config, f"{key}.of", ("", *config.evaluation.sets))
    module, _ = attached.TASKS[entry.task]
    known = attached.known_flags(entry.task)
    _check(
      config, f"{key}.flags", lambda value, known=known: set(value) <= known,
      f"its keys must be flags of plan_jax.{entry.task}: {', '.join(sorted(known))}",
    )  # fmt: skip
    _check(
      config, f"{key}.fractions", lambda value: all(0 < share <= 1 for share in value),
      "must be shares above 0, and 1 at most",
    )  # fmt: skip
    _check(
      config, f"{key}.encoders",
      lambda value, known=module.ENCODERS: value[:1] == ("run",) and set(value) <= set(known),
      f"must begin with 'run'; there are {', '.join(module.ENCODERS)}",
    )  # fmt: skip
    of = f"evaluation.sets.{entry.of}.split" if entry.of else "evaluation.split"
    if entry.fractions:
      _check(
        config, of, lambda value: value == "test", f"config.{key} is scored on the test split"
      )  # fmt: skip
    for encoder in entry.encoders:
      flags = attached.flags_of(config, entry, encoder, 1.0)
      try:
        attached.parsed(entry.task, flags | {"workdir": "x", "records": "x", "out": "x"})
      except UserError as error:
        raise ConfigError(f"config.{key}.flags: {error}") from error


def check_devices(config: ConfigDict) -> None:
  """Raises UserError, naming the key, where the devices here do not fit; wakes the backend."""
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  must = f"must be a multiple of the {mesh.size} devices"
  _check(config, "train.batch_size", lambda value: value % mesh.size == 0, must)
  share = config.train.batch_size // mesh.size
  _check(
    config, "train.micro_batches", lambda value: share % value == 0,
    f"must divide the {share} pairs of a device",
  )  # fmt: skip
  _check(
    config, "alignment.implementation", lambda value: value != "chunked" or mesh.size == 1,
    f'runs on one device, not on {mesh.size}; use "ring"',
  )  # fmt: skip
  batch, model = config.train.batch_size, config.model
  pixels = (
    batch,
    (model.image_px // image_encoder(model.image).output_stride) ** 2,
    model.embed_dim,
  )
  words = (batch, config.text.max_words, model.embed_dim)
  with jax.set_mesh(mesh):
    for stage in curriculum.stages(config.curriculum):
      try:
        pair_tile(Alignment(**config.alignment), stage, pixels, words)
      except ValueError as error:
        raise ConfigError(f"config.{error}") from error


def _one_of(config, key, allowed):
  _check(
    config, key, lambda value: value in allowed, f"must be one of {', '.join(map(str, allowed))}"
  )


def _check(config, key, test, must):
  value = config
  for name in key.split("."):
    value = value[name]
  if not test(value):
    if isinstance(value, ConfigDict):
      value = value.to_dict()
    raise ConfigError(f"config.{key}: is {value!r}; {must}")
