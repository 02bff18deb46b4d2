"""Contrastive losses: of pairs and of words over the batch, and of a report's words alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from plan_jax.alignment.pairwise import ContrastTerms


def info_nce(
  terms: ContrastTerms, valid: Bool[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Averages over both directions the cross-entropy of each pair among its negatives.

  The target of a row or column is its own pair alone; other positives are in no log-partition, and
  neither are invalid reports, without words (as queries too). Returns the loss, and the mean top-1
  accuracy of the two directions among valid pairs, both 0 where nothing is valid.
  """
  count = jnp.maximum(valid.sum(), 1)
  loss, accuracy = 0.0, 0.0
  for negatives, highest in (
    (terms.image_log_partition, terms.image_highest),
    (terms.report_log_partition, terms.report_highest),
  ):
    loss += jnp.where(valid, jax.nn.softplus(negatives - terms.positive), 0).sum() / count / 2
    accuracy += (valid & (terms.positive >= highest)).sum() / count / 2
  return loss, accuracy


def word_info_nce(
  terms: ContrastTerms, valid: Bool[Array, " B"], weight: Float[Array, "B W"]
) -> Float[Array, ""]:
  """Contrasts each single word's own image with all images (ours); a weighted mean over the words.

  Pooled scores let a report's easiest word answer for all; here every word answers for itself.
  `valid` is as in `info_nce`; the loss is 0 where no word has weight, which is >= 0.
  """
  weight = jnp.where(valid[:, None], weight, 0)
  cross_entropy = jax.nn.softplus(terms.word_log_partition - terms.positive_word)
  total = weight.sum()
  return (weight * cross_entropy).sum() / jnp.where(total > 0, total, 1)


def words_info_nce(
  regions: Float[Array, "B W D"],
  words: Float[Array, "B W D"],
  weight: Float[Array, "B W"],
  mask: Bool[Array, "B W"],
  scale: ScalarLike,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Contrasts each word with the regions of its own report's words, and each region with the words.

  Mean over reports of sum_w weight_w of the two cross-entropies, halved (as SPARC and MGCA have it,
  with padding left out of both partitions).

  Args:
    regions: unit norm, the region each word attends to in its own image.
    words: unit norm.
    weight: sums to one over the words of a report.
    mask: which words are words.
    scale: inverse temperature.

  Returns:
    The loss, and the mean top-1 accuracy of the two directions.
  """
  logits = scale * jnp.einsum("bwd,bud->bwu", regions, words)
  logits = jnp.where(mask[:, :, None] & mask[:, None], logits, -1e9)
  diagonal = jnp.diagonal(logits, axis1=1, axis2=2)
  weight = jnp.where(mask, weight, 0)
  reports = jnp.maximum(mask.any(-1).sum(), 1)
  loss, accuracy = 0.0, 0.0
  for axis in (1, 2):
    cross_entropy = jax.nn.logsumexp(logits, axis=axis) - diagonal
    loss += (weight * cross_entropy).sum() / reports / 2
    accuracy += (mask & (diagonal >= logits.max(axis))).sum() / jnp.maximum(mask.sum(), 1) / 2
  return loss, accuracy
