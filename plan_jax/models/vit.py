"""ViT image encoder (Dosovitskiy et al. 2021, in the form of DeiT: pre-norm, learned positions)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from plan_jax.models.layers.attention import attend
from plan_jax.models.layers.dense import dot_general
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.layers.remat import remat

_INIT = nn.initializers.truncated_normal(0.02)
_EPSILON = 1e-6  # of the layer norms


class Block(nn.Module):
  """Self-attention and a two-layer perceptron, each with layer norm before it and a residual."""

  num_heads: int
  mlp_dim: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
    """Applies the block."""
    embed_dim = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT, dot_general=dot_general)
    norm = partial(nn.LayerNorm, _EPSILON, dtype=self.dtype)
    y = norm(name="attention_norm")(x)
    shape = (*x.shape[:2], self.num_heads, embed_dim // self.num_heads)
    names = ("query", "key", "value")
    query, key, value = (dense(embed_dim, name=name)(y).reshape(shape) for name in names)
    x += dense(embed_dim, name="attention_out")(attend(query, key, value).reshape(x.shape))
    y = gelu(dense(self.mlp_dim, name="mlp_in")(norm(name="mlp_norm")(x)))
    return x + dense(embed_dim, name="mlp_out")(y)


class ViT(nn.Module):
  """Image encoder; its class token takes part in attention.

  Attributes:
    embed_dim, depth, num_heads, mlp_dim: as in ViT.
    patch_px: side of a patch, and the stride of the grid.
    grid: patches a side that the learned positions stand for; on another grid they are
      interpolated.
    mean, std: of image pixels, one value, or one a channel: images are then repeated, as weights of
      colour images want it.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
  """

  embed_dim: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  patch_px: int = 16
  grid: int = 14
  mean: Sequence[float] = (0.5,)
  std: Sequence[float] = (0.25,)
  remat: str = "none"
  dtype: Any = jnp.float32

  first_px = None  # patches tile the image

  @property
  def output_stride(self) -> int:
    """Number of image pixels per pixel of the feature map."""
    return self.patch_px

  @nn.compact
  def __call__(
    self, image: Float[ArrayLike, "B H W 1"], *, train: bool = False, class_too: bool = False
  ) -> Float[Array, "B h w C"] | tuple[Float[Array, "B h w C"], Float[Array, "B C"]]:
    """Encodes images in [0, 1] to H / patch_px rows and W / patch_px columns.

    With `class_too` also returns the features of the class token.
    """
    del train  # the same in training
    x = patches((image - jnp.array(self.mean)) / jnp.array(self.std), self.patch_px)
    rows, columns = x.shape[1:3]
    x = nn.Dense(self.embed_dim, dtype=self.dtype, kernel_init=_INIT, name="patch_embedding")(x)
    position = self.param("position_embedding", _INIT, (self.grid, self.grid, self.embed_dim))
    x += interpolate(position, rows, columns).astype(self.dtype)
    first = self.param("class_token", _INIT, (self.embed_dim,))
    first += self.param("class_position", _INIT, (self.embed_dim,))
    first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, self.embed_dim))
    x = jnp.concatenate([first, x.reshape(x.shape[0], -1, self.embed_dim)], 1)
    block = remat(Block, self.remat)
    for i in range(self.depth):
      x = block(self.num_heads, self.mlp_dim, self.dtype, name=f"block{i + 1}")(x)
    norm = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")
    grid = norm(x[:, 1:]).reshape(x.shape[0], rows, columns, self.embed_dim)
    return (grid, norm(x[:, 0])) if class_too else grid


def patches(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B h w F"]:
  """Flattens patches of side * side * C numbers; a dot with them is a convolution."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // side, side, width // side, side, channels)
  return x.swapaxes(2, 3).reshape(batch, height // side, width // side, -1)


def interpolate(
  position: Float[ArrayLike, "h w C"], rows: int, columns: int
) -> Float[ArrayLike, "{rows} {columns} C"]:
  """Resamples positions to another grid.

  Bicubic with anti-aliasing (Keys' kernel, a = -0.5), as timm resamples them and as torch's
  F.interpolate(mode="bicubic", antialias=True, align_corners=False) does; the same grid is left as
  it is.
  """
  if position.shape[:2] == (rows, columns):
    return position
  return jax.image.resize(position, (rows, columns, position.shape[2]), "cubic", antialias=True)
