"""Multi-head attention, by the fastest kernel that fits."""

import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.runtime.mesh import platform

_CAPABILITY = 8  # of CUDA devices, the least that cuDNN's flash attention wants: Ampere


def attend(
  query: Float[Array, "B L H C"],
  key: Float[Array, "B L H C"],
  value: Float[Array, "B L H C"],
  mask: Bool[Array, "B h L L"] | None = None,
  bias: Float[Array, "b H L L"] | None = None,
) -> Float[Array, "B L H C"]:
  """Computes softmax(query key' / sqrt(C) + bias) value.

  Args:
    query, key, value: of one dtype.
    mask: True where a query may attend, for all heads (h = 1) or each; None: everywhere.
    bias: for all examples (b = 1) or each; only with a mask.
  """
  of = platform()
  flash = of == "gpu" and mask is None
  flash = flash and flash_fits(query.dtype, query.shape[-1], jax.devices()[0])
  # Lengths of a batch that several devices share were never tried.
  if flash and (query.shape[1] % 2 == 0 or jax.device_count() == 1):
    return attend_even_length(query, key, value, implementation="cudnn")
  # Not by platform_dependent, which would keep what both ways need for the gradient.
  if of == "cpu":
    return _attend_heads_first(query, key, value, mask, bias)
  return jax.nn.dot_product_attention(query, key, value, bias, mask, implementation="xla")


def _attend_heads_first(query, key, value, mask, bias):
  """Computes `attend` with heads before positions, in half the time on XLA's CPU backend."""
  q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))
  logits = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32)
  logits *= q.shape[-1] ** -0.5
  if bias is not None:
    logits += bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weight = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bhqk,bhkc->bhqc", weight, v).swapaxes(1, 2)


def attend_even_length(
  query: Float[Array, "B L H C"],
  key: Float[Array, "B L H C"],
  value: Float[Array, "B L H C"],
  *,
  implementation: str,
) -> Float[Array, "B L H C"]:
  """Computes attention without a mask, by jax.nn's `implementation` of that name.

  JAX refuses the gradient of cuDNN's attention over an odd length, such as a ViT's with its class
  token, so one position is added to it that the lengths leave out.
  """
  batch, length = query.shape[:2]
  if length % 2 == 0:
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
  padded = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
  lengths = jnp.full(batch, length, jnp.int32)
  out = jax.nn.dot_product_attention(
    *padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
  )
  return out[:, :length]


def first_attention(
  query: Float[Array, "B L H C"],
  key: Float[Array, "B L H C"],
  mask: Bool[Array, "B h L L"],
  bias: Float[Array, "b H L L"] | None = None,
) -> Float[Array, "B L"]:
  """Computes the first query's attention weights in float32, averaged over the heads."""
  score = jnp.einsum("bhc,blhc->bhl", query[:, 0], key) / query.shape[-1] ** 0.5
  if bias is not None:
    score += bias[:, :, 0]
  score = jnp.where(mask[:, :, 0], score.astype(jnp.float32), -jnp.inf)
  return jax.nn.softmax(score, axis=-1).mean(1)


def flash_fits(dtype, head_dim: int, device) -> bool:
  """Tells whether cuDNN's flash attention, which never holds the [L, L] weights, applies.

  It does in half precision on CUDA devices from Ampere on. With a mask it would need the [L, L]
  weights of that, so masked attention is left to XLA, as on every other device.
  """
  capability = re.match(r"(\d+)\.\d+$", str(getattr(device, "compute_capability", "")))
  half = dtype in (jnp.bfloat16, jnp.float16)
  fits = head_dim % 8 == 0 and head_dim <= 128
  return bool(half and fits and capability and int(capability[1]) >= _CAPABILITY)
