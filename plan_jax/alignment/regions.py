"""Soft regions: from a word's similarity to every pixel to weights of the pixels it names."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAST = 0.01  # of the attention that suppression lets pass, before the plain one fills it up


def soft_region(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n P"]:
  """Attends softly at temperature `tau`, less `gamma` uniform shares: pixels below lose all (ours).

  Weights are >= 0 and sum to one over the pixels. Where less than a hundredth of the attention
  passes, the plain one fills it up to that: a word that fits all pixels alike keeps the plain
  attention, and the gradient stays bounded.
  """
  weight = jax.nn.softmax(similarity / tau, axis=-1)
  if not gamma:
    return weight
  kept = jax.nn.relu(weight - gamma / similarity.shape[-1])
  total = kept.sum(-1, keepdims=True)
  return (kept + jax.nn.relu(_LEAST - total) * weight) / jnp.maximum(total, _LEAST)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def soft_evidence(similarity: Float[Array, "*n P"], tau: float, gamma: float) -> Float[Array, "*n"]:
  """Averages the similarity over its soft region: a soft maximum (ours).

  The same as `(soft_region(s, tau, gamma) * s).sum(-1)` and its gradient, to rounding, in half the
  passes over the pixels: the regions themselves are formed in neither direction.
  """
  return _evidence(similarity, tau, gamma)[0]


def _evidence(s, tau, gamma):
  """Returns the evidence, and sums that its gradient needs: see `_evidence_backward`."""
  exp = jnp.exp((s - s.max(-1, keepdims=True)) / tau)
  partition = exp.sum(-1)
  plain = (exp * s).sum(-1) / partition
  if not gamma:
    return plain, (exp, partition, plain, None)
  cut = (gamma / s.shape[-1] * partition)[..., None]
  # All sums over what passes are of one pass over the pixels, where a compiler joins them.
  passes = exp > cut
  kept = jnp.where(passes, exp - cut, 0)
  total, weighted = kept.sum(-1) / partition, (kept * s).sum(-1) / partition
  count, passed = jnp.where(passes, 1.0, 0.0).sum(-1), jnp.where(passes, s, 0).sum(-1)
  evidence = (weighted + jax.nn.relu(_LEAST - total) * plain) / jnp.maximum(total, _LEAST)
  return evidence, (exp, partition, plain, (total, weighted, count, passed))


def _evidence_forward(s, tau, gamma):
  evidence, sums = _evidence(s, tau, gamma)
  return evidence, (s, evidence, sums)


def _evidence_backward(tau, gamma, residuals, gradient):
  """Multiplies by the gradient of the evidence `e`.

  With `x = exp(s / tau)`, `Z = sum x`, `a = x / Z`, `g = gamma / P`, `k = relu(a - g)`,
  `t = sum k`, `N = sum k s`, `e0 = sum a s`, `u = relu(.01 - t)` and `m = max(t, .01)` the evidence
  is `(N + u e0) / m`. With `1 = a > g`, and `h` the evidence, or `e0` where `u > 0`,

    `m de / ds = k + a / tau (1 (s - h) - (N - h t + g sum 1 (s - h)) + u (tau + s - e0))`.
  """
  s, evidence, (exp, partition, plain, suppressed) = residuals
  if not gamma:
    scaled = (gradient / partition)[..., None]
    return (scaled * exp * (1 + (s - evidence[..., None]) / tau),)
  total, weighted, count, passed = suppressed
  share = gamma / s.shape[-1]
  cut = (share * partition)[..., None]
  missing = jax.nn.relu(_LEAST - total)
  centre = jnp.where(missing > 0, plain, evidence)
  offset = weighted - centre * total + share * (passed - centre * count) - missing * (tau - plain)
  slope = (
    jnp.where(exp > cut, s - centre[..., None], 0) - offset[..., None] + missing[..., None] * s
  )
  scaled = (gradient / (partition * jnp.maximum(total, _LEAST)))[..., None]
  return (scaled * (jax.nn.relu(exp - cut) + exp / tau * slope),)


soft_evidence.defvjp(_evidence_forward, _evidence_backward)


def square_side(pixels: int, need: str) -> int:
  """Returns the side of a square grid of so many pixels.

  Raises ValueError where it is none, which `need` begins ("sides need").
  """
  side = math.isqrt(pixels)
  if side * side != pixels:
    raise ValueError(f"{need} a square grid, not {pixels} pixels")
  return side
