"""Convolutions whose gradients are fast on CPUs too; reverse mode only."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.models.layers.dense import matrix, product

_TILES = 49  # of 2x2 outputs an image, below which transforming the kernel costs what they save
_FEW = 8  # channels, below which a product for each pixel of a kernel would be too thin


class Conv1x1(nn.Module):
  """A 1x1 convolution without bias, as a dot over channels: so is its gradient."""

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
    kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], self.features))
    x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
    return product(x, kernel.astype(self.dtype))


class Conv(nn.Module):
  """A square convolution without bias, with zeros around that keep the size at stride 1.

  Attributes:
    features: channels of the output.
    size: side of the kernel, odd.
    stride: pixels between outputs.
    dilation: pixels between what one output reads.
    dtype: of the computation.
  """

  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
  """[B, H, W, C] with [K, K, C, F], K odd -> [B, ceil(H / stride), ceil(W / stride), F]."""
  by_compiler = partial(_convolve, stride=stride, dilation=dilation)
  if not _fits_tiles(x, kernel, stride, dilation):
    return by_compiler(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=_by_tiles, default=by_compiler)


def _convolve(x, kernel, stride, dilation):
  margin = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), [(margin, margin)] * 2, rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip


def _forward(x, kernel, stride, dilation):
  return convolve(x, kernel, stride, dilation), (x, kernel)


def _backward(stride, dilation, kept, g):
  x, kernel = kept
  run = partial(_convolve, stride=stride, dilation=dilation)

  def by_compiler(x, g):
    return jax.vjp(lambda kernel: run(x, kernel), kernel)[1](g)[0]

  def by_products(x, g):
    return _weight_gradient(x, g, kernel.shape[0], stride, dilation).astype(kernel.dtype)

  # By tiles it would take longer beside the other product.
  by_x = jax.vjp(lambda x: run(x, kernel), x)[1](g)[0]
  return by_x, jax.lax.platform_dependent(x, g, cpu=by_products, default=by_compiler)


convolve.defvjp(_forward, _backward)


def _fits_tiles(x, kernel, stride, dilation):
  """Whether `_by_tiles` does it, and pays for the passes over memory that it makes."""
  high, wide = x.shape[1:3]  # an exported program may not know the batch
  plain = kernel.shape[0] == 3 and stride == dilation == 1 and x.dtype == jnp.float32
  return plain and min(kernel.shape[2:]) >= 64 and (high // 2) * (wide // 2) >= _TILES


def _by_tiles(x, kernel):
  """3x3 at stride 1 by Winograd's F(2x2, 3x3) (Lavin & Gray 2016): 16 products for 36.

  Each tile of 2x2 outputs reads 4x4 pixels. Pixels and kernel are transformed by sums and
  differences, multiplied channel with channel at each of the 16 places, and transformed back.
  """
  batch, high, wide = x.shape[:3]
  rows, columns = -(-high // 2), -(-wide // 2)
  x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - high), (1, 2 * columns + 1 - wide), (0, 0)))

  def of_pixels(x, axis, tiles):
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d

  def of_kernel(k):
    return k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]

  def of_outputs(a, b, c, d):
    return a + b + c, b - c - d

  pixels = [matrix(v) for row in of_pixels(x, 1, rows) for v in of_pixels(row, 2, columns)]
  weights = [w for row in of_kernel(kernel) for w in of_kernel(row)]
  # Without the barriers XLA makes the sums within the products, and again for each output.
  pixels = jax.lax.optimization_barrier(pixels)
  places = [a @ b for a, b in zip(pixels, weights, strict=True)]
  places = jax.lax.optimization_barrier(places)
  across = [jnp.stack(of_outputs(*places[i : i + 4]), 1) for i in range(0, 16, 4)]
  out = jnp.stack(of_outputs(*across), 1).reshape(batch, rows, columns, 2, 2, -1)
  out = out.swapaxes(2, 3).reshape(batch, 2 * rows, 2 * columns, -1)
  return out[:, :high, :wide]


def _weight_gradient(x, g, side, stride, dilation):
  """[B, H, W, C], [B, h, w, F] -> [side, side, C, F] float32: a product for each of its pixels.

  XLA's CPU backend takes the gradient for a convolution with a kernel as large as the image, and
  takes twice the time. The barriers keep it from folding the slices into the products, whose
  operands then lie unfavourably, and the loop from making all slices before any product.
  """
  batch, high, wide = g.shape[:3]
  channels, margin = x.shape[-1], dilation * (side // 2)
  x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
  x = jax.lax.optimization_barrier(x)
  g = matrix(g)
  reach = [stride * (n - 1) + 1 for n in (high, wide)]

  def seen(pixel):
    """What the kernel's pixel read for each output, [B * h * w, C]."""
    start = (0, pixel // side * dilation, pixel % side * dilation, 0)
    part = jax.lax.dynamic_slice(x, start, (batch, *reach, channels))
    return matrix(part[:, ::stride, ::stride])

  def summed(a, b):
    return jax.lax.dot_general(
      a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )  # fmt: skip

  pixels = jnp.arange(side * side)
  if channels < _FEW:
    parts = jax.lax.optimization_barrier(jnp.concatenate([seen(p) for p in pixels], 1))
    out = summed(parts, g)
  else:
    out = jax.lax.map(lambda pixel: summed(seen(pixel), g), pixels)
  return out.reshape(side, side, channels, -1)
