"""What learns on top of a frozen image encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.models import freezing
from plan_jax.models.two_towers import build
from tiny_runs import tiny


def model_of(**more):
  settings = {"model.image.name": "vit", "model.image.vit.depth": 3, "model.image.vit.layers": (2,)}
  return build(tiny(**settings | more).model, 50)


def batch_of(side=64, words=6):
  rng = np.random.default_rng(0)
  names = ("tokens", "word_index", "sentence_index", "position")
  integers = dict.fromkeys(names, np.zeros((2, words), np.int32))
  mask = np.ones((2, words), bool)
  return {"image": rng.random((2, side, side, 1), np.float32), "word_mask": mask, **integers}


@pytest.mark.parametrize("depth", [0, 2])
def test_the_adapter_learns_and_the_frozen_encoder_does_not(depth):
  model, batch = model_of(**{"model.image.adapter": depth}), batch_of()
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  assert set(params.get("image_adapter", {})) == {f"block{i + 1}" for i in range(depth)}
  assert "block3" not in params["image_encoder"]

  def loss(params):
    params = freezing.without_gradient(params, ("^image_encoder/",))
    return (model.apply({"params": params}, batch)[0].pixels ** 2).mean()

  gradient = jax.jit(jax.grad(loss))(params)
  assert not any(x.any() for x in jax.tree.leaves(gradient["image_encoder"]))
  for name in ("pixel_head", *(["image_adapter"] if depth else [])):
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient[name]) if x.ndim > 1)


def test_an_adapter_lets_pixels_know_of_each_other():
  """Without one a pixel's feature is a function of the encoder's at that place alone."""
  batch = batch_of()
  changed = {}
  for depth in (0, 1):
    model = model_of(**{"model.image.adapter": depth, "model.image.vit.layers": (1,)})
    variables = jax.jit(model.init)(jax.random.key(0), batch)

    def features(grid, model=model, variables=variables):
      adapted = model.apply(variables, jnp.asarray(grid), method=lambda m, x: m.image_adapter(x))
      return np.asarray(adapted)

    grid = np.random.default_rng(0).normal(size=(1, 16, 192)).astype(np.float32)
    other = grid.copy()
    other[0, 3] += 1
    changed[depth] = np.abs(features(grid) - features(other)).max(-1)[0] > 0
  assert changed[0].sum() == 1 and changed[1].all()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_dark_patch_stays_without_features_behind_an_adapter(depth):
  """What it would take from the others differs from image to image."""
  dark = {"model.image.adapter": depth, "model.image.vit.dark_below_fraction": 0.15}
  model, batch = model_of(**dark), batch_of()
  batch["image"][:, :16, :16] = 0
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  pixels = np.asarray(model.apply(variables, batch["image"], method=model.embed_images).pixels)
  np.testing.assert_array_equal(pixels[0, 0], pixels[1, 0])
  assert np.abs(pixels[0, 1] - pixels[1, 1]).max() > 0
