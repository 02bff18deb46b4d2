"""Batch norm in as few passes over memory as it takes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from plan_jax.models.freezing import is_frozen

_EPSILON = 1e-5
_MOMENTUM = 0.9


class BatchNorm(nn.Module):
  """nn.BatchNorm, with variables of the same names, that keeps its statistics where it is frozen.

  Attributes:
    train: whether it norms by the statistics of the batch, and updates its running ones.
    dtype: of the output, and of the input where it trains; statistics are float32.
    scale_init: first values of the scale.
    freeze: patterns of the paths of frozen parameters: where its own are among them, it norms by
      its running statistics, and keeps them.
  """

  train: bool
  dtype: Any = jnp.float32
  scale_init: Callable = nn.initializers.ones
  freeze: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, x: Float[Array, "*n C"]) -> Float[Array, "*n C"]:
    """Norms each channel."""
    channels = x.shape[-1]
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    scale = self.param("scale", self.scale_init, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    paths = ("/".join((*self.path, name)) for name in ("scale", "bias"))
    if not self.train or all(is_frozen(path, self.freeze) for path in paths):
      factor = jax.lax.rsqrt(var.value + _EPSILON) * scale
      return ((x.astype(jnp.float32) - mean.value) * factor + bias).astype(self.dtype)
    out, *statistics = batch_normalize(x, scale, bias)
    if not self.is_initializing():
      for running, now in zip((mean, var), statistics, strict=True):
        running.value = _MOMENTUM * running.value + (1 - _MOMENTUM) * now
    return out.astype(self.dtype)


@jax.custom_vjp
def batch_normalize(
  x: Float[Array, "*n C"], scale: Float[ArrayLike, " C"], bias: Float[ArrayLike, " C"]
) -> tuple[Float[Array, "*n C"], Float[Array, " C"], Float[Array, " C"]]:
  """Norms over all axes but the last, in x's dtype; returns mean and variance too, in float32.

  The gradient is the textbook one, from two sums over the batch in one pass; tracing the formula
  makes four.
  """
  return _forward(x, scale, bias)[0]


def _forward(x, scale, bias):
  axes = tuple(range(x.ndim - 1))
  wide = x.astype(jnp.float32)
  mean = wide.mean(axes)
  var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0)
  inverse = jax.lax.rsqrt(var + _EPSILON)
  out = ((wide - mean) * (inverse * scale) + bias).astype(x.dtype)
  return (out, mean, var), (x, mean, inverse, scale)


def _backward(residuals, g):
  x, mean, inverse, scale = residuals
  g, by_mean, by_var = g
  axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
  wide, g = x.astype(jnp.float32), g.astype(jnp.float32)
  by_bias = g.sum(axes)
  by_scale = ((g * wide).sum(axes) - mean * by_bias) * inverse
  slope = scale * inverse
  by_x = (
    g * slope
    + (wide - mean) * ((2 * by_var - slope * inverse * by_scale) / count)
    + (by_mean - slope * by_bias) / count
  )
  return by_x.astype(x.dtype), by_scale, by_bias


batch_normalize.defvjp(_forward, _backward)
