"""The training objective: weighted sum of the global and the local contrasts of one stage."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plan_jax.alignment import contrast, pairwise
from plan_jax.alignment.curriculum import Stage, say
from plan_jax.alignment.scores import Rounds


class Embedded(NamedTuple):
  """What the objective needs of B pairs; all float32 but the masks and keys.

  Attributes:
    pixels: [B, P, D] and film [B, D], unit norm.
    words: [B, W, D] and report [B, D], unit norm.
    mask: [B, W] bool, which words are words.
    significance: [B, W] in (0, 1), zero for padding.
    report_key, study_key: [B] int32.
    global_scale, local_scale: inverse temperatures.
  """

  pixels: jax.Array
  film: jax.Array
  words: jax.Array
  report: jax.Array
  mask: jax.Array
  significance: jax.Array
  report_key: jax.Array
  study_key: jax.Array
  global_scale: jax.Array
  local_scale: jax.Array


def objective(
  embedded: Embedded,
  stage: Stage,
  *,
  sparsifier: str,
  eta: float,
  beta: float,
  evaluation: str,
  tile_images: int,
  tile_reports: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss and its parts, scalars float32.

  Total = w_global * global + sum_k w_k * local_k; each term is a symmetric InfoNCE over B x B
  scores with the positives mask (our concretisation of the source method).
  """
  x = embedded
  positives = contrast.same_text(x.report_key, x.study_key)
  valid = x.mask.any(-1)
  loss, accuracy = contrast.info_nce(x.global_scale * (x.film @ x.report.T), positives, valid)
  total = stage.global_weight * loss
  parts = {
    "loss_global": loss,
    "accuracy_global": accuracy,
    "scale_global": x.global_scale,
    "scale_local": x.local_scale,
  }
  if stage.local_weight:
    rounds = Rounds(stage.tau, stage.gamma, eta, beta, sparsifier)
    inputs = x.pixels, x.words, say(stage, x.significance, x.mask), rounds
    if evaluation == "full":
      scores = pairwise.full(*inputs)
    else:
      scores = pairwise.chunked(*inputs, tile_images=tile_images, tile_reports=tile_reports)
    for k, weight in enumerate(stage.local_weight):
      loss, accuracy = contrast.info_nce(x.local_scale * scores[k], positives, valid)
      total += weight * loss
      parts |= {f"loss_local_{k}": loss, f"accuracy_local_{k}": accuracy}
  words = jnp.maximum(x.mask.sum(), 1)
  parts["significance_mean"] = x.significance.sum() / words
  return total, {"loss": total, **parts}
