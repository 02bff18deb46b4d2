"""Convolutions whose gradients are fast on CPUs too; reverse mode only."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.models.product import matrix, product

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
  return _convolve(x, kernel, stride, dilation)


def _convolve(x, kernel, stride, dilation):
  margin = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), [(margin, margin)] * 2, rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip


def _forward(x, kernel, stride, dilation):
  return _convolve(x, kernel, stride, dilation), (x, kernel)


def _backward(stride, dilation, kept, g):
  x, kernel = kept
  run = partial(_convolve, stride=stride, dilation=dilation)

  def by_compiler(x, g):
    return jax.vjp(lambda kernel: run(x, kernel), kernel)[1](g)[0]

  def by_products(x, g):
    return _weight_gradient(x, g, kernel.shape[0], stride, dilation).astype(kernel.dtype)

  by_x = jax.vjp(lambda x: run(x, kernel), x)[1](g)[0]
  return by_x, jax.lax.platform_dependent(x, g, cpu=by_products, default=by_compiler)


convolve.defvjp(_forward, _backward)


def _weight_gradient(x, g, side, stride, dilation):
  """[B, H, W, C], [B, h, w, F] -> [side, side, C, F] float32: a product for each of its pixels.

  XLA's CPU backend takes the gradient for a convolution with a kernel as large as the film, and
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
