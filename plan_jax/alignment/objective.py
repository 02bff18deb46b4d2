"""The training objective: weighted sum of the global and the local contrast of one stage."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment import pairwise
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.losses import info_nce
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch
from plan_jax.alignment.methods.by_name import METHODS
from plan_jax.alignment.sides import side_losses


def objective(
  batch: EmbeddedBatch, stage: Stage, alignment: Alignment
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
  """Computes the loss and its parts, scalars float32.

  Total = w_global * global + w_local * local + w_term * term + w_side * side + w_swap * swap +
  w_move * move. The global loss is a symmetric InfoNCE over B x B cosines with the positives mask,
  the same for every method; the local one is the method's. The term loss is the mean over words of
  the cross-entropy of the significance with the diagnostic terms. (Our concretisation of the source
  method.) The last three are `side_losses`.
  """
  x = batch
  index = jnp.arange(len(x.image_embedding), dtype=jnp.int32)
  keys = pairwise.Keys(index, x.report_key, x.study_key, x.mask.any(-1))
  if not alignment.mask_positives:
    keys = keys._replace(text=jnp.zeros_like(index), study=index)
  # Exact where accelerators would round the operands: the scale goes up to 100.
  cosine = jnp.matmul(x.image_embedding, x.text_embedding.T, precision="highest")
  cosine *= x.global_scale
  terms = pairwise.contrast_terms(cosine, cosine[..., None][..., :0], keys)
  loss, accuracy = info_nce(terms, keys.valid)
  total = stage.global_weight * loss
  parts = {
    "loss_global": loss,
    "accuracy_global": accuracy,
    "scale_global": x.global_scale,
    "scale_local": x.local_scale,
  }
  # `none` has no loss; its stages keep their weights so that one key alone chooses the method.
  if stage.local_weight and (local := METHODS[alignment.method].loss):
    loss, accuracy = local(x, stage, alignment, keys)
    total += stage.local_weight * loss
    parts |= {"loss_local": loss, "accuracy_local": accuracy}
  words = jnp.maximum(x.mask.sum(), 1)
  if alignment.method == "plan" and alignment.term_weight:
    significance = jnp.clip(x.significance, 1e-6, 1 - 1e-6)
    surprise = -jnp.log(jnp.where(x.term, significance, 1 - significance))
    parts["loss_term"] = jnp.where(x.mask, surprise, 0).sum() / words
    total += alignment.term_weight * parts["loss_term"]
  a = alignment
  side_weights = {"side": a.side_weight, "swap": a.swap_weight, "move": a.move_weight}
  if a.method == "plan" and any(side_weights.values()) and stage.local_weight:
    for name, loss in side_losses(x, stage, a).items():
      if side_weights[name]:
        parts[f"loss_{name}"] = loss
        total += side_weights[name] * loss
  parts["significance_mean"] = x.significance.sum() / words
  return total, {"loss": total, **parts}
