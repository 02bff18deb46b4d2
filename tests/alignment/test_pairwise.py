"""The three implementations against loops in NumPy, against one another, and their cost."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from plan_jax.alignment import losses, pairwise
from plan_jax.alignment.blockwise import chunked, ring
from plan_jax.alignment.methods.gloria import GloriaScore
from plan_jax.alignment.methods.plan import PlanScore

B, P, W, D = 8, 16, 5, 6
BETA = 4.0


SCORES = {
  "plan": PlanScore(0.2, BETA, True),
  "plan, pairs alone": PlanScore(0.25, BETA, False),
  "gloria": GloriaScore(),
}


def case(batch=B, dtype=np.float64):
  """Returns features and keys: an empty report, repeated texts, and two images of one example."""
  rng = np.random.default_rng(0)
  pixels, words = (oracle.l2_normalize(rng.normal(size=(batch, n, D))) for n in (P, W))
  weights = rng.uniform(0.1, 1, (batch, W))
  weights[0, -2:] = 0
  weights[3] = 0
  words[weights == 0] = 0
  index = np.arange(batch)
  text, example = index + 1, index.copy()
  text[2], text[3], example[7] = text[0], 0, example[5]
  valid = jnp.asarray((weights > 0).any(1))
  keys = pairwise.Keys(*(jnp.asarray(x, jnp.int32) for x in (index, text, example)), valid)
  return tuple(jnp.asarray(x, dtype) for x in (pixels, words, weights, 7.0)), keys


def loss(contrast, score, keys):
  """Returns a function to value, terms of the contrast, and gradients of everything."""

  def f(pixels, words, weights, scale):
    features = pairwise.PairFeatures(pixels, words, weights, scale)
    terms = contrast(score, features, keys)
    total = losses.info_nce(terms, keys.valid)[0]
    if terms.positive_word.size:
      weights = jax.lax.stop_gradient(weights)
      total += 2.5 * losses.word_info_nce(terms, keys.valid, weights)
    return total, terms

  return jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))


def in_tiles(images, reports, contrast=chunked):
  tile = pairwise.Tile(images, reports)
  return lambda score, *inputs: contrast(score, tile, *inputs)


def mesh(*shape):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def assert_same(got, want, atol):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=atol, atol=atol)


@cache
def by_full(name, batch):
  """Computes inputs, keys, and value, terms and gradients in float64."""
  with jax.enable_x64():
    inputs, keys = case(batch)
    return inputs, keys, loss(pairwise.full, SCORES[name], keys)(*inputs)


@pytest.mark.parametrize("name", list(SCORES))
def test_full_equals_loops(name):
  inputs, keys, ((got, _), _) = by_full(name, B)
  pixels, words, weights, scale = (np.asarray(x) for x in inputs)
  _, text, example, valid = (np.asarray(x) for x in keys)
  positives = (text[:, None] == text) & (text > 0)[:, None] | (example[:, None] == example)
  if name == "gloria":
    z = oracle.gloria_scores(pixels, words, weights > 0)
    np.testing.assert_allclose(got, oracle.info_nce(z, positives, valid), rtol=1e-9)
    return
  score = SCORES[name]
  z = scale * oracle.scores(pixels, words, weights, score.tau, BETA)
  want = oracle.info_nce(z, positives, valid)
  if score.single:
    e = np.zeros((B, B, W))
    for i, j, w in np.ndindex(e.shape):
      if weights[j, w] > 0:
        e[i, j, w] = oracle.evidence(pixels[i], words[j, w], score.tau)
    want += 2.5 * oracle.word_info_nce(scale * e, positives, valid, weights)
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(
  ("name", "tile"),
  [
    *((name, (3, 5)) for name in SCORES),
    ("plan", (1, 1)),
    ("gloria", (1, 1)),
    ("plan", (8, 8)),
  ],
)
def test_chunked_equals_full(name, tile):
  """Terms, loss and every gradient; also where the tile does not divide the batch."""
  inputs, keys, want = by_full(name, B)
  with jax.enable_x64():
    got = loss(in_tiles(*tile), SCORES[name], keys)(*inputs)
  assert_same(got, want, 1e-11)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 2)])
@pytest.mark.parametrize("name", ["plan", "plan, pairs alone", "gloria"])
def test_ring_equals_full_on_every_mesh(name, shape):
  inputs, keys, want = by_full(name, 24)
  with jax.enable_x64(), jax.set_mesh(mesh(*shape)):
    got = loss(in_tiles(2, 3, ring), SCORES[name], keys)(*inputs)
  assert_same(got, want, 1e-11)


def test_ring_without_a_mesh_is_chunked():
  inputs, keys = case(dtype=np.float32)
  want = loss(in_tiles(3, 3), SCORES["plan"], keys)(*inputs)
  assert_same(loss(in_tiles(3, 3, ring), SCORES["plan"], keys)(*inputs), want, 0)


@pytest.mark.parametrize("contrast", [pairwise.full, in_tiles(3, 5), in_tiles(2, 2, ring)])
def test_bfloat16_rounds_products_only(contrast):
  """Gradients come in the dtype of the inputs, and near those of float32."""
  score = SCORES["plan"]
  rounded = dataclasses.replace(score, dtype="bfloat16")
  inputs, keys = case(dtype=np.float32)
  (want, _), wanted = loss(pairwise.full, score, keys)(*inputs)
  narrow = (*(x.astype(jnp.bfloat16) for x in inputs[:2]), *inputs[2:])
  (got, terms), gradients = loss(contrast, rounded, keys)(*narrow)
  np.testing.assert_allclose(got, want, rtol=0.02)
  assert {x.dtype for x in terms} == {jnp.dtype("float32")}
  for a, b, x in zip(gradients, wanted, narrow, strict=True):
    assert a.dtype == x.dtype
    np.testing.assert_allclose(
      np.asarray(a, np.float32), b, atol=0.05 * float(np.abs(b).max()) + 1e-6
    )


@pytest.mark.parametrize("contrast", [pairwise.full, in_tiles(3, 5), in_tiles(2, 2, ring)])
@pytest.mark.parametrize("what", ["no report", "one report", "all the same", "zero features"])
def test_degenerate_batches_have_finite_gradients(contrast, what):
  (pixels, words, weights, scale), keys = case(dtype=np.float32)
  if what == "no report":
    weights, keys = jnp.zeros_like(weights), keys._replace(valid=jnp.zeros(B, bool))
  if what == "one report":
    weights = weights.at[1:].set(0)
    keys = keys._replace(valid=jnp.arange(B) == 0)
  if what == "all the same":
    keys = keys._replace(text=jnp.ones(B, jnp.int32))
  if what == "zero features":
    pixels, words = jnp.zeros_like(pixels), jnp.zeros_like(words)
  for score in (SCORES["plan"], SCORES["gloria"]):
    (got, _), gradients = loss(contrast, score, keys)(pixels, words, weights, scale)
    assert got == 0 or what == "zero features"
    assert all(np.isfinite(x).all() for x in gradients)


def compiled(score, batch, contrast, shapes=(49, 8, 16)):
  pixels, words, size = shapes
  index = jax.ShapeDtypeStruct((batch,), jnp.int32)
  keys = pairwise.Keys(index, index, index, jax.ShapeDtypeStruct((batch,), bool))

  def f(keys, *inputs):
    return loss(contrast, score, keys)(*inputs)

  shapes = (batch, pixels, size), (batch, words, size), (batch, words), ()
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  context = jax.sharding.get_abstract_mesh()
  if not context.empty:
    split = jax.sharding.PartitionSpec(context.axis_names)
    shard = jax.NamedSharding(context, split)
    whole = jax.NamedSharding(context, jax.sharding.PartitionSpec())
    ins = (shard, shard, shard, shard, whole)
    return jax.jit(f, in_shardings=ins).lower(keys, *arrays).compile()
  return jax.jit(f).lower(keys, *arrays).compile()


@pytest.mark.parametrize(
  ("name", "shapes"), [*((name, (196, 16, 32)) for name in SCORES), ("gloria", (49, 16, 256))]
)
def test_a_tile_holds_no_more_than_its_bound(name, shapes):
  """The cost of a larger tile, by XLA's own count, is within `tile_bytes`."""
  score = SCORES[name]
  held = [
    compiled(score, 16, in_tiles(n, n), shapes).memory_analysis().temp_size_in_bytes for n in (4, 8)
  ]
  bound = [score.tile_bytes(n, n, *shapes) for n in (4, 8)]
  assert held[1] - held[0] <= bound[1] - bound[0]


