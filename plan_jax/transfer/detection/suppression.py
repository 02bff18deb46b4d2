"""Non-maximum suppression of boxes, of static shapes."""

import jax
import jax.numpy as jnp

from input_pipeline.boxes import iou


def suppress(boxes: jax.Array, scores: jax.Array, labels: jax.Array, threshold: float) -> jax.Array:
  """Suppresses, greedily and within each label, boxes that overlap a better one.

  A box goes if one of its label that scores more, and stays, overlaps it by more than the
  threshold; of equal scores the earlier comes first.

  Args:
    boxes: [N, 4].
    scores: [N]; a box that scores 0 or less is none, and goes.
    labels: [N] int.
    threshold: of IoU.

  Returns:
    [N] bool, which stay.
  """
  order = jnp.argsort(-scores, stable=True)
  boxes, labels = boxes[order], labels[order]
  over = (iou(boxes, boxes) > threshold) & (labels[:, None] == labels[None])
  number = jnp.arange(len(scores))

  def step(i, stays):
    return stays & ~(over[i] & (number > i) & stays[i])

  stays = jax.lax.fori_loop(0, len(scores), step, scores[order] > 0)
  return jnp.zeros(len(scores), bool).at[order].set(stays)
