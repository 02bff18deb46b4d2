"""Attention of several heads, by the fastest kernel that fits."""

import jax
import jax.numpy as jnp


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """softmax(query key' / sqrt(C)) value, [B, L, heads, C] each -> [B, L, heads, C].

  In half precision on a GPU by cuDNN's flash attention, which never holds the [L, L] weights;
  elsewhere as XLA compiles it.

  Args:
    query, key, value: of one dtype.
    mask: [B, 1 or heads, L, L] bool, True where a query may look; None: everywhere.
  """
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  flash = half and jax.default_backend() == "gpu"
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, implementation="cudnn" if flash else "xla"
  )
