"""Symmetric InfoNCE over a matrix of scores; reports that say the same are no negatives."""

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
