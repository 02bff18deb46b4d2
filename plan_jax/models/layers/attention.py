"""Attention of several heads, by the fastest kernel that fits."""

import re

import jax
import jax.numpy as jnp

_CAPABILITY = 8  # of CUDA devices, the least that cuDNN's flash attention wants: Ampere


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """softmax(query key' / sqrt(C)) value, [B, L, heads, C] each -> [B, L, heads, C].

  Args:
    query, key, value: of one dtype.
    mask: [B, 1 or heads, L, L] bool, True where a query may look; None: everywhere.
  """
  flash = mask is None and flash_fits(query.dtype, query.shape[-1], jax.devices()[0])
  # Lengths of a batch that several devices share were never tried.
  if flash and (query.shape[1] % 2 == 0 or jax.device_count() == 1):
    return of_even_length(query, key, value, implementation="cudnn")
  # Not by platform_dependent, which would keep what both ways need for the gradient.
  if jax.default_backend() == "cpu":
    return _heads_first(query, key, value, mask)
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _heads_first(query, key, value, mask):
  """As in `attend`; where heads lie outside of places, XLA's CPU backend takes half the time."""
  q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))
  logits = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32)
  logits *= q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weight = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bhqk,bhkc->bhqc", weight, v).swapaxes(1, 2)


def of_even_length(
  query: jax.Array, key: jax.Array, value: jax.Array, *, implementation: str
) -> jax.Array:
  """Attention without a mask, [B, L, heads, C] each, by jax.nn's `implementation` of that name.

  JAX refuses the gradient of cuDNN's attention over an odd length, such as a ViT's with its class
  token, so one place is added to it that the lengths leave out.
  """
  batch, length = query.shape[:2]
  if length % 2 == 0:
    return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
  parts = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
  lengths = jnp.full(batch, length, jnp.int32)
  out = jax.nn.dot_product_attention(
    *parts, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
  )
  return out[:, :length]


def first_attention(query: jax.Array, key: jax.Array, mask: jax.Array) -> jax.Array:
  """The weights of the first query, the mean over the heads: [B, L] float32, arguments as above."""
  score = jnp.einsum("bhc,blhc->bhl", query[:, 0], key) / query.shape[-1] ** 0.5
  score = jnp.where(mask[:, :, 0], score.astype(jnp.float32), -jnp.inf)
  return jax.nn.softmax(score, axis=-1).mean(1)


def flash_fits(dtype, size: int, device) -> bool:
  """Whether cuDNN's flash attention, which never holds the [L, L] weights, does heads of `size`.

  In half precision on CUDA devices from Ampere on. With a mask it would need the [L, L] weights of
  that, so what has one is left to XLA, as on every other device.
  """
  capability = re.match(r"(\d+)\.\d+$", str(getattr(device, "compute_capability", "")))
  half = dtype in (jnp.bfloat16, jnp.float16)
  fits = size % 8 == 0 and size <= 128
  return bool(half and fits and capability and int(capability[1]) >= _CAPABILITY)
