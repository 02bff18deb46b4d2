"""The state that training carries from step to step: of pre-training, and of heads."""

import flax
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
