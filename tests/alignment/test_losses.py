import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from plan_jax.alignment import losses, pairwise

TEXT, EXAMPLE = np.array([1, 2, 1, 3, 0, 0]), np.array([1, 2, 3, 2, 5, 6])
VALID = jnp.asarray(TEXT > 0)
POSITIVES = (TEXT[:, None] == TEXT) & (TEXT[:, None] != 0) | (EXAMPLE[:, None] == EXAMPLE)
KEYS = pairwise.Keys(*(jnp.asarray(x, jnp.int32) for x in (np.arange(6), TEXT, EXAMPLE)), VALID)


def terms(pairs, words=None, keys=KEYS):
  if words is None:
    words = jnp.zeros((*pairs.shape, 0), pairs.dtype)
  return pairwise.contrast_terms(pairs, words, keys)


def logits(*shape):
  return np.random.default_rng(0).normal(size=shape) * 3


def test_info_nce_equals_the_oracle():
  x = logits(6, 6)
  with jax.enable_x64():
    loss, accuracy = losses.info_nce(terms(jnp.asarray(x)), VALID)
  np.testing.assert_allclose(loss, oracle.info_nce(x, POSITIVES, VALID), rtol=1e-9)
  best = 0
  for rows in (x, x.T):
    for i in np.flatnonzero(VALID):
      others = [j for j in np.flatnonzero(VALID) if j != i and not POSITIVES[i, j]]
      best += rows[i, i] >= rows[i, others].max()
  assert float(accuracy) == best / (2 * VALID.sum())


def test_info_nce_ignores_the_scores_of_positives_and_of_empty_reports():
  gradient = jax.grad(lambda x: losses.info_nce(terms(x), VALID)[0])(jnp.asarray(logits(6, 6)))
  gradient = np.asarray(gradient)
  assert gradient[0, 2] == gradient[2, 0] == gradient[1, 3] == 0
  assert (gradient[4:] == 0).all() and (gradient[:, 4:] == 0).all()
  assert (np.diagonal(gradient)[:4] < 0).all()


@pytest.mark.parametrize("size", [1, 3])
def test_without_any_report_or_negative_the_loss_is_zero(size):
  """One pair has no negative; of three none has a report."""
  index = jnp.arange(size, dtype=jnp.int32)
  valid = jnp.full(size, size == 1)
  keys = pairwise.Keys(index, index + 1, index, valid)

  def f(x, e):
    pairs = terms(x, e, keys)
    weight = jnp.ones((size, 2))
    return losses.info_nce(pairs, valid)[0] + losses.word_info_nce(pairs, valid, weight)

  x, e = jnp.ones((size, size)), jnp.ones((size, size, 2))
  assert f(x, e) == 0
  assert all((np.asarray(g) == 0).all() for g in jax.grad(f, (0, 1))(x, e))


def test_word_info_nce_equals_the_oracle():
  x = logits(6, 6, 3)
  weight = np.random.default_rng(4).uniform(size=(6, 3))
  weight[0, 1:] = 0
  with jax.enable_x64():
    pairs = terms(jnp.zeros((6, 6)), jnp.asarray(x))
    got = losses.word_info_nce(pairs, VALID, jnp.asarray(weight))
  np.testing.assert_allclose(got, oracle.word_info_nce(x, POSITIVES, VALID, weight), rtol=1e-9)


def test_word_info_nce_without_any_word_is_zero():
  def f(x):
    return losses.word_info_nce(terms(jnp.zeros((6, 6)), x), VALID, jnp.zeros((6, 2)))

  assert f(jnp.ones((6, 6, 2))) == 0
  assert (np.asarray(jax.grad(f)(jnp.ones((6, 6, 2)))) == 0).all()
