"""The state that training carries from step to step: of pre-training, and of heads."""

from collections.abc import Mapping

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


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
  ema: dict | None = None

  @classmethod
  def create(
    cls,
    params: dict,
    batch_stats: dict,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool = False,
  ) -> "TrainState":
    """The state before the first step; with `ema` it keeps a running mean of the parameters."""
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.array, params) if ema else None,
    )


def initial_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  batch: Mapping,
  *,
  seed: int,
  ema: bool,
) -> TrainState:
  """Fresh state; `batch` gives shapes only. A pure function: jit it with the shardings wanted."""
  variables = model.init(jax.random.fold_in(jax.random.key(seed), 0), batch)
  stats = variables.get("batch_stats", {})
  return TrainState.create(variables["params"], stats, optimizer, ema=ema)


def weights_of(state: TrainState) -> dict:
  """The weights that are evaluated: the parameters, or their running mean where there is one."""
  params = state.params if state.ema is None else state.ema
  return {"params": params, "batch_stats": state.batch_stats}
