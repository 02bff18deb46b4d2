import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.alignment import losses, pairwise
from plan_jax.training.gradient_cache import value_and_gradient

B = 16


def parts():
  rng = np.random.default_rng(0)
  batch = {"x": rng.normal(size=(B, 5)), "y": rng.normal(size=(B, 5)), "n": np.arange(B)}
  params = {"a": rng.normal(size=(5, 3)), "b": rng.normal(size=(5, 3)), "scale": np.array(2.0)}
  return jax.tree.map(jnp.asarray, (batch, params))


def encode(params, stats, batch, key):
  features = {"v": jnp.tanh(batch["x"] @ params["a"]), "t": jnp.tanh(batch["y"] @ params["b"])}
  return features, stats + batch["x"].sum()


def loss(features, params, batch):
  index = batch["n"].astype(jnp.int32)
  keys = pairwise.Keys(index, index + 1, index, jnp.ones(B, bool))
  logits = params["scale"] * (features["v"] @ features["t"].T)
  terms = pairwise.contrast_terms(logits, logits[..., None][..., :0], keys)
  total = losses.info_nce(terms, keys.valid)
  return total[0].sum(), {"loss": total[0].sum()}


def run(count, batch, params, encode=encode):
  return jax.jit(
    lambda params, batch: value_and_gradient(
      encode, loss, params, jnp.zeros(()), batch, jax.random.key(0), count
    )
  )(params, batch)


@pytest.mark.parametrize("count", [2, 8])
def test_micro_batches_give_the_gradient_of_the_whole(count):
  with jax.enable_x64():
    batch, params = parts()
    want, got = run(1, batch, params), run(count, batch, params)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_on_a_mesh_each_device_keeps_its_share():
  with jax.enable_x64():
    batch, params = parts()
    want = run(1, batch, params)
    mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:4]), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    split = jax.NamedSharding(mesh, jax.P("data"))
    got = run(2, jax.tree.map(lambda x: jax.device_put(x, split), batch), params)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_both_passes_draw_the_same_dropout():
  """Else the gradient would not be that of the loss: checked against differences."""

  def noisy(params, stats, batch, key):
    features, stats = encode(params, stats, batch, key)
    return jax.tree.map(lambda x: x * jax.random.bernoulli(key, 0.5, x.shape), features), stats

  with jax.enable_x64():
    batch, params = parts()
    _, gradient = run(4, batch, params, noisy)
    h = 1e-6
    sides = [
      run(4, batch, params | {"a": params["a"].at[1, 2].add(d)}, noisy)[0][0]["loss"]
      for d in (h, -h)
    ]
    sides = [float(side) for side in sides]
  np.testing.assert_allclose(gradient["a"][1, 2], (sides[0] - sides[1]) / (2 * h), rtol=1e-6)


def test_memory_is_that_of_a_micro_batch():
  """Activations a hundred times as wide as the features."""

  def wide(params, stats, batch, key):
    x = batch["x"] @ params["a"]
    for _ in range(4):
      x = jnp.sin(jnp.tile(x, (1, 20))) @ jnp.ones((60, 3))
    return {"v": x, "t": batch["y"] @ params["b"]}, stats

  def held(count, size):
    batch = {"x": jax.ShapeDtypeStruct((size, 5), jnp.float32)}
    batch |= {"y": batch["x"], "n": jax.ShapeDtypeStruct((size,), jnp.int32)}
    params = {"a": jax.ShapeDtypeStruct((5, 3), jnp.float32)}
    params |= {"b": params["a"], "scale": jax.ShapeDtypeStruct((), jnp.float32)}

    def total(features, params, batch):
      return sum(jnp.square(x).sum() for x in features.values()), {}

    def f(params, batch):
      return value_and_gradient(wide, total, params, jnp.zeros(()), batch, jax.random.key(0), count)

    return jax.jit(f).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

  assert held(16, 4096) < held(1, 4096) / 3
