"""Layers and sums behind the encoders of several baselines."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
  """The head of MGCA: two dense layers, each with batch norm, the last without scale and bias.

  Attributes:
    hidden, out: widths.
  """

  hidden: int
  out: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., C] to [..., out]."""
    norm = partial(nn.BatchNorm, use_running_average=True)
    x = nn.Dense(self.hidden, name="hidden")(x)
    x = nn.relu(norm(name="hidden_norm")(x))
    x = nn.Dense(self.out, name="out")(x)
    return norm(use_scale=False, use_bias=False, name="out_norm")(x)


def sums(tokens: jax.Array, owner: jax.Array) -> jax.Array:
  """Sums tokens [B, L, C] by word: [B, L, C]; `owner` is [B, L], -1 for none."""
  count = tokens.shape[1]
  return jax.nn.one_hot(owner, count, axis=1, dtype=tokens.dtype) @ tokens


def hidden_states(encoder: nn.Module, batch: dict) -> jax.Array:
  """Runs a BERT on arrays of `BaselineTexts`: [B, L, C] float32."""
  return encoder(batch["tokens"], batch["sentence_index"], batch["position"]).astype(jnp.float32)
