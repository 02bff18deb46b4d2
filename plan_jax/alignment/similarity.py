"""Products of words and pixels, their normalisation, and the pooling of a report's words."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

TINY = 1e-12  # under square roots and divisions


def l2_normalize(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
  """Divides by the norm of the last axis; zero stays zero, and its gradient is finite."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + TINY)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(
  formula: str, dtype: str, a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Computes an einsum of two arrays, accumulated in float32, forwards and backwards.

  Each letter of an operand must stand in the other operand or in the output.

  Args:
    formula: as of `jnp.einsum`.
    dtype: "bfloat16" rounds the operands to that first, gradients too; "float32" keeps them, where
      a TPU or GPU would round them by itself.
    a, b: the operands.
  """
  precise = jnp.promote_types(a.dtype, jnp.float32)
  einsum = partial(jnp.einsum, formula, preferred_element_type=precise)
  if dtype != "bfloat16":
    return einsum(a, b, precision="highest")

  def in_bfloat16(a, b):
    return einsum(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))

  def in_float32(a, b):
    # CPUs lack kernels for some products of bfloat16 with a float32 result; the numbers are these.
    return einsum(*(jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7) for x in (a, b)))

  return jax.lax.platform_dependent(a, b, cpu=in_float32, default=in_bfloat16)


def narrow(x: Shaped[Array, "..."], dtype: str) -> Shaped[Array, "..."]:
  """Casts to bfloat16 if that is the dtype; else returns the array itself."""
  return x.astype(dtype) if dtype == "bfloat16" else x


def _product_forward(formula, dtype, a, b):
  return product(formula, dtype, a, b), (a, b)


def _product_backward(formula, dtype, operands, gradient):
  (a, b), (left, out) = operands, formula.split("->")
  x, y = left.split(",")
  return (
    product(f"{out},{y}->{x}", dtype, gradient, b).astype(a.dtype),
    product(f"{out},{x}->{y}", dtype, gradient, a).astype(b.dtype),
  )


product.defvjp(_product_forward, _product_backward)


def pool_words(
  evidence: Float[Array, "*batch W"], weights: Float[Array, "*#batch W"], beta: float
) -> Float[Array, "*batch"]:
  """Pools words to a local score: (1 / beta) (log sum_w r exp(beta e) - log sum_w r).

  The score has no length bias, and is 0 without any word.

  Args:
    evidence: e, one value a word.
    weights: r >= 0; zero excludes a word.
    beta: sharpness; large comes near to the highest evidence.
  """
  log_r = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -jnp.inf)
  any_word = (weights > 0).any(-1)
  log_r = jnp.where(any_word[..., None], log_r, 0)
  score = jax.nn.logsumexp(log_r + beta * evidence, axis=-1) - jax.nn.logsumexp(log_r, axis=-1)
  return jnp.where(any_word, score / beta, 0)
