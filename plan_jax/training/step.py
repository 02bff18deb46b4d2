"""The update of pre-training: encoders, objective, gradient, optimizer."""

from collections.abc import Callable

import jax
import optax

from plan_jax.alignment import curriculum
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, SwappedWords
from plan_jax.alignment.methods.plan import smoothed
from plan_jax.alignment.objective import objective
from plan_jax.models import freezing
from plan_jax.models.two_towers import TwoTowers, bounded
from plan_jax.runtime import mesh
from plan_jax.training.assembly import Assembly
from plan_jax.training.config import TrainConfig
from plan_jax.training.gradient_cache import value_and_gradient
from plan_jax.training.state import TrainState


def make_step(
  model: TwoTowers,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  stage: Stage,
  alignment: Alignment,
  config: TrainConfig,
) -> Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict]]:
  """Makes the update under `stage`: (state, batch, `dropout_key`) -> (state, scalar metrics).

  The stage is compiled in, for its losses change the computation; the key is not, so that
  runs of all seeds share a program. The schedule, as `make_optimizer` gives it, is only measured.
  """
  swaps_sides = alignment.swaps_sides and stage.local_weight > 0

  def encode(params, batch_stats, batch, key):
    params = freezing.without_gradient(params, config.freeze)
    variables, rngs = {"params": params, "batch_stats": batch_stats}, {"dropout": key}
    (image, text, _), mutated = model.apply(
      variables, batch, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    features = {
      "pixels": smoothed(image, alignment),
      "image_embedding": image.embedding,
      "words": text.words,
      "text_embedding": text.embedding,
      "significance": text.significance,
      "attention": text.attention,
    }
    if swaps_sides:
      swapped = batch | {"tokens": batch["swapped_tokens"]}
      swapped = model.apply(variables, swapped, train=True, rngs=rngs, method="embed_texts")
      features["swapped"] = swapped.words
    return features, mutated.get("batch_stats", {})

  def loss(features, params, batch):
    params = freezing.without_gradient(params, config.freeze)
    scales = model.apply({"params": params}, method="scales")
    if swaps_sides:
      features |= {"swapped": SwappedWords(features["swapped"], batch["swapped_half"])}
    embedded = EmbeddedBatch(
      **features,
      mask=batch["word_mask"],
      term=batch["term"],
      half=batch["half"],
      report_key=batch["report_key"],
      study_key=batch["study_key"],
      global_scale=scales[0],
      local_scale=scales[1],
    )
    return objective(embedded, stage, alignment)

  def step(state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(key, state.step)
    (parts, batch_stats), gradient = value_and_gradient(
      encode, loss, state.params, state.batch_stats, batch, key, config.micro_batches
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = bounded(optax.apply_updates(state.params, updates), model.scale_max)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update(params, ema, 1 - config.ema_decay)
    parts |= {
      "learning_rate": schedule(state.step),
      "gradient_norm": optax.tree.norm(gradient),
      "parameter_norm": optax.tree.norm(params),
      "dropped_sentences": batch["dropped_sentences"].sum(),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema), parts

  return step


def dropout_key(seed: int) -> jax.Array:
  """Returns the key of dropout, the same at every step."""
  return jax.random.fold_in(jax.random.key(seed), 1)


class StagedStep:
  """The update of every stage, jitted on the mesh when its first step comes."""

  def __init__(self, parts: Assembly):
    self._parts = parts
    self._key = dropout_key(parts.config.seed)
    self._compiled: dict[str, Callable] = {}

  def stage(self, step: int) -> Stage:
    """The stage that step `step` (0-based) belongs to."""
    return curriculum.stage_at(self._parts.stages, step, self._parts.train.steps)

  def __call__(self, step: int, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """Updates the state, whose memory is given away, by a global batch; gives scalar metrics."""
    stage = self.stage(step)
    if stage.name not in self._compiled:
      self._compiled[stage.name] = jit_step(self._parts, stage)
    with jax.set_mesh(self._parts.mesh):
      return self._compiled[stage.name](state, batch, self._key)


def jit_step(parts: Assembly, stage: Stage) -> Callable:
  """Jits the update under `stage` on the mesh of the parts, which its calls need in context."""
  update = make_step(
    parts.model,
    parts.optimizer,
    parts.schedule,
    stage,
    parts.alignment,
    parts.train,
  )
  return jax.jit(
    update,
    in_shardings=(
      parts.shardings,
      mesh.batch_sharding(parts.mesh),
      mesh.everywhere(parts.mesh),
    ),
    out_shardings=(parts.shardings, None),
    donate_argnums=0,
  )
