"""Convolutions without bias, channels last."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from plan_jax.models.layers.dense import matrix, product

_TILES = 49  # of 2x2 outputs an image, below which transforming the kernel costs what they save
_FEW = 8  # channels, below which a product for each pixel of a kernel would be too thin


class Conv1x1(nn.Module):
  """1x1 convolution as a dot over channels: so is its gradient."""

  features: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
    """Returns ceil(H / stride) rows and ceil(W / stride) columns."""
    kernel = self.param("kernel", nn.initializers.he_normal(), (x.shape[-1], self.features))
    x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
    return product(x, kernel.astype(self.dtype))


class Conv(nn.Module):
  """Square convolution, with zeros around that keep the size at stride 1.

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
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
    """Returns ceil(H / stride) rows and ceil(W / stride) columns."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
  x: Float[Array, "B H W C"], kernel: Float[ArrayLike, "K K C F"], stride: int, dilation: int
) -> Float[Array, "B h w F"]:
  """Convolves to ceil(H / stride) rows and ceil(W / stride) columns; K is odd."""
  by_compiler = partial(_convolve, stride=stride, dilation=dilation)
  if not _fits_tiles(x, kernel, stride, dilation):
    return by_compiler(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=_winograd, default=by_compiler)


def _convolve(x, kernel, stride, dilation):
  margin = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(margin, margin)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _forward(x, kernel, stride, dilation):
  return convolve(x, kernel, stride, dilation), (x, kernel)


def _backward(stride, dilation, residuals, g):
  x, kernel = residuals
  run = partial(_convolve, stride=stride, dilation=dilation)

  def by_compiler(x, g):
    return jax.vjp(lambda kernel: run(x, kernel), kernel)[1](g)[0]

  def by_products(x, g):
    return _weight_gradient(x, g, kernel.shape[0], stride, dilation).astype(kernel.dtype)

  # By Winograd it would take longer beside the other product.
  by_x = jax.vjp(lambda x: run(x, kernel), x)[1](g)[0]
  return by_x, jax.lax.platform_dependent(x, g, cpu=by_products, default=by_compiler)


convolve.defvjp(_forward, _backward)


def _fits_tiles(x, kernel, stride, dilation):
  """Tells whether `_winograd` applies, and pays for the passes over memory that it makes."""
  high, wide = x.shape[1:3]  # an exported program may not know the batch
  plain = kernel.shape[0] == 3 and stride == dilation == 1 and x.dtype == jnp.float32
  return plain and min(kernel.shape[2:]) >= 64 and (high // 2) * (wide // 2) >= _TILES


def _winograd(x, kernel):
  """Convolves 3x3 at stride 1 by Winograd's F(2x2, 3x3) (Lavin & Gray 2016): 16 products for 36.

  Each tile of 2x2 outputs reads 4x4 pixels. Pixels and kernel are transformed by sums and
  differences, multiplied channel with channel at each of the 16 places, and transformed back.
  """
  batch, high, wide = x.shape[:3]
  rows, columns = -(-high // 2), -(-wide // 2)
  x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - high), (1, 2 * columns + 1 - wide), (0, 0)))

  def transform_pixels(x, axis, tiles):
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4))
    return a - c, b + c, c - b, b - d

  def transform_kernel(k):
    return k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]

  def transform_back(a, b, c, d):
    return a + b + c, b - c - d

  pixels = [
    matrix(v) for row in transform_pixels(x, 1, rows) for v in transform_pixels(row, 2, columns)
  ]
  weights = [w for row in transform_kernel(kernel) for w in transform_kernel(row)]
  # Without the barriers XLA makes the sums within the products, and again for each output.
  pixels = jax.lax.optimization_barrier(pixels)
  places = [a @ b for a, b in zip(pixels, weights, strict=True)]
  places = jax.lax.optimization_barrier(places)
  across = [jnp.stack(transform_back(*places[i : i + 4]), 1) for i in range(0, 16, 4)]
  out = jnp.stack(transform_back(*across), 1).reshape(batch, rows, columns, 2, 2, -1)
  out = out.swapaxes(2, 3).reshape(batch, 2 * rows, 2 * columns, -1)
  return out[:, :high, :wide]


def _weight_gradient(x, g, side, stride, dilation):
  """Computes [side, side, C, F] float32 by one product for each pixel of the kernel.

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

  def inputs(pixel):
    """Returns what the kernel's pixel read for each output, [B * h * w, C]."""
    start = (0, pixel // side * dilation, pixel % side * dilation, 0)
    part = jax.lax.dynamic_slice(x, start, (batch, *reach, channels))
    return matrix(part[:, ::stride, ::stride])

  def contract(a, b):
    contracted = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)

  pixels = jnp.arange(side * side)
  if channels < _FEW:
    parts = jax.lax.optimization_barrier(jnp.concatenate([inputs(p) for p in pixels], 1))
    out = contract(parts, g)
  else:
    out = jax.lax.map(lambda pixel: contract(inputs(pixel), g), pixels)
  return out.reshape(side, side, channels, -1)
