"""Baselines against their published formulas, and the word attention of each method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch, choose_tile_mib
from plan_jax.alignment.methods.by_name import METHODS, pair_score
from plan_jax.alignment.methods.mgca import clipped_attention
from plan_jax.alignment.objective import objective
from plan_jax.models.two_towers import ImageFeatures, TextFeatures

B, P, W, D = 4, 9, 5, 6
ALIGNMENT = Alignment(
  method="plan",
  mask_positives=True,
  beta=5.0,
  word_weight=0.0,
  term_weight=0.0,
  side_weight=0.0,
  spread_steps=0,
  spread_tau=0.2,
  spread_radius_fraction=0.0625,
  dtype="float32",
  implementation="full",
  tile_images=3,
  tile_reports=2,
  tile_mib=1,
)
STAGE = curriculum.Stage("s", 0.0, 0.0, 1.0, 0.25)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


def case(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  words = np.where(MASK[..., None], rng.normal(size=(B, W, D)), 0)
  significance = np.where(MASK, rng.uniform(0.1, 0.9, (B, W)), 0)
  attention = np.where(MASK, rng.uniform(0.1, 0.9, (B, W)), 0)
  image, report = (oracle.l2_normalize(rng.normal(size=(B, D))) for _ in range(2))
  arrays = (rng.normal(size=(B, P, D)), image, words, report)
  return EmbeddedBatch(
    *(jnp.asarray(x, dtype) for x in arrays),
    mask=jnp.asarray(MASK),
    term=jnp.zeros_like(jnp.asarray(MASK)),
    half=jnp.zeros(MASK.shape, jnp.int32),
    significance=jnp.asarray(significance, dtype),
    attention=jnp.asarray(attention, dtype),
    report_key=jnp.array([1, 2, 3, 0]),
    study_key=jnp.arange(B),
    global_scale=jnp.asarray(3.0, dtype),
    local_scale=jnp.asarray(7.0, dtype),
  )


def local_loss(x, method, implementation="full"):
  return objective(
    x, STAGE, dataclasses.replace(ALIGNMENT, method=method, implementation=implementation)
  )[0]


def wanted(x, method):
  pixels, words, attention = (np.asarray(y) for y in (x.pixels, x.words, x.attention))
  if method == "gloria":
    z = oracle.gloria_scores(pixels, words, MASK)
    return oracle.info_nce(z, np.eye(B, dtype=bool), MASK.any(1))
  if method == "sparc":
    return oracle.sparc_loss(pixels, words, MASK, 7.0)
  return oracle.mgca_loss(pixels, words, MASK, attention)


@pytest.mark.parametrize("method", ["gloria", "sparc", "mgca"])
def test_baseline_losses_equal_their_published_formulas(method):
  with jax.enable_x64():
    x = case(dtype=jnp.float64)
    np.testing.assert_allclose(local_loss(x, method), wanted(x, method), rtol=1e-8)


def test_gloria_in_chunks_is_gloria():
  x = case()
  grads = [
    jax.grad(lambda v, e=e: local_loss(x._replace(pixels=v), "gloria", e))(x.pixels)
    for e in ("full", "chunked")
  ]
  np.testing.assert_allclose(grads[1], grads[0], atol=1e-5)
  assert np.abs(grads[0][:3]).max() > 1e-3


@pytest.mark.parametrize("method", ["gloria", "sparc", "mgca"])
def test_gradients_are_those_of_differences(method):
  with jax.enable_x64():
    x = case(dtype=jnp.float64)
    direction = np.random.default_rng(5).normal(size=(B, P, D))

    def f(step):
      return local_loss(x._replace(pixels=x.pixels + step * direction), method)

    h = 1e-6
    np.testing.assert_allclose(jax.grad(f)(0.0), (f(h) - f(-h)) / (2 * h), rtol=1e-4)


@pytest.mark.parametrize("method", ["gloria", "sparc", "mgca"])
@pytest.mark.parametrize("degenerate", ["all reports empty", "equal pixels", "zero features"])
def test_degenerate_inputs_keep_loss_and_gradients_finite(method, degenerate):
  x = case()
  if degenerate == "all reports empty":
    x = x._replace(mask=jnp.zeros_like(x.mask), words=0 * x.words, attention=0 * x.attention)
  elif degenerate == "equal pixels":
    x = x._replace(pixels=jnp.broadcast_to(x.pixels[:, :1], x.pixels.shape))
  else:
    x = x._replace(pixels=0 * x.pixels, words=0 * x.words)

  def f(pixels, words):
    return local_loss(x._replace(pixels=pixels, words=words), method)

  loss, gradients = jax.value_and_grad(f, (0, 1))(x.pixels, x.words)
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in gradients)
  if degenerate == "all reports empty":
    assert loss == 0


def test_the_words_of_padding_change_nothing():
  x = case()
  noise = jnp.where(x.mask[..., None], x.words, 17.0)
  for method in ("gloria", "sparc", "mgca"):
    np.testing.assert_allclose(
      local_loss(x, method), local_loss(x._replace(words=noise), method), rtol=1e-5
    )


def test_mgca_s_weights_pass_no_gradient_and_sum_to_one():
  x = case()
  weight = clipped_attention(x.attention, x.mask)
  np.testing.assert_allclose(weight.sum(-1), [1, 1, 1, 0], rtol=1e-6)
  assert (np.asarray(weight)[~MASK] == 0).all()
  gradient = jax.grad(lambda s: local_loss(x._replace(attention=s), "mgca"))(x.attention)
  assert (np.asarray(gradient) == 0).all()


def attend(method, stage=STAGE):
  rng = np.random.default_rng(2)
  x = case()
  image = ImageFeatures(
    x.pixels[0],
    x.image_embedding[0],
    jnp.asarray(oracle.l2_normalize(rng.normal(size=(P, D)))),
    features=x.pixels[0],
  )
  text = TextFeatures(x.words[1], x.mask[1], x.significance[1], x.attention[1], x.text_embedding[1])
  alignment = dataclasses.replace(ALIGNMENT, method=method)
  return image, text, METHODS[method].attend(image, text, stage, alignment)


@pytest.mark.parametrize("method", list(METHODS))
def test_regions_of_words(method):
  _, _, attention = attend(method)
  weight, similarity = (np.asarray(x)[:3] for x in attention)
  assert attention.weight.shape == attention.similarity.shape == (W, P)
  if method in ("gloria", "mgca"):
    np.testing.assert_array_equal(weight, np.maximum(similarity, 0))
  else:
    assert (weight >= 0).all()
    np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-5)


def test_global_only_grounds_by_the_text_embedding_alone():
  image, text, attention = attend("none")
  want = np.asarray(image.global_pixels) @ np.asarray(text.embedding)
  assert (want < 0).any()
  for row in np.asarray(attention.similarity):
    np.testing.assert_allclose(row, want, rtol=1e-5, atol=1e-6)
  for row in np.asarray(attention.weight):
    np.testing.assert_allclose(row, oracle.soft_region(want, 0.2), rtol=1e-4)


@pytest.mark.parametrize(
  ("memory_bytes", "mib"),
  [
    (None, 32),  # a CPU
    (16 * 2**30, 1024),
    (95 * 2**30, 4096),
    (63_879_000_000, 2048),  # three quarters of 80 GB
    (2**32 - 1, 128),
    (2**20, 32),
  ],
)
def test_the_memory_for_a_tile_is_a_sixteenth_of_the_devices(memory_bytes, mib):
  assert choose_tile_mib(memory_bytes) == mib
  chosen = dataclasses.replace(ALIGNMENT, tile_mib=0).with_tile_mib(memory_bytes)
  assert chosen == dataclasses.replace(ALIGNMENT, tile_mib=mib)


def test_memory_that_is_given_stays():
  assert ALIGNMENT.with_tile_mib(2**40) is ALIGNMENT


def test_nothing_is_chosen_while_a_program_is_traced():
  with pytest.raises(ValueError, match="tile_mib: is 0"):
    objective(case(), STAGE, dataclasses.replace(ALIGNMENT, tile_mib=0, implementation="chunked"))


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_without_a_local_loss_scores_no_pairs(method):
  alignment = dataclasses.replace(ALIGNMENT, method=method)
  assert (pair_score(alignment, STAGE) is not None) == (method in ("plan", "gloria"))
  stage = dataclasses.replace(STAGE, global_weight=1.0, local_weight=0.0)
  assert pair_score(alignment, stage) is None
