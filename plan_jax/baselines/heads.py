"""Layers and sums that several baselines put behind their encoders."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
  """MGCA's: dense layer, batch norm, ReLU, dense layer, batch norm without scale and bias.

  Attributes:
    hidden, out: widths.
  """

  hidden: int
  out: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., out]."""
    x = nn.Dense(self.hidden, name="hidden")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True, name="hidden_norm")(x))
    x = nn.Dense(self.out, name="out")(x)
    return nn.BatchNorm(
      use_running_average=True, use_scale=False, use_bias=False, name="out_norm"
    )(x)  # fmt: skip


def sums(tokens: jax.Array, owner: jax.Array) -> jax.Array:
  """Tokens [B, L, C] -> sums [B, L, C] of those of each word; `owner` [B, L], -1 for none."""
  count = tokens.shape[1]
  return jax.nn.one_hot(owner, count, axis=1, dtype=tokens.dtype) @ tokens


def hidden_states(encoder: nn.Module, batch: dict) -> jax.Array:
  """[B, L, C] of the text arrays of `text.arrays`."""
  return encoder(batch["tokens"], batch["sentence_index"], batch["position"]).astype(jnp.float32)
