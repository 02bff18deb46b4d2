"""Soft regions: from a word's similarity to every pixel to weights of the pixels it names."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_region(similarity: Float[Array, "*n P"], tau: float) -> Float[Array, "*n P"]:
  """Attends softly, at temperature `tau`: weights that sum to one over the pixels (ours)."""
  return jax.nn.softmax(similarity / tau, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def soft_evidence(similarity: Float[Array, "*n P"], tau: float) -> Float[Array, "*n"]:
  """Averages the similarity over its soft region: a soft maximum (ours).

  The same as `(soft_region(s, tau) * s).sum(-1)` and its gradient, to rounding, in half the passes
  over the pixels: the regions themselves are formed in neither direction.
  """
  return _evidence(similarity, tau)[0]


def _evidence(s, tau):
  """Returns the evidence, `exp((s - max s) / tau)` and its sum over the pixels."""
  exp = jnp.exp((s - s.max(-1, keepdims=True)) / tau)
  partition = exp.sum(-1)
  return (exp * s).sum(-1) / partition, exp, partition


def _evidence_forward(s, tau):
  evidence, exp, partition = _evidence(s, tau)
  return evidence, (s, evidence, exp, partition)


def _evidence_backward(tau, residuals, gradient):
  """Multiplies by the gradient of the evidence e, of region a: `a (1 + (s - e) / tau)`."""
  s, evidence, exp, partition = residuals
  scaled = (gradient / partition)[..., None]
  return (scaled * exp * (1 + (s - evidence[..., None]) / tau),)


soft_evidence.defvjp(_evidence_forward, _evidence_backward)


def square_side(pixels: int, need: str) -> int:
  """Returns the side of a square grid of so many pixels.

  Raises ValueError where it is none, which `need` begins ("sides need").
  """
  side = math.isqrt(pixels)
  if side * side != pixels:
    raise ValueError(f"{need} a square grid, not {pixels} pixels")
  return side
