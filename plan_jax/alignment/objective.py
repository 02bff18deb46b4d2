"""The training objective: weighted sum of the global and the local contrasts of one stage."""

import jax
import jax.numpy as jnp

from plan_jax.alignment import losses, pairwise
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods import METHODS, Alignment, Embedded


def objective(
  embedded: Embedded, stage: Stage, alignment: Alignment
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss and its parts, scalars float32.

  Total = w_global * global + sum_k w_k * local_k + w_term * term. The global loss is a symmetric
  InfoNCE over B x B cosines with the positives mask, the same for every method; the local ones are
  the method's. The term loss is the mean over words of the cross-entropy of the significance with
  the diagnostic terms. (Our concretisation of the source method.)
  """
  x = embedded
  index = jnp.arange(len(x.image), dtype=jnp.int32)
  keys = pairwise.Keys(index, x.report_key, x.example_key, x.mask.any(-1))
  if not alignment.mask_positives:
    keys = keys._replace(text=jnp.zeros_like(index), example=index)
  cosine = (x.global_scale * (x.image @ x.report.T))[None]
  whole = pairwise.of_logits(cosine, cosine[..., None][..., :0], keys)
  (loss,), (accuracy,) = losses.info_nce(whole, keys.valid)
  total = stage.global_weight * loss
  parts = {
    "loss_global": loss,
    "accuracy_global": accuracy,
    "scale_global": x.global_scale,
    "scale_local": x.local_scale,
  }
  if stage.local_weight:
    # None of `none`, whose stages keep their weights so that one key alone chooses the method.
    local = METHODS[alignment.method].losses(x, stage, alignment, keys)
    for k, (weight, (loss, accuracy)) in enumerate(
      zip(stage.local_weight, local, strict=bool(local))
    ):
      total += weight * loss
      parts |= {f"loss_local_{k}": loss, f"accuracy_local_{k}": accuracy}
  words = jnp.maximum(x.mask.sum(), 1)
  if alignment.method == "plan" and alignment.term_weight:
    says = jnp.clip(x.significance, 1e-6, 1 - 1e-6)
    surprise = -jnp.log(jnp.where(x.term, says, 1 - says))
    parts["loss_term"] = jnp.where(x.mask, surprise, 0).sum() / words
    total += alignment.term_weight * parts["loss_term"]
  parts["significance_mean"] = x.significance.sum() / words
  return total, {"loss": total, **parts}
