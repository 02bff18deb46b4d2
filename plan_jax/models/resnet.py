"""ResNet image encoder (He et al. 2016, stride as in v1.5) that keeps a usable pixel grid."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from plan_jax.models.layers.batch_norm import BatchNorm
from plan_jax.models.layers.convolution import Conv, Conv1x1
from plan_jax.models.layers.remat import remat

NORMS = ("batch", "group", "channel")
# Strided layers pad both sides alike, so a pixel of the feature map is centred on image pixel
# stride * index: the first on the image's first, not half a cell in.
FIRST_PX = 0.0
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def _join(block: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
  """Adds the block's input to its output, through a 1x1 convolution where shapes differ."""
  if x.shape != y.shape:
    x = Conv1x1(y.shape[-1], block.stride, block.dtype, name="shortcut")(x)
    x = block.norm(name="shortcut_norm")(x)
  return nn.relu(x + y)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

  features: int
  stride: int
  dilations: tuple[int, int]
  norm: Callable
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
    """Returns H / stride rows, W / stride columns and `features` channels."""
    y = Conv(self.features, 3, self.stride, self.dilations[0], self.dtype, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y))
    y = Conv(self.features, 3, 1, self.dilations[1], self.dtype, name="conv2")(y)
    y = self.norm(name="norm2", scale_init=nn.initializers.zeros)(y)
    return _join(self, x, y)


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions and a shortcut, four times as wide outside (ResNet-50)."""

  features: int
  stride: int
  dilations: tuple[int, int]
  norm: Callable
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
    """Returns H / stride rows, W / stride columns and 4 * `features` channels."""
    y = Conv1x1(self.features, 1, self.dtype, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y))
    y = Conv(self.features, 3, self.stride, self.dilations[0], self.dtype, name="conv2")(y)
    y = nn.relu(self.norm(name="norm2")(y))
    y = Conv1x1(4 * self.features, 1, self.dtype, name="conv3")(y)
    y = self.norm(name="norm3", scale_init=nn.initializers.zeros)(y)
    return _join(self, x, y)


class ResNet(nn.Module):
  """Image encoder.

  Attributes:
    depth: 18, 34 or 50.
    width: multiplies every channel count.
    stages: how many of the four stages run; fewer keep the receptive field of a pixel small.
    output_stride: image pixels per pixel of the last feature map, 8, 16 or 32; strides that would
      go beyond it are dropped.
    dilated: whether a dropped stride dilates the later convolutions, so that they read what
      they would have read (weights trained at stride 32 stay valid); without, the receptive field
      stays small.
    norm: "batch" (running statistics in the "batch_stats" collection), "group" (8 channels a
      group) or "channel" (each pixel over its own channels: nothing leaks between pixels).
    projector: width of a 1x1 convolution, norm, ReLU and 1x1 convolution behind it all, as BioViL
      has it; 0: none.
    mean, std: of image pixels, one value, or one a channel: images are then repeated, as weights of
      colour images want it.
    freeze: patterns of the paths of frozen parameters, for batch norm.
    remat: a name of remat.REMAT.
    dtype: of the computation; parameters are float32.
  """

  depth: int = 50
  width: float = 1.0
  stages: int = 4
  output_stride: int = 32
  dilated: bool = True
  norm: str = "batch"
  projector: int = 0
  mean: Sequence[float] = (0.5,)
  std: Sequence[float] = (0.25,)
  freeze: tuple[str, ...] = ()
  remat: str = "none"
  dtype: Any = jnp.float32

  first_px = FIRST_PX

  @nn.compact
  def __call__(
    self, image: Float[ArrayLike, "B H W 1"], *, train: bool = False, tapped: int = 0
  ) -> Float[Array, "B h w C"] | tuple[Float[Array, "B h w C"], Float[Array, "B y x c"]]:
    """Encodes images in [0, 1] to H / output_stride rows and W / output_stride columns.

    With `tapped`, the number of a stage, also returns the map behind that one.
    """
    norm = {
      "batch": partial(BatchNorm, train, self.dtype, freeze=tuple(self.freeze)),
      "group": partial(nn.GroupNorm, num_groups=None, group_size=8, dtype=self.dtype),
      "channel": partial(nn.LayerNorm, dtype=self.dtype),
    }[self.norm]
    base = first_channels(self.width)
    # Before the padding: a margin of zeros is of the mean.
    x = ((image - jnp.array(self.mean)) / jnp.array(self.std)).astype(self.dtype)
    x = Conv(base, 7, 2, 1, self.dtype, name="stem")(x)
    x = nn.relu(norm(name="stem_norm")(x))
    x = max_pool(x)
    stride, dilation = 4, 1
    block = remat(Bottleneck if self.depth == 50 else BasicBlock, self.remat)
    for stage, count in enumerate(BLOCKS[self.depth][: self.stages]):
      for i in range(count):
        step, before = 1, dilation
        if stage and not i:
          if stride < self.output_stride:
            step, stride = 2, stride * 2
          elif self.dilated:
            dilation *= 2  # of what comes after the dropped stride
        name = f"stage{stage + 1}_block{i + 1}"
        x = block(base * 2**stage, step, (before, dilation), norm, self.dtype, name=name)(x)
      if stage + 1 == tapped:
        tap = x
    if self.projector:
      x = Conv1x1(self.projector, 1, self.dtype, name="projector_in")(x)
      x = nn.relu(norm(name="projector_norm")(x))
      x = nn.Dense(self.projector, dtype=self.dtype, name="projector_out")(x)
    return (x, tap) if tapped else x


def first_channels(width: float) -> int:
  """Returns the channels of the stem: 64 times the width, a multiple of 8."""
  return max(8, int(64 * width) // 8 * 8)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
  """Takes the 3x3 maximum with stride 2, to ceil(H / 2) rows and ceil(W / 2) columns.

  By shifted slices: the gradient of a windowed maximum is slow on CPU (five times, measured).
  """
  for axis in (1, 2):
    half = -(-x.shape[axis] // 2)
    pad = [(0, 0)] * 4
    pad[axis] = (1, 2)
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    parts = [jax.lax.slice_in_dim(x, i, i + 2 * half - 1, 2, axis) for i in range(3)]
    x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
  return x
