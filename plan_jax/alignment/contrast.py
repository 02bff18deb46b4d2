"""Contrasts: of pairs over a matrix of scores, and of a report's words among themselves."""

import jax
import jax.numpy as jnp


def same_text(report_key: jax.Array, study_key: jax.Array) -> jax.Array:
  """[B, B] bool: pairs that are no negatives: same normalised text, or same study.

  Args:
    report_key: [B] int32 hash of the normalised text, 0 for none (which equals nothing).
    study_key: [B] int32.
  """
  text = (report_key[:, None] == report_key[None]) & (report_key != 0)[:, None]
  return text | (study_key[:, None] == study_key[None])


def info_nce(
  logits: jax.Array, positives: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean over both directions of the cross-entropy of each pair among its negatives.

  The target of a row or column is its own pair alone; other positives are left out of the
  normaliser, and so are invalid reports (as queries too).

  Args:
    logits: [B, B] float32, images by reports.
    positives: [B, B] bool, pairs that are no negatives.
    valid: [B] bool, reports with words.

  Returns:
    The loss, and the share of valid pairs that score highest in both of row and column, halved
    each: the mean top-1 accuracy of the two directions. Both are 0 where nothing is valid.
  """
  own = jnp.eye(logits.shape[0], dtype=bool)
  counted = valid[:, None] & valid[None] & (own | ~positives)
  # Finite, so that a row without any entry has a finite gradient; its loss is masked below.
  logits = jnp.where(counted, logits, -1e9)
  diagonal = jnp.diagonal(logits)
  count = jnp.maximum(valid.sum(), 1)
  loss, accuracy = 0.0, 0.0
  for axis in (0, 1):
    cross_entropy = jax.nn.logsumexp(logits, axis=axis) - diagonal
    loss += jnp.where(valid, cross_entropy, 0).sum() / count / 2
    accuracy += (valid & (diagonal >= logits.max(axis))).sum() / count / 2
  return loss, accuracy


def word_info_nce(
  logits: jax.Array, positives: jax.Array, valid: jax.Array, weight: jax.Array
) -> jax.Array:
  """Each single word must find its own image among all (ours); a weighted mean over the words.

  Pooled scores let a report's easiest word answer for all; here every word answers for itself.

  Args:
    logits: [I, J, W] float32, of word w of report j in image i; I = J.
    positives, valid: as in `info_nce`.
    weight: [J, W] >= 0, zero for padding.

  Returns:
    The loss, 0 where no word has weight.
  """
  own = jnp.eye(len(logits), dtype=bool)
  counted = valid[:, None] & valid[None] & (own | ~positives)
  logits = jnp.where(counted[..., None], logits, -1e9)
  mine = jnp.diagonal(logits).T  # [J, W]
  cross_entropy = jax.nn.logsumexp(logits, axis=0) - mine
  weight = jnp.where(valid[:, None], weight, 0)
  total = weight.sum()
  return (weight * cross_entropy).sum() / jnp.where(total > 0, total, 1)


def words_info_nce(
  regions: jax.Array, words: jax.Array, weight: jax.Array, mask: jax.Array, scale
) -> tuple[jax.Array, jax.Array]:
  """Each word against the regions of its own report's words, and each region against the words.

  Mean over reports of sum_w weight_w of the two cross-entropies, halved (as SPARC and MGCA have it,
  with padding left out of both normalisers).

  Args:
    regions: [B, W, D], unit norm, the region each word attends to in its own film.
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
