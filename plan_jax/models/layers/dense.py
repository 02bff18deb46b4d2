"""A layer's product with its weights, whose gradient is fast on CPUs too; reverse mode only."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from plan_jax.models.layers.remat import PRODUCT


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., C] with [C, F] -> [..., F].

  A product of matrices on CPUs, where XLA copies for the gradients if there are more axes. As it is
  elsewhere, for XLA's GPU backend (jax 0.11.2) crashes as it compiles a strided slice reshaped to a
  matrix.
  """
  return checkpoint_name(_product(x, kernel), PRODUCT)


def dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
  """`product` in the place of jax.lax.dot_general in nn.Dense, which contracts last with first."""
  last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
  if dimension_numbers != last_with_first or precision or preferred_element_type:
    raise NotImplementedError("only for nn.Dense without a precision")
  return product(x, kernel)


def matrix(x: jax.Array) -> jax.Array:
  """[..., C] -> [N, C]."""
  return x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def _product(x, kernel):
  def of_matrices(x, kernel):
    return (matrix(x) @ kernel).reshape(*x.shape[:-1], -1)

  return jax.lax.platform_dependent(x, kernel, cpu=of_matrices, default=jnp.dot)


def _forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _backward(kept, g):
  x, kernel = kept
  rows = tuple(range(x.ndim - 1))
  by_kernel = jax.lax.platform_dependent(
    x, g,
    cpu=lambda x, g: jnp.tensordot(matrix(g), matrix(x), (0, 0)).T,
    default=lambda x, g: jnp.tensordot(x, g, (rows, rows)),
  )  # fmt: skip
  return _product(g, kernel.T), by_kernel


_product.defvjp(_forward, _backward)
