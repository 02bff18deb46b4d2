"""ViT image encoder (Dosovitskiy et al. 2021), and its variants that the field pre-trains.

All are pre-norm: DeiT's with learned positions, DINOv2 (Oquab et al. 2023) with and without
registers (Darcet et al. 2024), DINOv3 (Simeoni et al. 2025), the image encoders of CLIP (Radford et
al. 2021) and of SigLIP (Zhai et al. 2023).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from plan_jax.models import lora
from plan_jax.models.layers.attention import attend
from plan_jax.models.layers.dense import dot_general
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.layers.remat import remat

_INIT = nn.initializers.truncated_normal(0.02)
_BASE = 100.0  # of the wavelengths of rotary positions


class Variant(NamedTuple):
  """Differences between ViTs that no size tells.

  Attributes:
    class_token: whether there is one; without it attention pools the patches.
    layer_scale: whether each residual is scaled channel by channel.
    rotary: whether positions turn the patches' queries and keys; else they are learned and added.
    norm_first: whether a layer norm comes before the blocks.
    antialias: whether learned positions are smoothed before a coarser grid samples them.
    activation: of the perceptrons.
    epsilon: of the layer norms.
  """

  class_token: bool = True
  layer_scale: bool = False
  rotary: bool = False
  norm_first: bool = False
  antialias: bool = True
  activation: Callable = gelu
  epsilon: float = 1e-6


def _quick_gelu(x: Array) -> Array:
  """Approximates GELU by x sigmoid(1.702 x), as CLIP does."""
  return x * nn.sigmoid(1.702 * x)


VARIANTS = {
  "vit": Variant(),
  "dinov2": Variant(layer_scale=True, antialias=False),
  "dinov2_registers": Variant(layer_scale=True),
  "dinov3": Variant(layer_scale=True, rotary=True, epsilon=1e-5),
  "clip": Variant(norm_first=True, antialias=False, activation=_quick_gelu, epsilon=1e-5),
  "siglip": Variant(class_token=False, antialias=False, activation=nn.gelu),
}


class Block(nn.Module):
  """Self-attention and a two-layer perceptron, each with layer norm before it and a residual.

  With a `lora_rank` queries and values have low-rank updates (see `lora`).
  """

  num_heads: int
  mlp_dim: int
  dtype: Any
  variant: Variant = VARIANTS["vit"]
  gated: bool = False
  lora_rank: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L C"],
    rotation: Float[Array, "2 P c"] | None = None,
    mask: Bool[Array, "B 1 L L"] | None = None,
  ) -> Float[Array, "B L C"]:
    """Applies the block.

    The last P tokens are turned by the cosines and sines of `rotation`; `mask` tells which tokens a
    token attends to, None: all.
    """
    embed_dim = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT, dot_general=dot_general)
    norm = partial(nn.LayerNorm, self.variant.epsilon, dtype=self.dtype)

    def scaled(y, name):
      if not self.variant.layer_scale:
        return y
      return y * self.param(name, nn.initializers.ones, (embed_dim,)).astype(self.dtype)

    y = norm(name="attention_norm")(x)
    shape = (*x.shape[:2], self.num_heads, embed_dim // self.num_heads)
    query, key, value = (dense(embed_dim, name=name)(y) for name in ("query", "key", "value"))
    if self.lora_rank:
      query += lora.update(self, "query", y, self.lora_rank)
      value += lora.update(self, "value", y, self.lora_rank)
    query, key, value = (x.reshape(shape) for x in (query, key, value))
    if rotation is not None:
      query, key = rotate(query, rotation), rotate(key, rotation)
    y = attend(query, key, value, mask).reshape(x.shape)
    y = dense(embed_dim, name="attention_out")(y)
    x += scaled(y, "attention_scale")
    y = norm(name="mlp_norm")(x)
    hidden = dense(self.mlp_dim, name="mlp_in")(y)
    if self.gated:
      hidden *= nn.silu(dense(self.mlp_dim, name="mlp_gate")(y))
    else:
      hidden = self.variant.activation(hidden)
    return x + scaled(dense(embed_dim, name="mlp_out")(hidden), "mlp_scale")


class AttentionPooling(nn.Module):
  """Learned query over all tokens, and a perceptron with a residual, as SigLIP pools."""

  num_heads: int
  mlp_dim: int
  dtype: Any
  variant: Variant

  @nn.compact
  def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B C"]:
    """Pools the tokens."""
    embed_dim = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT)
    probe = self.param("probe", _INIT, (embed_dim,)).astype(self.dtype)
    probe = jnp.broadcast_to(probe, (x.shape[0], 1, embed_dim))

    def heads(y, name):
      y = dense(embed_dim, name=name)(y)
      return y.reshape(*y.shape[:2], self.num_heads, embed_dim // self.num_heads)

    pooled = jax.nn.dot_product_attention(heads(probe, "query"), heads(x, "key"), heads(x, "value"))
    pooled = dense(embed_dim, name="attention_out")(pooled.reshape(-1, embed_dim))
    y = nn.LayerNorm(self.variant.epsilon, dtype=self.dtype, name="mlp_norm")(pooled)
    hidden = self.variant.activation(dense(self.mlp_dim, name="mlp_in")(y))
    return pooled + dense(embed_dim, name="mlp_out")(hidden)


class ViT(nn.Module):
  """Image encoder; its class token and registers take part in attention.

  Attributes:
    embed_dim, depth, num_heads, mlp_dim: as in ViT.
    patch_px: side of a patch, and the stride of the grid.
    grid: patches a side that learned positions stand for; on another grid they are interpolated.
    mean, std: of image pixels, one value, or one a channel: images are then repeated, as weights of
      colour images want it.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
    variant: a name of VARIANTS.
    registers: tokens besides the class token that belong to no patch.
    gated: whether the perceptrons are SwiGLU, as DINOv2's giant has them.
    layers: numbers, from 1, of the blocks whose features are taken, each with the last norm, one
      behind the other in the channels; blocks after them are not run; empty: the last block.
    dark_below_fraction: of the range of an image; patches with a lower mean (margins, air) show
      nothing, and their features are zero. In a frozen encoder such patches hold what belongs to
      the whole image, and a contrast takes them for regions (ours).
    lora_rank, lora_blocks: rank of the low-rank updates, and the number of blocks that have them,
      from the last that is run down.
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
  variant: str = "vit"
  registers: int = 0
  gated: bool = False
  layers: Sequence[int] = ()
  dark_below_fraction: float = 0.0
  lora_rank: int = 0
  lora_blocks: int = 0

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

    With `class_too` also returns the features of the class token; of "siglip" the pooled ones.
    """
    del train  # the same in training
    variant = VARIANTS[self.variant]
    x = patches((image - jnp.array(self.mean)) / jnp.array(self.std), self.patch_px)
    rows, columns = x.shape[1:3]
    x = nn.Dense(self.embed_dim, dtype=self.dtype, kernel_init=_INIT, name="patch_embedding")(x)
    if not variant.rotary:
      position = self.param("position_embedding", _INIT, (self.grid, self.grid, self.embed_dim))
      x += interpolate(position, rows, columns, variant.antialias).astype(self.dtype)
    first = self._first_tokens(variant)
    first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], *first.shape))
    x = jnp.concatenate([first, x.reshape(x.shape[0], -1, self.embed_dim)], 1)
    if variant.norm_first:
      x = nn.LayerNorm(variant.epsilon, dtype=self.dtype, name="first_norm")(x)
    block = remat(Block, self.remat)
    head_dim = self.embed_dim // self.num_heads
    rotation = rotary_positions(rows, columns, head_dim) if variant.rotary else None
    taken, sizes = self.layers or (self.depth,), (self.num_heads, self.mlp_dim, self.dtype)
    outputs = {}
    for number in range(1, max(taken) + 1):
      rank = self.lora_rank if number > max(taken) - self.lora_blocks else 0
      x = block(*sizes, variant, self.gated, rank, name=f"block{number}")(x, rotation)
      outputs[number] = x
    norm = nn.LayerNorm(variant.epsilon, dtype=self.dtype, name="norm")
    grid = jnp.concatenate([norm(outputs[n][:, first.shape[1] :]) for n in taken], -1)
    grid = grid.reshape(x.shape[0], rows, columns, -1)
    if self.dark_below_fraction:
      brightness = patches(jnp.asarray(image), self.patch_px).mean(-1, keepdims=True)
      grid = jnp.where(brightness < self.dark_below_fraction, 0, grid)
    if not class_too:
      return grid
    if variant.class_token:
      return grid, norm(x[:, 0])
    pooling = AttentionPooling(self.num_heads, self.mlp_dim, self.dtype, variant, name="pooling")
    return grid, pooling(norm(x))

  def _first_tokens(self, variant: Variant) -> Float[Array, "n C"]:
    """Makes the tokens before the patches: the class token with its position, and registers."""
    tokens = []
    if variant.class_token:
      token = self.param("class_token", _INIT, (self.embed_dim,))
      if not variant.rotary:
        token = token + self.param("class_position", _INIT, (self.embed_dim,))  # may be numpy
      tokens.append(token[None])
    if self.registers:
      tokens.append(self.param("registers", _INIT, (self.registers, self.embed_dim)))
    return jnp.concatenate(tokens) if tokens else jnp.zeros((0, self.embed_dim))


def patches(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B h w F"]:
  """Flattens patches of side * side * C numbers; a dot with them is a convolution."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // side, side, width // side, side, channels)
  return x.swapaxes(2, 3).reshape(batch, height // side, width // side, -1)


def interpolate(
  position: Float[ArrayLike, "h w C"], rows: int, columns: int, antialias: bool = True
) -> Float[ArrayLike, "{rows} {columns} C"]:
  """Resamples positions to another grid; the same grid is left as it is.

  Bicubic, as torch's F.interpolate(mode="bicubic", antialias=antialias, align_corners=False): with
  anti-aliasing by Keys' kernel of a = -0.5 (timm, DINOv2 with registers), without it of a = -0.75
  and with the border repeated (DINOv2, CLIP and SigLIP of Hugging Face).
  """
  if position.shape[:2] == (rows, columns):
    return position
  if antialias:
    return jax.image.resize(position, (rows, columns, position.shape[2]), "cubic", antialias=True)
  down, across = bicubic(position.shape[0], rows), bicubic(position.shape[1], columns)
  return jnp.einsum("rh,cw,hwd->rcd", down, across, position)


def bicubic(size: int, to: int) -> np.ndarray:
  """Makes the matrix float32 [to, size] of torch's bicubic resampling without anti-aliasing."""
  place = (np.arange(to) + 0.5) * size / to - 0.5
  tap = np.floor(place)[:, None] + np.arange(-1, 3)
  x = np.abs(place[:, None] - tap)
  near = (1.25 * x - 2.25) * x**2 + 1
  far = -0.75 * (((x - 5) * x + 8) * x - 4)
  weight = np.where(x <= 1, near, np.where(x < 2, far, 0))
  matrix = np.zeros((to, size), np.float32)
  np.add.at(matrix, (np.arange(to)[:, None], np.clip(tap, 0, size - 1).astype(int)), weight)
  return matrix


def rotary_positions(rows: int, columns: int, head_dim: int) -> Float[Array, "2 P {head_dim}"]:
  """Computes the cosines and sines of the angles of a grid's patches, as DINOv3 has them.

  Centres of patches lie in [-1, 1]; a quarter of the channels' wavelengths, from 1 up to 100, holds
  for the rows and one for the columns, and the second half of the channels repeats the first.
  """
  frequency = _BASE ** -np.arange(0, 1, 4 / head_dim)
  sides = [2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns)]
  centre = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
  angle = 2 * np.pi * centre[:, :, None] * frequency
  angle = np.tile(angle.reshape(len(centre), -1), 2)
  return jnp.asarray(np.stack([np.cos(angle), np.sin(angle)]), jnp.float32)


def rotate(x: Float[Array, "B L H c"], rotation: Float[Array, "2 P c"]) -> Float[Array, "B L H c"]:
  """Turns pairs of channels of the last P tokens: channel i with channel i + c / 2."""
  first = x.shape[1] - rotation.shape[1]
  cosine, sine = rotation[:, :, None].astype(x.dtype)
  y = x[:, first:]
  low, high = jnp.split(y, 2, -1)
  y = y * cosine + jnp.concatenate([-high, low], -1) * sine
  return jnp.concatenate([x[:, :first], y], 1)
