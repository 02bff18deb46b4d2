"""The parts of a run, put together from its config."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment
from plan_jax.models.config import ModelConfig
from plan_jax.models.two_towers import TwoTowers, build, image_encoder
from plan_jax.models.weights.load import LoadedEncoder
from plan_jax.runtime.checkpoints import abstract_state
from plan_jax.runtime.mesh import (
  batch_sharding,
  make_mesh,
  memory_bytes,
  quick_draws,
  state_sharding,
)
from plan_jax.training.config import TrainConfig
from plan_jax.training.optimizer import make_optimizer
from plan_jax.training.state import TrainState, initial_state

TOKENS = ("tokens", "word_index", "sentence_index", "position")  # arrays of a text, by token


@dataclass(frozen=True)
class Assembly:
  """The parts that training and inference share.

  `abstract_state` has the shapes and shardings, `alignment` what the config leaves to the mesh.
  """

  model: TwoTowers
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  stages: tuple[curriculum.Stage, ...]
  mesh: Mesh
  shardings: TrainState
  abstract_state: TrainState
  alignment: Alignment
  train: TrainConfig
  config: ConfigDict

  def initial_state(self) -> TrainState:
    """Makes the state before the first step, on the mesh."""
    make = partial(_initial, self.model, self.optimizer, self.config)
    with quick_draws():
      return jax.jit(make, out_shardings=self.shardings)()

  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes the global batches of training: what the loader gives, and how it lies."""
    config, sharding = self.config, batch_sharding(self.mesh)
    side, length, words = config.model.image_px, (config.text.max_tokens,), (config.text.max_words,)
    image = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
    if config.data.store_features:
      encoder = image_encoder(config.model.image)
      # The key is made inside: devices of the mesh may be of a topology, on which nothing runs.
      grid, _ = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x), image)
      image = jax.ShapeDtypeStruct((1, math.prod(grid.shape[1:-1]), grid.shape[-1]), np.float16)
    swaps = self.alignment.swaps_sides
    rows = {
      "image": (image.shape[1:], image.dtype),
      **dict.fromkeys((*TOKENS, *["swapped_tokens"] * swaps), (length, np.int32)),
      **dict.fromkeys(("word_mask", "term"), (words, np.bool_)),
      **dict.fromkeys(("half", *["swapped_half"] * swaps), (words, np.int32)),
      **dict.fromkeys(("report_key", "study_key", "dropped_sentences"), ((), np.int32)),
    }
    return {
      name: jax.ShapeDtypeStruct((self.train.batch_size, *shape), dtype, sharding=sharding)
      for name, (shape, dtype) in rows.items()
    }

  def with_encoders(self, state: TrainState, encoders: dict[str, LoadedEncoder]) -> TrainState:
    """Puts these encoders, by their names in the parameters, into a state before the first step.

    Low-rank updates, which no encoder brings, stay as they are.
    """

    def replaced(tree, shardings, part):
      given = {name: getattr(encoder, part) for name, encoder in encoders.items()}
      given, shardings = flatten_dict(given), flatten_dict(shardings)
      given = jax.device_put(given, {path: shardings[path] for path in given})
      return unflatten_dict(flatten_dict(tree) | given)

    return state.replace(
      params=replaced(state.params, self.shardings.params, "params"),
      batch_stats=replaced(state.batch_stats, self.shardings.batch_stats, "batch_stats"),
      ema=None if state.ema is None else replaced(state.ema, self.shardings.ema, "params"),
    )


def assemble(config: ConfigDict, tokenizer: Tokenizer) -> Assembly:
  """Builds the parts for the devices here; nothing is computed yet.

  Raises ValueError, naming a key that does not fit, and MeshError, where the mesh is not of the
  devices here.
  """
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  return assemble_on(mesh, config, tokenizer.vocabulary_size)


def assemble_on(mesh: Mesh, config: ConfigDict, vocabulary_size: int) -> Assembly:
  """Builds the parts for a mesh, whose devices need not be here, as `assemble`.

  Raises SectionError, which is a ValueError, for a key that is unknown or missing.
  """
  train = TrainConfig.read_at("train", config.train)
  ModelConfig.read_at("model", config.model.to_dict())
  model = build(config.model, vocabulary_size, freeze=train.freeze)
  optimizer, schedule = make_optimizer(train, train.steps)
  shapes = jax.eval_shape(partial(_initial, model, optimizer, config))
  shardings = state_sharding(shapes, mesh)
  return Assembly(
    model=model,
    optimizer=optimizer,
    schedule=schedule,
    stages=curriculum.stages(config.curriculum),
    mesh=mesh,
    shardings=shardings,
    abstract_state=abstract_state(shapes, shardings),
    alignment=alignment_on(mesh, config),
    train=train,
    config=config,
  )


def alignment_on(mesh: Mesh, config: ConfigDict) -> Alignment:
  """Reads the settings of the alignment, the memory of its tiles chosen for the mesh."""
  alignment = Alignment.read_at("alignment", config.alignment)
  return alignment.with_tile_mib(memory_bytes(mesh))


def pair_shapes(config: ConfigDict) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
  """Returns the shapes of what is compared: pixels (B, P, D) and words (B, W, D)."""
  model, batch = config.model, config.train.batch_size
  stride = ModelConfig.read(model.to_dict()).image.stride
  pixels = (batch, (model.image_px // stride) ** 2, model.embed_dim)
  return pixels, (batch, config.text.max_words, model.embed_dim)


def abstract_params(config: ConfigDict) -> dict:
  """The shapes of the parameters, for the vocabulary size of the config."""
  model = build(config.model, config.text.vocabulary_size)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), _batch(config)))["params"]


def _initial(model, optimizer, config) -> TrainState:
  ema = config.train.ema_decay > 0
  return initial_state(model, optimizer, _batch(config), seed=config.seed, ema=ema)


def _batch(config) -> dict:
  """A batch of one pair, which gives shapes only."""
  side, length, words = config.model.image_px, config.text.max_tokens, config.text.max_words
  return {
    "image": np.zeros((1, side, side, 1), np.float32),
    **dict.fromkeys(TOKENS, np.zeros((1, length), np.int32)),
    "word_mask": np.ones((1, words), bool),
  }
