"""Product of a layer's input with its weights."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from plan_jax.models.layers.remat import PRODUCT


def product(x: Float[Array, "*n C"], kernel: Float[ArrayLike, "C F"]) -> Float[Array, "*n F"]:
  """Contracts the last axis with the first of the kernel.

  A product of matrices on CPUs, where XLA copies for the gradients if there are more axes. Plain
  elsewhere, for XLA's GPU backend (jax 0.11.2) crashes as it compiles a strided slice reshaped to a
  matrix.
  """
  return checkpoint_name(_product(x, kernel), PRODUCT)


def dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
  """Computes `product` in place of jax.lax.dot_general in nn.Dense."""
  last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
  if dimension_numbers != last_with_first or precision or preferred_element_type:
    raise NotImplementedError("only for nn.Dense without a precision")
  return product(x, kernel)


def matrix(x: Float[Array, "*n C"]) -> Float[Array, "N C"]:
  """Flattens all axes but the last."""
  return x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def _product(x, kernel):
  def by_matrices(x, kernel):
    return (matrix(x) @ kernel).reshape(*x.shape[:-1], -1)

  return jax.lax.platform_dependent(x, kernel, cpu=by_matrices, default=jnp.dot)


def _forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _backward(residuals, g):
  x, kernel = residuals
  rows = tuple(range(x.ndim - 1))

  def by_matrices(x, g):
    return jnp.tensordot(matrix(g), matrix(x), (0, 0)).T

  def by_compiler(x, g):
    return jnp.tensordot(x, g, (rows, rows))

  by_kernel = jax.lax.platform_dependent(x, g, cpu=by_matrices, default=by_compiler)
  return _product(g, kernel.T), by_kernel


_product.defvjp(_forward, _backward)
