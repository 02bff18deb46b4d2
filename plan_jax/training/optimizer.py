"""The optimizer of pre-training and of heads: AdamW, warm-up, cosine decay."""

import math

import jax
import jax.numpy as jnp
import optax

from plan_jax.models import freezing
from plan_jax.training.config import OptimizerConfig


def make_optimizer(
  config: OptimizerConfig, steps: int, *, decay_vectors: bool = False
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW with linear warm-up, cosine decay and gradient clipping.

  Frozen parameters stay as they are, without moments or weight decay, and do not count for the
  clip.

  Args:
    config: rates, decay, clip, and what is frozen.
    steps: length of training.
    decay_vectors: whether biases, norms and temperatures decay as matrices and kernels do.

  Returns:
    The optimizer, and its learning rate by step.
  """
  warmup = min(round(config.warmup_fraction * steps), steps - 1)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup else config.learning_rate, config.learning_rate, warmup, steps
  )
  mask = None if decay_vectors else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  optimizer = optax.adamw(schedule, b2=config.beta2, weight_decay=config.weight_decay, mask=mask)
  if math.isfinite(config.clip_norm):
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  if config.freeze:
    optimizer = optax.partition(
      {"learned": optimizer, "frozen": optax.set_to_zero()},
      lambda params: freezing.labels(params, config.freeze),
    )
  if (config.image_rate, config.text_rate, config.layer_decay) != (1, 1, 1):

    def scale(updates, _):
      return jax.tree.map(jnp.multiply, updates, freezing.rates(updates, config))

    optimizer = optax.chain(optimizer, optax.stateless(scale))
  return optimizer, schedule
