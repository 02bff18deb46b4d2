from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.models.bert import Bert
from plan_jax.models.layers.attention import attend, attend_even_length, flash_fits
from plan_jax.models.layers.batch_norm import BatchNorm
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.layers.remat import REMAT, remat
from plan_jax.models.resnet import FIRST_PX, NORMS, Bottleneck, ResNet, max_pool
from plan_jax.models.two_towers import TwoTowers, bounded, build, image_encoder
from plan_jax.models.vit import ViT, interpolate, patches
from tiny_runs import tiny

KEY = jax.random.key(0)
SMALL_IMAGE = dict(depth=18, width=0.125, stages=3, output_stride=8, dilated=False, norm="channel")
SMALL_TEXT = dict(
  vocabulary_size=40, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, max_position=32, dropout=0.0
)
SMALL_VIT = dict(embed_dim=16, depth=2, num_heads=2, mlp_dim=32, patch_px=16, grid=4)


@pytest.mark.parametrize("side", [8, 9])
def test_max_pool_equals_flax(side):
  x = jax.random.normal(KEY, (2, side, side + 2, 3))
  np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1)] * 2))


@pytest.mark.parametrize(
  ("depth", "stride", "stages", "channels"),
  [(18, 8, 4, 64), (34, 16, 4, 64), (50, 32, 4, 256), (50, 8, 3, 128), (18, 8, 2, 16)],
)
@pytest.mark.parametrize("norm", NORMS)
def test_resnet_shapes(depth, stride, stages, channels, norm):
  net = ResNet(depth, 0.125, stages, stride, True, norm)
  x = jnp.zeros((1, 64, 96, 1))
  shape = jax.eval_shape(lambda: net.init_with_output(KEY, x, train=True)[0]).shape
  assert shape == (1, 64 // stride, 96 // stride, channels)


def test_dilation_keeps_the_receptive_field():
  """Pixels of stride 32 are among those of stride 8 with dilation, with the same weights."""
  coarse = ResNet(18, 0.125, 4, 32, True, "channel")
  fine = ResNet(18, 0.125, 4, 8, True, "channel")
  x = jax.random.normal(KEY, (1, 256, 256, 1))
  variables = jax.tree.map(lambda p: p + 0.1, coarse.init(KEY, x))
  a, b = coarse.apply(variables, x), fine.apply(variables, x)
  assert b.shape[1] == 4 * a.shape[1]
  np.testing.assert_allclose(a[:, 3:5, 3:5], b[:, 12:20:4, 12:20:4], rtol=1e-4, atol=1e-4)


def receptive(net):
  """Counts the image columns that the gradient of one pixel reaches."""
  x = jax.random.normal(KEY, (1, 256, 256, 1))
  variables = jax.tree.map(lambda p: p + 0.02, net.init(KEY, x))
  gradient = jax.grad(lambda x: net.apply(variables, x)[0, 16, 16].sum())(x)
  return int((np.abs(gradient[0, :, :, 0]).sum(0) > 0).sum())


def test_undilated_stages_bound_the_receptive_field():
  near = receptive(ResNet(18, 0.125, 2, 8, False, "channel"))
  far = receptive(ResNet(18, 0.125, 3, 8, False, "channel"))
  assert near == 99 and far == 163
  assert receptive(ResNet(18, 0.125, 3, 8, True, "channel")) > far


def test_batch_norm_keeps_running_statistics():
  net = ResNet(18, 0.125, 2, 8, False, "batch")
  x = jax.random.normal(KEY, (4, 32, 32, 1))
  variables = net.init(KEY, x)
  _, mutated = net.apply(variables, x, train=True, mutable=["batch_stats"])
  before, after = variables["batch_stats"], mutated["batch_stats"]
  assert not np.allclose(before["stem_norm"]["var"], after["stem_norm"]["var"])
  still = net.apply(variables, x)
  assert np.isfinite(still).all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_of_products(masked):
  q, k, v = jax.random.normal(KEY, (3, 2, 5, 3, 4))
  mask = jnp.arange(5) < 3
  result = attend(q, k, v, jnp.broadcast_to(mask, (2, 1, 5, 5)) if masked else None)
  logits = jnp.einsum("blhc,bmhc->bhlm", q, k) / 2
  weight = jax.nn.softmax(jnp.where(mask | (not masked), logits, -jnp.inf))
  np.testing.assert_allclose(result, jnp.einsum("bhlm,bmhc->blhc", weight, v), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masks", [0, 1, 3])
def test_attention_and_its_gradient_equal_jax_nns(masks, dtype):
  parts = jax.random.normal(KEY, (3, 2, 7, 3, 8), dtype) * 2  # products of ten and more
  mask = jax.random.bernoulli(KEY, 0.5, (2, masks, 7, 7)).at[0, :, 2].set(False)  # nowhere
  mask = mask if masks else None

  def value(function, parts):
    def loss(parts):
      return jnp.sin(function(*parts, mask=mask).astype(jnp.float32)).sum()

    return jax.value_and_grad(loss)(parts)

  want = value(jax.nn.dot_product_attention, parts.astype(jnp.float32))
  within = 1e-5 if dtype == "float32" else 3e-2
  for a, b in zip(value(attend, parts), want, strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=within, atol=within * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_gradient_equal_flax(dtype):
  x = jnp.linspace(-12, 12, 1001).astype(dtype)
  want, slope = jax.vmap(jax.value_and_grad(partial(nn.gelu, approximate=False)))(
    x.astype(jnp.float32)
  )
  result, gradient = jax.vmap(jax.value_and_grad(gelu))(x)
  assert result.dtype == gradient.dtype == jnp.dtype(dtype)
  within = 1e-6 if dtype == "float32" else 8e-3
  for a, b in ((result, want), (gradient, slope)):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=within, atol=within)


@pytest.mark.parametrize("length", [4, 5, 1])
def test_a_place_added_to_the_attention_changes_nothing(length):
  """Goes by XLA's attention, which reads the same lengths as cuDNN's does."""
  parts = jax.random.normal(KEY, (3, 2, length, 2, 4))

  def value(function):
    return jax.value_and_grad(lambda parts: jnp.sin(function(*parts)).sum())(parts)

  got = value(lambda *parts: attend_even_length(*parts, implementation="xla"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, value(attend))


@pytest.mark.parametrize(
  ("dtype", "size", "capability", "fits"),
  [
    ("bfloat16", 64, "9.0", True),
    ("float16", 128, "8.0", True),
    ("float32", 64, "9.0", False),
    ("bfloat16", 12, "9.0", False),
    ("bfloat16", 256, "9.0", False),
    ("bfloat16", 64, "7.5", False),
    ("bfloat16", 64, "gfx942", False),
    ("bfloat16", 64, None, False),
  ],
)
def test_flash_attention_is_for_devices_that_have_it(dtype, size, capability, fits):
  device = SimpleNamespace(compute_capability=capability)
  assert flash_fits(jnp.dtype(dtype), size, device) == fits
  assert not flash_fits(jnp.dtype(dtype), size, jax.devices()[0])


def test_patches_and_a_dot_are_a_convolution():
  x = jax.random.normal(KEY, (2, 12, 8, 3))
  kernel = jax.random.normal(KEY, (4, 4, 3, 5))
  want = jax.lax.conv_general_dilated(
    x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(patches(x, 4) @ kernel.reshape(-1, 5), want, atol=1e-5)


def test_interpolated_positions_keep_what_is_constant_and_their_place():
  position = jnp.broadcast_to(jnp.arange(6.0)[:, None, None], (6, 6, 2))
  assert interpolate(position, 6, 6) is position
  wide = interpolate(position, 12, 9)
  assert wide.shape == (12, 9, 2)
  np.testing.assert_allclose(wide[4:8, :, 0].mean(1), [1.75, 2.25, 2.75, 3.25], atol=1e-5)
  np.testing.assert_allclose(jnp.diff(wide, axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (96, 32)])
def test_vit_gives_a_grid_for_any_size(shape):
  net = ViT(**SMALL_VIT)
  variables = net.init(KEY, jnp.zeros((1, 64, 64, 1)))
  grid = net.apply(variables, jax.random.uniform(KEY, (2, *shape, 1)), train=True)
  assert grid.shape == (2, shape[0] // 16, shape[1] // 16, 16) and np.isfinite(grid).all()


def test_vit_tells_patches_from_their_places():
  """Images that swap two patches: the same but for the positions."""
  net = ViT(**SMALL_VIT)
  x = jax.random.uniform(KEY, (1, 64, 64, 1))
  swapped = x.at[:, :16, :16].set(x[:, 48:, 48:]).at[:, 48:, 48:].set(x[:, :16, :16])
  variables = net.init(KEY, x)
  a, b = net.apply(variables, x), net.apply(variables, swapped)
  assert np.abs(a[0, 0, 0] - b[0, 3, 3]).max() > 1e-4
  params = variables["params"]
  blind = {"params": params | {"position_embedding": 0 * params["position_embedding"]}}
  a, b = net.apply(blind, x), net.apply(blind, swapped)
  np.testing.assert_allclose(a[0, 0, 0], b[0, 3, 3], atol=1e-5)
  np.testing.assert_allclose(a[0, 1, 1], b[0, 1, 1], atol=1e-5)


@pytest.mark.parametrize("net", [ResNet(18, 0.125, 2, 8, False), ViT(**SMALL_VIT)])
def test_colour_channels_repeat_the_image(net):
  """Three equal channels and a first kernel of a third each: the same as one."""
  x = jax.random.uniform(KEY, (1, 64, 64, 1))
  colour = net.clone(mean=(0.5,) * 3, std=(0.25,) * 3)
  variables = net.init(KEY, x)
  params = jax.tree.map(lambda p: p, variables["params"])
  if isinstance(net, ViT):
    kernel = params["patch_embedding"]["kernel"]
    spread = jnp.repeat(kernel.reshape(16, 16, 1, -1), 3, 2) / 3
    params["patch_embedding"]["kernel"] = spread.reshape(-1, kernel.shape[-1])
  else:
    params["stem"]["kernel"] = jnp.repeat(params["stem"]["kernel"], 3, 2) / 3
  shapes = jax.tree.map(jnp.shape, colour.init(KEY, x)["params"])
  assert jax.tree.map(jnp.shape, params) == shapes
  np.testing.assert_allclose(
    colour.apply(variables | {"params": params}, x), net.apply(variables, x), atol=1e-4
  )


def test_the_config_names_the_image_encoder():
  config = tiny()
  assert image_encoder(config.model.image).output_stride == 8
  config.model.image.name = "vit"
  encoder = image_encoder(config.model.image)
  assert encoder == ViT(192, 6, 3, 768, 16, 8) and encoder.output_stride == 16
  assert encoder.first_px is None and ResNet.first_px == FIRST_PX
  config.model.image.vit.update(SMALL_VIT)
  model = build(config.model, 40)
  batch = small_batch()
  features = model.apply(model.init(KEY, batch), batch)[0]
  assert features.pixels.shape == (3, 16, 8)


def test_a_text_can_be_the_sum_of_layers():
  sentence = text_batch([[0, 0, 0, 0]])
  nets = [Bert(**SMALL_TEXT | {"depth": n}) for n in (1, 2)]
  variables = nets[1].init(KEY, *sentence)
  params = variables["params"]
  one = {"params": {k: v for k, v in params.items() if k != "layer2"}}
  both = nets[0].apply(one, *sentence) + nets[1].apply(variables, *sentence)
  summed = nets[1].clone(last_layers=2).apply(variables, *sentence)
  np.testing.assert_allclose(summed, both, atol=1e-6)


def test_projectors_change_the_width_alone():
  x = jnp.zeros((1, 64, 64, 1))
  for net, args in (
    (ResNet(18, 0.125, 2, 8, False, projector=24), (x,)),
    (Bert(**SMALL_TEXT, projector=24), text_batch([[0, 0, 0]])),
  ):
    assert net.init_with_output(KEY, *args)[0].shape[-1] == 24


def text_batch(sentence_index):
  sentence_index = jnp.asarray(sentence_index, jnp.int32)
  tokens = jnp.arange(5, 5 + sentence_index.size, dtype=jnp.int32).reshape(sentence_index.shape)
  position = jnp.zeros_like(sentence_index) + jnp.arange(sentence_index.shape[1]) % 3
  return tokens, sentence_index, position


@pytest.mark.parametrize("across", [False, True])
def test_words_attend_to_other_sentences_only_if_set(across):
  net = Bert(**SMALL_TEXT, across_sentences=across)
  tokens, sentences, position = text_batch([[0, 0, 0, 1, 1, 1, -1, -1]])
  variables = net.init(KEY, tokens, sentences, position)
  before = net.apply(variables, tokens, sentences, position)
  after = net.apply(variables, tokens.at[0, 4].set(30), sentences, position)
  same = np.abs(before - after).max(-1)[0] < 1e-6
  assert same[:3].tolist() == [not across] * 3 and not same[3:6].any()


def test_padding_does_not_reach_words():
  for across in (False, True):
    net = Bert(**SMALL_TEXT, across_sentences=across)
    tokens, sentences, position = text_batch([[0, 0, 0, 1, 1, 1, -1, -1]])
    variables = net.init(KEY, tokens, sentences, position)
    a = net.apply(variables, tokens, sentences, position)
    b = net.apply(variables, tokens.at[0, 6:].set(7), sentences, position)
    np.testing.assert_allclose(a[0, :6], b[0, :6], atol=1e-6)


def small_batch():
  tokens, sentences, position = text_batch([[0, 0, 0, 1, 1, 1, -1, -1]] * 3)
  word_index = jnp.array([[-1, 0, 0, -1, 1, 2, -1, -1]] * 2 + [[-1] * 8])
  return {
    "image": jax.random.uniform(KEY, (3, 64, 64, 1)),
    "tokens": tokens,
    "sentence_index": sentences,
    "position": position,
    "word_index": word_index,
    "word_mask": jnp.array([[True, True, True, False]] * 2 + [[False] * 4]),
  }


@pytest.fixture(scope="module")
def towers():
  model = TwoTowers(image=SMALL_IMAGE, text=SMALL_TEXT, embed_dim=8)
  return model, model.init(KEY, small_batch())


def test_encoders(towers):
  model, variables = towers
  image, text, scales = model.apply(variables, small_batch())
  assert image.pixels.shape == (3, 64, 8) and image.embedding.shape == (3, 8)
  assert image.global_pixels.shape == (3, 64, 8)
  assert image.pixels.dtype == text.words.dtype == jnp.float32
  for x in (image.embedding, image.global_pixels, text.embedding[:2]):
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
    assert x.dtype == jnp.float32
  assert (np.asarray(text.words[:, 3]) == 0).all() and (
    np.asarray(text.significance[:, 3]) == 0
  ).all()
  np.testing.assert_allclose(text.significance[:2, :3], 0.5)
  np.testing.assert_allclose(text.attention, [[1 / 3] * 3 + [0]] * 2 + [[0] * 4], rtol=1e-5)
  np.testing.assert_allclose(scales, 10, rtol=1e-5)


def test_empty_report_is_zero_with_finite_gradient(towers):
  model, variables = towers
  text = model.apply(variables, small_batch())[1]
  assert (np.asarray(text.embedding[2]) == 0).all() and (np.asarray(text.words[2]) == 0).all()

  def f(variables):
    image, text, _ = model.apply(variables, small_batch())
    return (image.embedding @ text.embedding.T).sum() + text.words.sum()

  assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(f)(variables)))


def test_pixels_of_one_image_do_not_see_another(towers):
  model, variables = towers
  batch = small_batch()
  a = model.apply(variables, batch)[0]
  b = model.apply(variables, batch | {"image": batch["image"].at[1].set(0)})[0]
  np.testing.assert_allclose(a.pixels[0], b.pixels[0], atol=1e-6)
  assert np.abs(a.pixels[1] - b.pixels[1]).max() > 1e-3


def test_scales_are_bounded_and_can_come_back(towers):
  model, variables = towers
  params = bounded(variables["params"] | {"log_scale": jnp.array([9.0, -3.0])}, 100.0)

  def scales(params):
    return model.apply({"params": params}, method=model.scales)

  np.testing.assert_allclose(scales(params), [100, 1], rtol=1e-5)
  gradient = jax.grad(lambda params: scales(params).sum())(params)["log_scale"]
  assert (np.asarray(gradient) > 0).all()


def test_bfloat16_keeps_float32_parameters_and_features():
  model = TwoTowers(image=SMALL_IMAGE, text=SMALL_TEXT, embed_dim=8, dtype=jnp.bfloat16)
  variables = model.init(KEY, small_batch())
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
  image, text, _ = model.apply(variables, small_batch())
  assert image.pixels.dtype == text.words.dtype == jnp.float32
  full = TwoTowers(image=SMALL_IMAGE, text=SMALL_TEXT, embed_dim=8).apply(variables, small_batch())
  np.testing.assert_allclose(image.embedding, full[0].embedding, atol=0.06)
  assert np.abs(image.embedding - full[0].embedding).max() > 0


def test_a_pixel_is_centred_where_the_maps_put_it():
  """The image pixels that move a feature pixel lie about stride * index (FIRST_PX)."""
  net = ResNet(18, 0.125, 2, 8, False, "channel")
  x = jax.random.normal(KEY, (1, 128, 128, 1))
  variables = jax.tree.map(lambda p: p + 0.02, net.init(KEY, x))
  gradient = jax.grad(lambda x: net.apply(variables, x)[0, 8, 8].sum())(x)
  reached = np.nonzero(np.abs(gradient[0, :, :, 0]).sum(0))[0]
  assert (reached[0] + reached[-1]) / 2 == FIRST_PX + 8 * 8


@pytest.mark.parametrize(("name", "kept"), [("blocks", 0), ("all_but_products", 2)])
def test_what_a_rematerialised_block_keeps(name, kept, capsys):
  """Keeps a bottleneck's two products; the convolution between them is computed anew."""
  block = remat(Bottleneck, name)(4, 1, (1, 1), partial(BatchNorm, True), jnp.float32)
  x = jax.random.normal(KEY, (2, 8, 8, 16))
  variables = block.init(KEY, x)

  def out(params):
    return block.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0].sum()

  jax.ad_checkpoint.print_saved_residuals(out, variables["params"])
  lines = capsys.readouterr().out.splitlines()
  assert sum("named 'product'" in line for line in lines) == kept


@pytest.mark.parametrize(("name", "image"), [("resnet", SMALL_IMAGE), ("vit", SMALL_VIT)])
def test_rematerialised_encoders_give_the_same_gradients(name, image):
  batch = small_batch()
  text = SMALL_TEXT | {"dropout": 0.3}

  def gradients(policy):
    model = TwoTowers(image=image, text=text, image_name=name, embed_dim=8, remat=policy)
    variables = model.init(KEY, batch)
    call = dict(train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})

    def loss(params):
      (image, text, _), _ = model.apply(variables | {"params": params}, batch, **call)
      return jnp.square(image.pixels).sum() + jnp.sin(text.words).sum()

    return jax.tree_util.tree_leaves_with_path(jax.value_and_grad(loss)(variables["params"]))

  kept = gradients("none")
  for policy in [policy for policy in REMAT if policy != "none"]:
    for (path, a), (same, b) in zip(kept, gradients(policy), strict=True):
      assert path == same
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(path))
