"""The losses of sides: where the region of a term lies, and what exchanging left and right does."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import ALIGNMENT, STAGE, case

from plan_jax.alignment.methods import plan
from plan_jax.alignment.methods.base import SwappedWords
from plan_jax.alignment.objective import objective
from plan_jax.alignment.sides import side_losses

SIDES = dataclasses.replace(ALIGNMENT, side_weight=1.0)
HALF = np.array([[1, 0, -1, 0, 0], [-1, -1, 0, 0, 0], [0] * 5, [0] * 5], np.int32)


def sized(size, half=HALF):
  """A batch on a square grid of that many pixels a side."""
  pixels = np.random.default_rng(1).normal(size=(4, size * size, 6)).astype(np.float32)
  x = case()
  return x._replace(pixels=jnp.asarray(pixels[..., : x.words.shape[-1]]), half=jnp.asarray(half))


def region_by_hand(pixels, word, half, tau=STAGE.tau):
  """Pixel by pixel: the share of a word's region in a half of the image, and its evidence."""
  pixels, word = np.asarray(pixels, np.float64), np.asarray(word, np.float64)
  size = int(len(pixels) ** 0.5)
  similarity = pixels @ word / np.linalg.norm(pixels, axis=1) / np.linalg.norm(word)
  weight = np.exp(similarity / tau) / np.exp(similarity / tau).sum()
  share = 0
  for p in range(size * size):
    column = p % size + 0.5
    if column == size / 2:
      share += weight[p] / 2
    elif (column > size / 2) == (half == 1):
      share += weight[p]
  return share, weight @ similarity


def by_hand(x):
  """Word by word."""
  places = zip(*np.nonzero(x.half), strict=True)
  shares = [region_by_hand(x.pixels[b], x.words[b, w], x.half[b, w])[0] for b, w in places]
  return np.mean(-np.log(0.01 + 0.99 * np.array(shares)))


def swapped(x):
  """The batch with other words where it names a side."""
  words = np.random.default_rng(2).normal(size=x.words.shape).astype(np.float32)
  return x._replace(swapped=SwappedWords(jnp.asarray(words), -x.half))


@pytest.mark.parametrize("size", [2, 4, 5])
def test_equals_the_sum_by_hand(size):
  x = sized(size)
  np.testing.assert_allclose(side_losses(x, STAGE, SIDES)["side"], by_hand(x), rtol=1e-5)


def test_without_sides_it_is_zero_and_has_no_gradient():
  x = sized(4, np.zeros_like(HALF))

  def loss(pixels):
    return side_losses(x._replace(pixels=pixels), STAGE, SIDES)["side"]

  value, gradient = jax.value_and_grad(loss)(x.pixels)
  assert value == 0
  assert not gradient.any()


def test_it_is_a_part_of_the_objective():
  x = sized(4)
  without, _ = objective(x, STAGE, ALIGNMENT)
  total, parts = objective(x, STAGE, dataclasses.replace(SIDES, side_weight=0.5))
  np.testing.assert_allclose(total, without + 0.5 * by_hand(x), rtol=1e-5)
  np.testing.assert_allclose(parts["loss_side"], by_hand(x), rtol=1e-5)


@pytest.mark.parametrize("size", [2, 5])
def test_exchanged_sides_fit_less_and_lie_in_the_other_half(size):
  x = swapped(sized(size))
  contrasts, moves = [], []
  for b, w in zip(*np.nonzero(x.half), strict=True):
    _, own = region_by_hand(x.pixels[b], x.words[b, w], x.half[b, w])
    share, other = region_by_hand(x.pixels[b], x.swapped.words[b, w], -x.half[b, w])
    contrasts.append(np.log1p(np.exp(x.local_scale * (other - own))))
    moves.append(-np.log(0.01 + 0.99 * min(share / 0.55, 1)))
  losses = side_losses(x, STAGE, SIDES)
  np.testing.assert_allclose(losses["side"], by_hand(x), rtol=1e-5)
  np.testing.assert_allclose(losses["swap"], np.mean(contrasts), rtol=1e-5)
  np.testing.assert_allclose(losses["move"], np.mean(moves), rtol=1e-5)
  weights = {"side_weight": 0.5, "swap_weight": 2.0, "move_weight": 0.25}
  without, _ = objective(x, STAGE, ALIGNMENT)
  total, parts = objective(x, STAGE, dataclasses.replace(SIDES, **weights))
  want = without + 0.5 * losses["side"] + 2 * losses["swap"] + 0.25 * losses["move"]
  np.testing.assert_allclose(total, want, rtol=1e-5)
  assert {"loss_side", "loss_swap", "loss_move"} <= set(parts)


def test_a_region_that_has_moved_is_pulled_no_further():
  x = swapped(sized(4))
  right = jnp.asarray(np.tile([-1.0, -1.0, 1.0, 1.0], 4)[:, None], jnp.float32)
  pixels = jnp.zeros_like(x.pixels[0]).at[:, :1].set(right)

  def move(sign, half):
    words = jnp.full_like(x.words, 0).at[..., 0].set(sign)
    y = x._replace(pixels=jnp.tile(pixels, (4, 1, 1)), half=jnp.full_like(x.half, -half))
    y = y._replace(swapped=SwappedWords(words, jnp.full_like(x.half, half)))
    return side_losses(y, STAGE, SIDES)["move"]

  assert move(1.0, 1) == 0
  assert move(-1.0, 1) > 1


def test_swaps_without_a_side_are_zero_and_have_no_gradient():
  x = swapped(sized(4, np.zeros_like(HALF)))

  def loss(words):
    y = x._replace(swapped=SwappedWords(words, x.swapped.half))
    losses = side_losses(y, STAGE, SIDES)
    return losses["swap"] + losses["move"]

  value, gradient = jax.value_and_grad(loss)(x.swapped.words)
  assert value == 0 and not gradient.any()


def test_descent_moves_a_region_to_its_half():
  x = sized(4)
  words = x.words

  def side_of(words):
    return side_losses(x._replace(words=words), STAGE, SIDES)["side"]

  for _ in range(200):
    words -= 0.5 * jax.grad(side_of)(words)
  for b, w in zip(*np.nonzero(HALF), strict=True):
    image = SimpleNamespace(pixels=x.pixels[b], features=x.pixels[b])
    text = SimpleNamespace(words=words[b])
    weight = plan.attend(image, text, STAGE, SIDES).weight[w].reshape(4, 4).sum(0)
    left, right = weight[:2].sum(), weight[2:].sum()
    assert (right > left) == (HALF[b, w] == 1)


def test_a_grid_that_is_not_square_is_refused():
  x = sized(4)
  with pytest.raises(ValueError, match="square grid, not 15 pixels"):
    side_losses(x._replace(pixels=x.pixels[:, :15]), STAGE, SIDES)
