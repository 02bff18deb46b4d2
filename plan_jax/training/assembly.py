"""The parts of a run, put together from its config."""

from dataclasses import dataclass

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment import curriculum
from plan_jax.models.two_towers import TwoTowers, build
from plan_jax.models.weights.load import LoadedEncoder
from plan_jax.runtime.checkpoints import abstract_state
from plan_jax.runtime.mesh import make_mesh, quick_draws, state_sharding
from plan_jax.training.state import TrainState, initial_state, make_optimizer


@dataclass(frozen=True)
class Assembly:
  """What training and inference share.

  Attributes:
    model: the two towers.
    optimizer, schedule: as make_optimizer gives them.
    stages: of the curriculum.
    mesh: of devices.
    shardings: tree like the state.
    abstract_state: shapes, dtypes and shardings of the state.
    config: of the run.
  """

  model: TwoTowers
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  stages: tuple[curriculum.Stage, ...]
  mesh: Mesh
  shardings: TrainState
  abstract_state: TrainState
  config: ConfigDict

  def initial_state(self) -> TrainState:
    """The state before the first step, on the mesh."""
    made = jax.jit(
      lambda: _initial(self.model, self.optimizer, self.config), out_shardings=self.shardings
    )
    with quick_draws():
      return made()

  def with_encoders(self, state: TrainState, encoders: dict[str, LoadedEncoder]) -> TrainState:
    """The state before the first step with these encoders, by their names in the parameters."""

    def taken(tree, shardings, part):
      given = {name: getattr(encoder, part) for name, encoder in encoders.items()}
      given = {name: there for name, there in given.items() if there}
      return tree | jax.device_put(given, {name: shardings[name] for name in given})

    return state.replace(
      params=taken(state.params, self.shardings.params, "params"),
      batch_stats=taken(state.batch_stats, self.shardings.batch_stats, "batch_stats"),
      ema=None if state.ema is None else taken(state.ema, self.shardings.ema, "params"),
    )


def assemble(config: ConfigDict, tokenizer: Tokenizer) -> Assembly:
  """Builds the parts; nothing is computed yet. Raises ValueError naming a key that does not fit."""
  model = build(config.model, tokenizer.vocabulary_size, freeze=config.train.freeze)
  optimizer, schedule = make_optimizer(config.train, config.train.steps)
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)

  def make():
    return _initial(model, optimizer, config)

  shardings = state_sharding(jax.eval_shape(make), mesh)
  return Assembly(
    model=model,
    optimizer=optimizer,
    schedule=schedule,
    stages=curriculum.stages(config.curriculum),
    mesh=mesh,
    shardings=shardings,
    abstract_state=abstract_state(make, shardings),
    config=config,
  )


def abstract_params(config: ConfigDict) -> dict:
  """The shapes of the parameters, for the vocabulary size of the config."""
  model = build(config.model, config.text.vocabulary_size)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), _batch(config)))["params"]


def _initial(model, optimizer, config) -> TrainState:
  ema = config.train.ema_decay > 0
  return initial_state(model, optimizer, _batch(config), seed=config.seed, ema=ema)


def _batch(config) -> dict:
  """Of one pair; gives shapes only."""
  side, length, words = config.model.image_px, config.text.max_tokens, config.text.max_words
  tokens = np.zeros((1, length), np.int32)
  return {
    "image": np.zeros((1, side, side, 1), np.float32),
    "tokens": tokens,
    "word_index": tokens,
    "sentence_index": tokens,
    "position": tokens,
    "word_mask": np.ones((1, words), bool),
  }
