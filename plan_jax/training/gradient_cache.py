"""Large batches in the memory of small ones: gradients of a contrast by encoding twice.

A contrast needs the features of the whole batch at once, but not the encoders' activations. So the
features are computed micro-batch by micro-batch and kept, the loss of the whole batch gives the
gradient with respect to them, and each micro-batch is encoded again to carry its share of that
gradient into the parameters (Gao et al. 2021, "Scaling deep contrastive learning batch size under
memory limited setup"). The gradient is that of the whole batch; only where the encoders look at the
batch themselves (batch norm, the draws of dropout) they see a micro-batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def value_and_gradient(
  encode: Callable, loss: Callable, params, stats, batch, key: jax.Array, micro_batches: int
):
  """Computes the loss of the whole batch and its gradient.

  Args:
    encode: (params, stats, batch, key) -> (features, stats); features are float arrays that lead
      with the batch axis.
    loss: (features, params, batch) -> (scalar, parts).
    params: what to differentiate by.
    stats: what encoding carries from batch to batch, without gradient.
    batch: tree of arrays that lead with the batch axis.
    key: of dropout.
    micro_batches: how many; they divide the batch, on a mesh that of each device.

  Returns:
    (parts, stats after the batch), gradient like `params`.
  """
  if micro_batches == 1:

    def whole(params):
      features, after = encode(params, stats, batch, key)
      total, parts = loss(features, params, batch)
      return total, (parts, after)

    gradient, aux = jax.grad(whole, has_aux=True)(params)
    return aux, gradient

  small = jax.tree.map(lambda x: _split(x, micro_batches), batch)
  keys = jax.random.split(key, micro_batches)

  def first(stats, given):
    features, stats = encode(params, stats, *given)
    return stats, features

  after, features = jax.lax.scan(first, stats, (small, keys))
  features = jax.tree.map(_join, features)
  (by_features, gradient), parts = jax.grad(loss, (0, 1), has_aux=True)(features, params, batch)

  def second(gradient, given):
    *inputs, by_features = given
    _, pull = jax.vjp(lambda p: encode(p, stats, *inputs)[0], params)
    return jax.tree.map(jnp.add, gradient, pull(by_features)[0]), None

  by_features = jax.tree.map(lambda x: _split(x, micro_batches), by_features)
  gradient, _ = jax.lax.scan(second, gradient, (small, keys, by_features))
  return (parts, after), gradient


def _split(x: jax.Array, count: int) -> jax.Array:
  """Splits [B, ...] into [count, B / count, ...], interleaved: each device keeps its own share."""
  return x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1)


def _join(x: jax.Array) -> jax.Array:
  """Inverts `_split`."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
