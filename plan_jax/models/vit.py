"""ViT image encoder (Dosovitskiy et al. 2021, in the form of DeiT: pre-norm, learned positions)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

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
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, L, C] -> [B, L, C]."""
    size = x.shape[-1]

    def dense(features, name):
      return nn.Dense(
        features, dtype=self.dtype, kernel_init=_INIT, dot_general=dot_general, name=name
      )

    def norm(name):
      return nn.LayerNorm(_EPSILON, dtype=self.dtype, name=name)

    y = norm("attention_norm")(x)
    query, key, value = (
      dense(size, name)(y).reshape(*y.shape[:2], self.num_heads, size // self.num_heads)
      for name in ("query", "key", "value")
    )
    x += dense(size, "attention_out")(attend(query, key, value).reshape(x.shape))
    y = gelu(dense(self.mlp_dim, "mlp_in")(norm("mlp_norm")(x)))
    return x + dense(size, "mlp_out")(y)


class ViT(nn.Module):
  """ViT trunk; its class token takes part in attention.

  Attributes:
    embed_dim, depth, num_heads, mlp_dim: as in ViT.
    patch_px: side of a patch, and the stride of the grid.
    grid: patches a side that the learned positions stand for; on another grid they are
      interpolated.
    mean, std: of image pixels, one value, or one a channel: an image is then repeated, as weights of
      colour pictures want it.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
  """

  embed_dim: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  patch_px: int = 16
  grid: int = 14
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.25,)
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32

  first_px = None  # patches tile the image

  @property
  def output_stride(self) -> int:
    """Image pixels per pixel of the feature map."""
    return self.patch_px

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool = False, class_too: bool = False
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """[B, H, W, 1] float32 in [0, 1] -> [B, H / patch_px, W / patch_px, embed_dim].

    With `class_too` also what the class token has become, [B, embed_dim].
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


def patches(x: jax.Array, side: int) -> jax.Array:
  """[B, H, W, C] -> [B, H / side, W / side, side * side * C]; a dot with it is a convolution."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // side, side, width // side, side, channels)
  return x.swapaxes(2, 3).reshape(batch, height // side, width // side, -1)


def interpolate(position: jax.Array, rows: int, columns: int) -> jax.Array:
  """Positions [h, w, C] on another grid, [rows, columns, C].

  Bicubic with anti-aliasing (Keys' kernel, a = -0.5), as timm resamples them and as torch's
  F.interpolate(mode="bicubic", antialias=True, align_corners=False) does; the same grid is left as
  it is.
  """
  if position.shape[:2] == (rows, columns):
    return position
  return jax.image.resize(position, (rows, columns, position.shape[2]), "cubic", antialias=True)
