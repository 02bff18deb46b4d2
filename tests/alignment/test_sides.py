"""The side loss: the region of a term lies in the half of the image that its sentence names."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import ALIGNMENT, STAGE, case

from plan_jax.alignment.methods import plan
from plan_jax.alignment.objective import objective

SIDES = dataclasses.replace(ALIGNMENT, side_weight=1.0)
HALF = np.array([[1, 0, -1, 0, 0], [-1, -1, 0, 0, 0], [0] * 5, [0] * 5], np.int32)


def sized(size, half=HALF):
  """A batch on a square grid of that many pixels a side."""
  pixels = np.random.default_rng(1).normal(size=(4, size * size, 6)).astype(np.float32)
  x = case()
  return x._replace(pixels=jnp.asarray(pixels[..., : x.words.shape[-1]]), half=jnp.asarray(half))


def by_hand(x, tau=STAGE.tau[0]):
  """Word by word, pixel by pixel."""
  size = int(x.pixels.shape[1] ** 0.5)
  terms = []
  for b, w in zip(*np.nonzero(x.half), strict=True):
    pixels = np.asarray(x.pixels[b], np.float64)
    word = np.asarray(x.words[b, w], np.float64)
    similarity = pixels @ word / np.linalg.norm(pixels, axis=1) / np.linalg.norm(word)
    weight = np.exp(similarity / tau) / np.exp(similarity / tau).sum()
    share = 0
    for p in range(size * size):
      column = p % size + 0.5
      if column == size / 2:
        share += weight[p] / 2
      elif (column > size / 2) == (x.half[b, w] == 1):
        share += weight[p]
    terms.append(-np.log(0.01 + 0.99 * share))
  return np.mean(terms)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_equals_the_sum_by_hand(size):
  x = sized(size)
  np.testing.assert_allclose(plan.side_loss(x, STAGE, SIDES), by_hand(x), rtol=1e-5)


def test_without_sides_it_is_zero_and_has_no_gradient():
  x = sized(4, np.zeros_like(HALF))

  def loss(pixels):
    return plan.side_loss(x._replace(pixels=pixels), STAGE, SIDES)

  value, gradient = jax.value_and_grad(loss)(x.pixels)
  assert value == 0
  assert not gradient.any()


def test_it_is_a_part_of_the_objective():
  x = sized(4)
  without, _ = objective(x, STAGE, ALIGNMENT)
  total, parts = objective(x, STAGE, dataclasses.replace(SIDES, side_weight=0.5))
  np.testing.assert_allclose(total, without + 0.5 * by_hand(x), rtol=1e-5)
  np.testing.assert_allclose(parts["loss_side"], by_hand(x), rtol=1e-5)


def test_descent_moves_a_region_to_its_half():
  x = sized(4)
  words = x.words
  for _ in range(200):
    words -= 0.5 * jax.grad(lambda w: plan.side_loss(x._replace(words=w), STAGE, SIDES))(words)
  for b, w in zip(*np.nonzero(HALF), strict=True):
    image = SimpleNamespace(pixels=x.pixels[b], features=x.pixels[b])
    text = SimpleNamespace(words=words[b])
    weight = plan.attend(image, text, STAGE, SIDES).weight[w].reshape(4, 4).sum(0)
    left, right = weight[:2].sum(), weight[2:].sum()
    assert (right > left) == (HALF[b, w] == 1)


def test_a_grid_that_is_not_square_is_refused():
  x = sized(4)
  with pytest.raises(ValueError, match="square grid, not 15 pixels"):
    plan.side_loss(x._replace(pixels=x.pixels[:, :15]), STAGE, SIDES)
