"""Regions that grow along the image."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from plan_jax.alignment.methods.base import Alignment
from plan_jax.alignment.methods.plan import smoothed
from plan_jax.alignment.spread import Diffusion, smooth, spread

DIFFUSION = Diffusion(steps=3, tau=0.2, radius_fraction=0.25)


def case(size=4, words=3, channels=5):
  rng = np.random.default_rng(0)
  weight = rng.dirichlet(np.ones(size * size), words)
  features = rng.normal(size=(size * size, channels))
  return jnp.asarray(weight, jnp.float32), jnp.asarray(features, jnp.float32)


def by_hand(weight, features, diffusion):
  """Pixel by pixel, step by step."""
  step = step_by_hand(features, diffusion)
  spread_out = np.asarray(weight, np.float64)
  for _ in range(diffusion.steps):
    spread_out = spread_out @ step.T
  return spread_out * np.asarray(weight).sum(1, keepdims=True) / spread_out.sum(1, keepdims=True)


def step_by_hand(features, diffusion):
  count = len(features)
  size = int(count**0.5)
  x = np.asarray(features, np.float64)
  x -= x.mean(0)
  step = np.zeros((count, count))
  for p in range(count):
    for q in range(count):
      cosine = x[p] @ x[q] / np.linalg.norm(x[p]) / np.linalg.norm(x[q])
      apart = np.hypot(p // size - q // size, p % size - q % size) / size
      step[p, q] = np.exp(cosine / diffusion.tau - apart**2 / (2 * diffusion.radius_fraction**2))
    step[p] /= step[p].sum()
  return step


@pytest.mark.parametrize("size", [1, 4, 5])
def test_equals_the_diffusion_by_hand(size):
  weight, features = case(size)
  if size == 1:  # a pixel alone is its image's mean
    np.testing.assert_allclose(spread(weight, features, DIFFUSION), weight, rtol=1e-6)
    return
  np.testing.assert_allclose(
    jax.jit(spread, static_argnums=2)(weight, features, DIFFUSION),
    by_hand(weight, features, DIFFUSION),
    rtol=1e-4,
  )


def test_a_finer_grid_spreads_what_is_interpolated():
  weight, features = case()[0], case(8)[1]
  line = np.minimum(np.arange(8) / 2, 3)  # the first pixels lie on each other
  rows = np.stack([np.interp(line, np.arange(4), unit) for unit in np.eye(4)], 1)
  fine = np.einsum("yi,wij,xj->wyx", rows, np.asarray(weight).reshape(3, 4, 4), rows)
  fine = fine.reshape(3, -1)
  got = spread(weight, features, DIFFUSION)
  assert got.shape == (3, 64)
  want = by_hand(fine, features, DIFFUSION)
  np.testing.assert_allclose(got, want / want.sum(1, keepdims=True), rtol=1e-4)


def test_the_sum_of_each_region_stays():
  weight, features = case()
  weight = weight.at[1].set(0)  # of padding
  got = spread(weight, features.astype(jnp.float16), DIFFUSION)
  np.testing.assert_allclose(got.sum(-1), [1, 0, 1], atol=1e-6)
  assert (np.asarray(got) >= 0).all()


def test_a_region_fills_what_looks_alike_and_stops_at_its_edge():
  inside = np.zeros((8, 8), bool)
  inside[2:6, 2:7] = True
  features = jnp.where(inside.reshape(-1, 1), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
  weight = jnp.zeros((1, 64)).at[0, 3 * 8 + 3].set(1)
  got = np.asarray(spread(weight, features, Diffusion(30, 0.1, 0.2))).reshape(8, 8)
  assert got[inside].sum() > 0.99
  assert got[inside].min() > 0.5 / inside.sum()


def test_features_that_are_all_alike_leave_the_distance():
  weight, features = case()
  got = spread(weight, jnp.ones_like(features), DIFFUSION)
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


def test_a_grid_that_is_not_square_is_refused():
  weight, features = case()
  with pytest.raises(ValueError, match="square grid, not 15 pixels"):
    spread(weight[:, :15], features[:15], DIFFUSION)


def test_pixels_are_means_over_what_looks_alike():
  _, features = case()
  pixels = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32)
  step = step_by_hand(features, DIFFUSION)
  want = np.linalg.matrix_power(step, DIFFUSION.steps) @ pixels
  got = jax.jit(smooth, static_argnums=2)(jnp.asarray(pixels), features, DIFFUSION)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  same = jnp.ones((16, 6))
  np.testing.assert_allclose(smooth(same, features, DIFFUSION), same, rtol=1e-6)


@pytest.mark.parametrize(("coarse", "fine"), [(4, 8), (3, 8), (5, 7)])
def test_pixels_take_the_mean_of_finer_features_round_them(coarse, fine):
  _, features = case(fine)
  pixels = np.random.default_rng(1).normal(size=(coarse**2, 6)).astype(np.float32)
  place = np.minimum(np.arange(fine) * coarse / fine, coarse - 1)
  weight = np.maximum(1 - np.abs(place[:, None] - np.arange(coarse)), 0)
  weight /= weight.sum(0)
  square = np.asarray(features).reshape(fine, fine, -1)
  reduced = np.einsum("yi,yxc,xj->ijc", weight, square, weight).reshape(coarse**2, -1)
  want = smooth(jnp.asarray(pixels), jnp.asarray(reduced, jnp.float32), DIFFUSION)
  got = smooth(jnp.asarray(pixels), features, DIFFUSION)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert np.abs(np.asarray(got) - pixels).max() > 0.1


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_a_pixel_keeps_a_share_of_itself(share):
  _, features = case()
  pixels = jnp.asarray(np.random.default_rng(1).normal(size=(16, 6)), jnp.float32)
  image = SimpleNamespace(pixels=pixels[None], features=features[None])
  settings = base.get_config().alignment.to_dict() | {
    "smooth_steps": 3,
    "spread_radius_fraction": 0.25,
  }
  means = np.asarray(smooth(pixels, features, DIFFUSION))
  unit, mean = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (pixels, means))
  want = means if share == 1 else share * mean + (1 - share) * unit
  (got,) = smoothed(image, Alignment(**settings | {"smooth_share": share}))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert smoothed(image, Alignment(**settings | {"smooth_steps": 0})) is image.pixels


def test_smoothing_needs_square_grids():
  _, features = case()
  with pytest.raises(ValueError, match="square grid, not 15 pixels"):
    smooth(jnp.ones((15, 2)), features, DIFFUSION)
