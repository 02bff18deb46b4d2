"""A light decoder over an image encoder's pyramid, and the loss it learns by."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plan_jax.models.layers.batch_norm import BatchNorm
from plan_jax.models.layers.convolution import Conv, Conv1x1

STRIDES = (4, 8, 16, 32)


class Decoder(nn.Module):
  """A decoder in the manner of UperNet (Xiao et al., ECCV 2018), with one bin of pyramid pooling.

  Each level is brought to the same width; the coarsest also gets its mean over the grid; from
  coarse to fine each is added to the next; all are smoothed, brought to the finest grid, and fused.

  Attributes:
    findings: number of maps.
    channels: width of the levels.
  """

  findings: int
  channels: int

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array], *, train: bool = False) -> jax.Array:
    """[B, H, W, C] by level, fine to coarse -> logits [B, H, W, findings] float32 of the finest."""

    def normed(x, name):
      return nn.relu(BatchNorm(train, name=f"{name}_norm")(x))

    def level(x, name):
      return normed(Conv1x1(self.channels, name=name)(x.astype(jnp.float32)), name)

    def smooth(x, name):
      return normed(Conv(self.channels, name=name)(x), name)

    def enlarged(x, to):
      return jax.image.resize(x, (*to.shape[:3], x.shape[-1]), "linear")

    sides = [level(x, f"level{i}") for i, x in enumerate(levels)]
    top = sides[-1]
    context = level(levels[-1].mean((1, 2), keepdims=True), "context")
    merged = [top + context]
    for x in reversed(sides[:-1]):
      merged.insert(0, x + enlarged(merged[0], x))
    merged = [smooth(x, f"smooth{i}") for i, x in enumerate(merged)]
    x = jnp.concatenate([enlarged(x, merged[0]) for x in merged], -1)
    return nn.Dense(self.findings, name="findings")(smooth(x, "fused"))


def to_square(raw: jax.Array, size_px: int) -> jax.Array:
  """Resizes logits [B, h, w, K] to [B, S, S, K], bilinear."""
  return jax.image.resize(raw, (raw.shape[0], size_px, size_px, raw.shape[-1]), "linear")


def loss(logits: jax.Array, masks: jax.Array, known: jax.Array) -> tuple[jax.Array, dict]:
  """Computes the cross entropy of pixels plus 1 - soft Dice, a mean over known image-finding pairs.

  Soft Dice is (2 sum p t + 1) / (sum p + sum t + 1) over the pixels of a pair (Milletari et al.,
  3DV 2016, without squares; with the 1 an empty map fits an empty mask).

  Args:
    logits: [B, S, S, K] float32.
    masks: [B, S, S, K] bool.
    known: [B, K] bool, whether a mask counts.

  Returns:
    The loss, 0 where nothing is known, and its parts.
  """
  truth = masks.astype(jnp.float32)
  entropy = optax.sigmoid_binary_cross_entropy(logits, truth).mean((1, 2))
  predicted = jax.nn.sigmoid(logits)
  shared, size = (predicted * truth).sum((1, 2)), (predicted + truth).sum((1, 2))
  dice = (2 * shared + 1) / (size + 1)
  count = jnp.maximum(known.sum(), 1)

  def mean(x):
    return jnp.where(known, x, 0).sum() / count

  parts = {"entropy": mean(entropy), "soft_dice": mean(dice)}
  return parts["entropy"] + mean(1 - dice), parts
