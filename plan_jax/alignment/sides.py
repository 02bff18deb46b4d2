"""Sides: losses that teach the words "left" and "right" without any region (ours).

That the patient's left is on the right of a frontal image is all that they know. A sentence that
names one side is also read with left and right exchanged: its image must show that less.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods import plan
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch
from plan_jax.alignment.regions import square_side

_LEAST_SHARE = 0.01  # of a region in its half: bounds the gradient
_MOVED_SHARE = 0.55  # of a region, from which on it has moved to the other half


class _OwnRegions(NamedTuple):
  """Words in their own images: the share of each region in its half, and its evidence."""

  share: Float[Array, "B W"]
  evidence: Float[Array, "B W"]


def side_losses(x: EmbeddedBatch, stage: Stage, alignment: Alignment) -> dict[str, jax.Array]:
  """Computes the means over the words that name something on one side, each in its own image.

  0 without such a word. The middle column of an odd grid belongs to both halves equally. Shares are
  bounded below by .01.

  Returns:
    "side": -log(share of the region in the half that the sentence names). Where `x.swapped` is
    given also "swap": softplus(scale (e' - e)), e' the evidence of the word where left and right
    are exchanged in its sentence, the nearest of all negatives; and "move": -log(share of that
    region in the other half, over .55, at most 1).

  Raises:
    ValueError: the number of pixels is no square.
  """
  own = _own_regions(x, x.words, x.half, stage, alignment)
  losses = {"side": _mean(_surprise(own.share), x.half)}
  if x.swapped is None:
    return losses
  half = x.swapped.half
  other = _own_regions(x, x.swapped.words, half, stage, alignment)
  contrast = jax.nn.softplus(x.local_scale * (other.evidence - own.evidence))
  moved = _surprise(jnp.minimum(other.share / _MOVED_SHARE, 1))
  return losses | {"swap": _mean(contrast, half), "move": _mean(moved, half)}


def _own_regions(
  x: EmbeddedBatch,
  words: Float[Array, "B W D"],
  half: Int[Array, "B W"],
  stage: Stage,
  alignment: Alignment,
) -> _OwnRegions:
  size = square_side(x.pixels.shape[1], "sides need")
  across = jnp.tile(jnp.sign(2 * jnp.arange(size) - (size - 1)), size).astype(jnp.float32)
  attention, evidence = jax.vmap(
    lambda image, text: plan.own_regions(image, text, stage, alignment)
  )(x.pixels, words)
  return _OwnRegions((1 + half * (attention.weight @ across)) / 2, evidence)


def _surprise(share: Float[Array, "B W"]) -> Float[Array, "B W"]:
  return -jnp.log(_LEAST_SHARE + (1 - _LEAST_SHARE) * share)


def _mean(loss: Float[Array, "B W"], half: Int[Array, "B W"]) -> Float[Array, ""]:
  return jnp.where(half != 0, loss, 0).sum() / jnp.maximum((half != 0).sum(), 1)
