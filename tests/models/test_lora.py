"""Low-rank updates of a ViT: what they compute, what learns, and what that costs."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from plan_jax.models import freezing, lora
from plan_jax.models.vit import ViT
from tiny_runs import tiny

SIZES = dict(embed_dim=24, depth=5, num_heads=3, mlp_dim=48, patch_px=8, grid=4)
IMAGE = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
NAMES = {f"lora_{name}_{factor}" for name in ("query", "value") for factor in "ab"}
FREEZE = ("^image_encoder/",)


def made(**more):
  model = ViT(**SIZES | more)
  return model, jax.device_get(jax.jit(model.init)(jax.random.key(0), IMAGE)["params"])


def updates(params):
  return {path: x for path, x in flatten_dict(params).items() if path[-1] in NAMES}


def learned(params):
  """The parameters with other updates, as after training."""
  rng = np.random.default_rng(0)
  values = {
    path: 0.3 * rng.standard_normal(x.shape, x.dtype) for path, x in updates(params).items()
  }
  return unflatten_dict(flatten_dict(params) | values)


@pytest.mark.parametrize(
  ("layers", "count", "blocks"),
  [((), 2, {4, 5}), ((3,), 2, {2, 3}), ((3, 1), 3, {1, 2, 3}), ((), 5, {1, 2, 3, 4, 5})],
)
def test_the_last_blocks_that_are_run_have_updates(layers, count, blocks):
  _, params = made(layers=layers, lora_rank=4, lora_blocks=count)
  assert set(updates(params)) == {(f"block{n}", name) for n in blocks for name in NAMES}
  for (_, name), x in updates(params).items():
    assert x.shape == ((24, 4) if name.endswith("a") else (4, 24))
    assert x.any() == name.endswith("a")
    if name.endswith("a"):
      assert abs(x.std() * 24**0.5 - 1) < 0.35  # five times the error of 96 numbers


@pytest.mark.parametrize("remat", ["none", "blocks", "all_but_products"])
def test_the_start_is_the_base_to_the_bit(remat):
  base, params = made()
  model, more = made(lora_rank=3, lora_blocks=2, remat=remat)
  assert {path for path in flatten_dict(more)} - {path for path in flatten_dict(params)}
  for path, x in flatten_dict(params).items():
    np.testing.assert_array_equal(flatten_dict(more)[path], x)
  np.testing.assert_array_equal(
    model.apply({"params": more}, IMAGE), base.apply({"params": params}, IMAGE)
  )


@pytest.mark.parametrize("variant", ["dinov2", "dinov3", "siglip"])
def test_merged_is_a_plain_encoder(variant):
  base, params = made(variant=variant)
  model, more = made(variant=variant, lora_rank=3, lora_blocks=2)
  more = learned(more)
  plain = lora.merged(more)
  assert jax.tree.structure(plain) == jax.tree.structure(params)
  changed = set()
  for path, x in flatten_dict(plain).items():
    want = flatten_dict(params)[path]
    if path[0] in ("block4", "block5") and path[1] in ("query", "value") and path[2] == "kernel":
      a, b = (more[path[0]][f"lora_{path[1]}_{factor}"] for factor in "ab")
      want = want + np.einsum("cr,rd->cd", a, b)
      changed.add(path)
    np.testing.assert_allclose(x, want, atol=1e-6)
  assert len(changed) == 4
  want = model.apply({"params": more}, IMAGE)
  np.testing.assert_allclose(base.apply({"params": plain}, IMAGE), want, atol=1e-5)
  assert np.abs(want - base.apply({"params": params}, IMAGE)).max() > 1e-2


def loss_of(model):
  weight = np.random.default_rng(2).normal(size=24)  # else a norm's output has the same square

  def loss(params):
    params = freezing.without_gradient(params, FREEZE)
    return (model.apply({"params": params["image_encoder"]}, IMAGE) @ weight).sum()

  return loss


def test_only_updates_learn_where_the_encoder_is_frozen():
  model, params = made(lora_rank=3, lora_blocks=2)
  params = {"image_encoder": learned(params)}
  labels = flatten_dict(freezing.labels(params, FREEZE))
  for path, x in flatten_dict(jax.grad(loss_of(model))(params)).items():
    assert x.any() == (path[-1] in NAMES) == (labels[path] == "learned"), path


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_no_backward_pass_goes_below_the_first_update(remat):
  """Each further block costs its backward pass; blocks without updates cost none."""

  def flops(function, params):
    analysis = jax.jit(function).lower(params).compile().cost_analysis()
    return analysis["flops"]

  cost = []
  for count in (1, 2, 5):
    model, params = made(lora_rank=2, lora_blocks=count, remat=remat)
    params = {"image_encoder": params}
    cost.append(flops(jax.grad(loss_of(model)), params) - flops(loss_of(model), params))
  step = cost[1] - cost[0]
  assert cost[0] < 1.2 * step
  np.testing.assert_allclose(cost[2] - cost[1], 3 * step, rtol=0.05)


def test_rates_of_updates_are_those_of_their_block():
  _, params = made(lora_rank=2, lora_blocks=2)
  train = tiny().train
  train.update(image_rate=0.5, layer_decay=0.5)
  rates = freezing.rates({"image_encoder": params}, train)["image_encoder"]
  for number in (4, 5):
    block = rates[f"block{number}"]
    assert (
      {block[name] for name in NAMES} == {block["query"]["kernel"]} == {0.5 * 0.5 ** (6 - number)}
    )


def test_a_pattern_of_updates_freezes_nothing():
  _, params = made(lora_rank=2, lora_blocks=2)
  with pytest.raises(ValueError, match="'lora_' is in no parameter's path, but for low-rank"):
    freezing.check({"image_encoder": params}, ("lora_",))
  freezing.check({"image_encoder": params}, FREEZE)
