"""Contrasts: of pairs and of words over the batch, and of a report's words among themselves."""

import jax
import jax.numpy as jnp

from plan_jax.alignment.pairwise import Contrasted


def info_nce(pairs: Contrasted, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean over both directions of the cross-entropy of each pair among its negatives.

  The target of a row or column is its own pair alone; other positives are in no normaliser, and
  neither are invalid reports (as queries too).

  Args:
    pairs: of K rounds.
    valid: [B] bool, reports with words.

  Returns:
    [K] the loss, and [K] the share of valid pairs that score highest in both of row and column,
    halved each: the mean top-1 accuracy of the two directions. Both are 0 where nothing is valid.
  """
  count = jnp.maximum(valid.sum(), 1)
  loss, accuracy = 0.0, 0.0
  for negatives, highest in (
    (pairs.image, pairs.image_highest),
    (pairs.report, pairs.report_highest),
  ):
    loss += jnp.where(valid, jax.nn.softplus(negatives - pairs.own), 0).sum(-1) / count / 2
    accuracy += (valid & (pairs.own >= highest)).sum(-1) / count / 2
  return loss, accuracy


def word_info_nce(pairs: Contrasted, valid: jax.Array, weight: jax.Array) -> jax.Array:
  """Each single word must find its own image among all (ours); a weighted mean over the words.

  Pooled scores let a report's easiest word answer for all; here every word answers for itself.

  Args:
    pairs: of K rounds, with words.
    valid: as in `info_nce`.
    weight: [B, W] >= 0, zero for padding.

  Returns:
    [K] the loss, 0 where no word has weight.
  """
  weight = jnp.where(valid[:, None], weight, 0)
  cross_entropy = jax.nn.softplus(pairs.word - pairs.own_word)
  total = weight.sum()
  return (weight * cross_entropy).sum((1, 2)) / jnp.where(total > 0, total, 1)


def words_info_nce(
  regions: jax.Array, words: jax.Array, weight: jax.Array, mask: jax.Array, scale
) -> tuple[jax.Array, jax.Array]:
  """Each word against the regions of its own report's words, and each region against the words.

  Mean over reports of sum_w weight_w of the two cross-entropies, halved (as SPARC and MGCA have it,
  with padding left out of both normalisers).

  Args:
    regions: [B, W, D], unit norm, the region each word attends to in its own image.
    words: [B, W, D], unit norm.
    weight: [B, W], sums to one over the words of a report.
    mask: [B, W] bool.
    scale: scalar, inverse temperature.

  Returns:
    The loss, and the share of words that find their own region and are found by it, halved each.
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
