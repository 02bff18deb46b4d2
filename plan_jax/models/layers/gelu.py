"""The Gaussian error linear unit (Hendrycks & Gimpel 2016), by erf, not tanh."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """Multiplies every element by its normal distribution function, to 1e-7 absolute.

  nn.gelu goes by erfc, which is exact in the lower tail too, but takes up to three times as long on
  CPUs, and keeps more for the gradient.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide * _phi(wide)).astype(x.dtype)


def _forward(x):
  return gelu(x), x


def _backward(x, g):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  density = np.float32((2 * np.pi) ** -0.5) * jnp.exp(-0.5 * jnp.square(wide))
  return ((g * (_phi(wide) + wide * density)).astype(x.dtype),)


def _phi(x):
  """Computes the standard normal distribution function."""
  return 0.5 + 0.5 * jax.lax.erf(np.float32(0.5**0.5) * x)


gelu.defvjp(_forward, _backward)
