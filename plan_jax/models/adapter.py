"""Adapter: transformer layers that learn on top of an image encoder, which may be frozen."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.models.layers.remat import remat
from plan_jax.models.vit import Block

_HEAD_DIM = 64


class Adapter(nn.Module):
  """ViT blocks over the pixels of a grid, of its width.

  Attributes:
    depth: number of blocks; 0 leaves the grid as it is.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
  """

  depth: int
  remat: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B P C"]) -> Float[Array, "B P C"]:
    """Applies the blocks."""
    channels = x.shape[-1]
    heads = channels // _HEAD_DIM if channels % _HEAD_DIM == 0 else 1
    block = remat(Block, self.remat)
    for i in range(self.depth):
      x = block(heads, 4 * channels, self.dtype, name=f"block{i + 1}")(x)
    return x
