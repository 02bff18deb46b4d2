"""What training carries from step to step, and how a step changes it."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch
from plan_jax.alignment.objective import objective
from plan_jax.models import freezing
from plan_jax.models.two_towers import TwoTowers, bounded
from plan_jax.training.gradient_cache import value_and_gradient


@flax.struct.dataclass
class TrainState:
  """Everything a checkpoint holds.

  Attributes:
    step: int32 scalar, steps done.
    params: float32.
    batch_stats: running statistics of batch norm, empty without.
    opt_state: of the optimizer.
    ema: running mean of the parameters, None when off.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: optax.OptState
  ema: dict | None


def make_optimizer(config, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with linear warm-up, cosine decay and gradient clipping.

  What is frozen stays as it is, without moments or weight decay, and does not count for the clip.

  Args:
    config: learning_rate, warmup_fraction, weight_decay, clip_norm, beta2; freeze, and what
      fine_tuning.rates wants.
    steps: length of training.
  """
  warmup = min(round(config.warmup_fraction * steps), steps - 1)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup else config.learning_rate, config.learning_rate, warmup, steps
  )

  def decayed(params):
    # Matrices and kernels; not biases, norms, temperatures.
    return jax.tree.map(lambda p: p.ndim > 1, params)

  optimizer = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(schedule, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed),
  )
  freeze = tuple(config.freeze)
  if freeze:
    optimizer = optax.partition(
      {"learned": optimizer, "frozen": optax.set_to_zero()},
      lambda params: freezing.labels(params, freeze),
    )
  if (config.image_rate, config.text_rate, config.layer_decay) != (1, 1, 1):

    def scaled(updates, _):
      return jax.tree.map(jnp.multiply, updates, freezing.rates(updates, config))

    optimizer = optax.chain(optimizer, optax.stateless(scaled))
  return optimizer, schedule


def initial_state(model: TwoTowers, optimizer, batch: dict, *, seed: int, ema: bool) -> TrainState:
  """Fresh state; `batch` gives shapes only. A pure function: jit it with the shardings wanted."""
  variables = model.init(jax.random.fold_in(jax.random.key(seed), 0), batch)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.array, params) if ema else None,
  )


def make_step(
  model: TwoTowers,
  optimizer,
  schedule: optax.Schedule,
  stage: Stage,
  alignment: Alignment,
  *,
  seed: int,
  ema_decay: float,
  micro_batches: int = 1,
  freeze: tuple[str, ...] = (),
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """One update under `stage`: (state, batch) -> (state, scalar metrics).

  Args:
    model, optimizer: as in `initial_state`.
    schedule: of the learning rate, to be measured.
    stage: of the curriculum; it is compiled in, for rounds change the shape of the computation.
    alignment: of `objective`.
    seed: of dropout.
    ema_decay: of the running mean of parameters; 0 keeps none.
    micro_batches: into which the encoders take the batch apart, see gradient_cache.
    freeze: patterns of the parameters that do not learn.
  """
  base = jax.random.fold_in(jax.random.key(seed), 1)

  def encode(params, batch_stats, batch, key):
    params = freezing.without_gradient(params, freeze)
    (image, text, _), mutated = model.apply(
      {"params": params, "batch_stats": batch_stats},
      batch,
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    features = dict(
      pixels=image.pixels,
      image_embedding=image.embedding,
      words=text.words,
      text_embedding=text.embedding,
      significance=text.significance,
      attention=text.attention,
    )
    return features, mutated.get("batch_stats", {})

  def loss(features, params, batch):
    params = freezing.without_gradient(params, freeze)
    scales = model.apply({"params": params}, method="scales")
    embedded = EmbeddedBatch(
      **features,
      mask=batch["word_mask"],
      term=batch["term"],
      report_key=batch["report_key"],
      example_key=batch["study_key"],
      global_scale=scales[0],
      local_scale=scales[1],
    )
    return objective(embedded, stage, alignment)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(base, state.step)
    (parts, batch_stats), gradient = value_and_gradient(
      encode, loss, state.params, state.batch_stats, batch, key, micro_batches
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = bounded(optax.apply_updates(state.params, updates), model.scale_max)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update(params, ema, 1 - ema_decay)
    parts |= {
      "learning_rate": schedule(state.step),
      "gradient_norm": optax.tree.norm(gradient),
      "parameter_norm": optax.tree.norm(params),
      "dropped_sentences": batch["dropped_sentences"].sum(),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema), parts

  return step