def test_memory_grows_with_the_features_only():
  """Not with the square of the batch."""
  score = SCORES["plan"]
  held = {
    batch: compiled(score, batch, in_tiles(4, 4)).memory_analysis().temp_size_in_bytes
    for batch in (64, 128, 256)
  }
  features = 4 * 16 * (49 + 8)  # of one pair
  assert (held[256] - held[128]) / 128 < 4 * features
  full = compiled(score, 64, pairwise.full).memory_analysis().temp_size_in_bytes
  assert full > 10 * held[64]


def test_the_ring_gathers_nothing_and_is_flat_in_the_number_of_devices():
  score, held = SCORES["plan"], {}
  for count in (2, 8):
    with jax.set_mesh(mesh(count, 1)):
      program = compiled(score, 8 * count, in_tiles(4, 4, ring))
    held[count] = program.memory_analysis().temp_size_in_bytes
    text = program.as_text()
    for name in ("all-gather", "all-to-all"):
      assert not re.search(rf"= .*\b{name}", text)
    assert "collective-permute" in text
  assert held[8] < 1.1 * held[2]


def test_tiles_fit_the_memory_and_fill_alike():
  score = SCORES["plan"]

  def tile(mib, images=0, reports=0, batch=96):
    return pairwise.tile(
      score, (batch, 196, 64), (batch, 32, 64), images=images, reports=reports, mib=mib
    )

  chosen = tile(16)
  assert chosen.reports <= 8
  assert score.tile_bytes(*chosen, 196, 32, 64) <= 16 * 2**20
  # All images with 256 words; with as many reports as there is memory for, at the most all.
  with_256_words = score.tile_bytes(96, 8, 196, 32, 64) // 2**20 + 1
  assert tile(with_256_words) == (96, 8)
  assert tile(3 * with_256_words) == (96, 24)
  assert tile(10_000) == (96, 96) and tile(10_000, batch=3) == (3, 3)
  assert tile(10_000, reports=7) == (96, 7) and tile(10_000, images=5) == (5, 8)
  assert tile(10_000, images=5, reports=7) == (5, 7)
  assert tile(16, images=8).images == 8
  with pytest.raises(ValueError, match=r"tile_mib: comes to 1; a tile of 64 images x 64"):
    tile(1, images=64, reports=64)
  with pytest.raises(ValueError, match="1 images x 1 reports .* needs"):
    pairwise.tile(score, (8, 10_000, 64), (8, 300, 64), images=0, reports=0, mib=1)
  with jax.set_mesh(mesh(8, 1)):
    assert tile(10_000, batch=64) == (8, 8)  # of one device


@pytest.mark.parametrize("name", ["plan", "gloria"])
def test_the_memory_for_a_tile_changes_no_value(name):
  """Least, most, and between; every gradient too."""
  inputs, keys, want = by_full(name, 24)
  shapes = (24, P, D), (24, W, D)
  tiles = [pairwise.tile(SCORES[name], *shapes, images=0, reports=0, mib=n) for n in (1, 2, 2**20)]
  assert tiles[0] != tiles[1] and tiles[0].images < 24 and tiles[2] == (24, 24)
  for tile in tiles:
    with jax.enable_x64():
      got = loss(in_tiles(*tile), SCORES[name], keys)(*inputs)
    assert_same(got, want, 1e-11)
