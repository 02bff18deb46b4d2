"""The three evaluations against loops in NumPy, against one another, and their cost."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from plan_jax.alignment import losses, pairwise, regions, similarity

B, P, W, D = 8, 16, 5, 6
BETA = 4.0


def rounds(sparsifier="threshold", count=2, **change):
  tau, gamma = (0.4, 0.25, 0.2)[:count], (0.3, 0.5, 0.8)[:count]
  return dataclasses.replace(similarity.Rounds(tau, gamma, 0.4, sparsifier), **change)


SCORES = {
  **{f"{name}, {count} rounds": similarity.PlanScore(rounds(name, count), BETA, True)
     for name, count in [("threshold", 1), ("threshold", 3), ("softmax", 2), ("entmax15", 2),
                         ("minmax", 2), ("topk", 2), ("box", 2)]},
  "cosine": similarity.PlanScore(rounds(evidence="cosine"), BETA, True),
  "pairs alone": similarity.PlanScore(rounds(), BETA, False),
  "gloria": similarity.GloriaScore(),
}  # fmt: skip


def case(batch=B, dtype=np.float64):
  """Features and keys: an empty report, repeated texts, and two images of one study."""
  rng = np.random.default_rng(0)
  pixels, words = (oracle._unit(rng.normal(size=(batch, n, D))) for n in (P, W))
  say = rng.uniform(0.1, 1, (batch, W))
  say[0, -2:] = 0
  say[3] = 0
  words[say == 0] = 0
  index = np.arange(batch)
  text, example = index + 1, index.copy()
  text[2], text[3], example[7] = text[0], 0, example[5]
  keys = pairwise.Keys(
    *(jnp.asarray(x, jnp.int32) for x in (index, text, example)), (say > 0).any(1)
  )
  return tuple(jnp.asarray(x, dtype) for x in (pixels, words, say, 7.0)), keys


def loss(evaluate, score, keys):
  """Value, what was contrasted, and gradients of everything."""

  def f(pixels, words, say, scale):
    pairs = evaluate(score, pixels, words, say, scale, keys)
    total = losses.info_nce(pairs, keys.valid)[0].sum()
    if pairs.word.size:
      weight = jax.lax.stop_gradient(say)
      total += 2.5 * losses.word_info_nce(pairs, keys.valid, weight).sum()
    return total, pairs

  return jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))


def in_tiles(images, reports, evaluate=pairwise.chunked):
  tile = pairwise.Tile(images, reports)
  return lambda score, *inputs: evaluate(score, tile, *inputs)


def mesh(*shape):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def assert_same(got, want, atol):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=atol, atol=atol)


@pytest.mark.parametrize("name", list(SCORES))
def test_full_equals_loops(name):
  with jax.enable_x64():
    inputs, keys = case()
    (got, _), _ = loss(pairwise.full, SCORES[name], keys)(*inputs)
  pixels, words, say, scale = (np.asarray(x) for x in inputs)
  _, text, example, valid = (np.asarray(x) for x in keys)
  positives = (text[:, None] == text) & (text > 0)[:, None] | (example[:, None] == example)
  if name == "gloria":
    z = oracle.gloria_scores(pixels, words, say > 0)
    np.testing.assert_allclose(got, oracle.info_nce(z, positives, valid), rtol=1e-9)
    return
  score = SCORES[name]
  want = 0
  for matrix in oracle.scores(pixels, words, say, score.rounds, BETA):
    want += oracle.info_nce(scale * matrix, positives, valid)
  if score.single:
    shape = (B, B, W)
    for k in range(len(score.rounds.tau)):
      e = np.zeros(shape)
      for i, j, w in np.ndindex(shape):
        if say[j, w] > 0:
          e[i, j, w] = oracle.evidence(pixels[i], words[j, w], score.rounds)[k][1]
      want += 2.5 * oracle.word_info_nce(scale * e, positives, valid, say)
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("name", list(SCORES))
def test_chunked_equals_full(name, tile):
  """Normalisers, own logits, loss and every gradient; also where the tile does not divide."""
  with jax.enable_x64():
    inputs, keys = case()
    want = loss(pairwise.full, SCORES[name], keys)(*inputs)
    got = loss(in_tiles(*tile), SCORES[name], keys)(*inputs)
  assert_same(got, want, 1e-11)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 2)])
@pytest.mark.parametrize("name", ["threshold, 3 rounds", "pairs alone", "gloria"])
def test_ring_equals_full_on_every_mesh(name, shape):
  with jax.enable_x64():
    inputs, keys = case(batch=24)
    want = loss(pairwise.full, SCORES[name], keys)(*inputs)
    with jax.set_mesh(mesh(*shape)):
      got = loss(in_tiles(2, 3, pairwise.ring), SCORES[name], keys)(*inputs)
  assert_same(got, want, 1e-11)


def test_ring_without_a_mesh_is_chunked():
  inputs, keys = case(dtype=np.float32)
  want = loss(in_tiles(3, 3), SCORES["cosine"], keys)(*inputs)
  assert_same(loss(in_tiles(3, 3, pairwise.ring), SCORES["cosine"], keys)(*inputs), want, 0)


@pytest.mark.parametrize("evaluate", [pairwise.full, in_tiles(3, 5), in_tiles(2, 2, pairwise.ring)])
def test_bfloat16_rounds_products_only(evaluate):
  """Gradients come in the dtype of the inputs, and near those of float32."""
  score = SCORES["threshold, 1 rounds"]
  rounded = dataclasses.replace(score, rounds=rounds(count=1, dtype="bfloat16"))
  inputs, keys = case(dtype=np.float32)
  (want, _), wanted = loss(pairwise.full, score, keys)(*inputs)
  narrow = (*(x.astype(jnp.bfloat16) for x in inputs[:2]), *inputs[2:])
  (got, pairs), gradients = loss(evaluate, rounded, keys)(*narrow)
  np.testing.assert_allclose(got, want, rtol=0.02)
  assert {x.dtype for x in pairs} == {jnp.dtype("float32")}
  for a, b, x in zip(gradients, wanted, narrow, strict=True):
    assert a.dtype == x.dtype
    np.testing.assert_allclose(
      np.asarray(a, np.float32), b, atol=0.05 * float(np.abs(b).max()) + 1e-6
    )


@pytest.mark.parametrize("evaluate", [pairwise.full, in_tiles(3, 5), in_tiles(2, 2, pairwise.ring)])
@pytest.mark.parametrize("what", ["no report", "one report", "all the same", "zero features"])
def test_degenerate_batches_have_finite_gradients(evaluate, what):
  (pixels, words, say, scale), keys = case(dtype=np.float32)
  if what == "no report":
    say, keys = jnp.zeros_like(say), keys._replace(valid=jnp.zeros(B, bool))
  if what == "one report":
    say = say.at[1:].set(0)
    keys = keys._replace(valid=jnp.arange(B) == 0)
  if what == "all the same":
    keys = keys._replace(text=jnp.ones(B, jnp.int32))
  if what == "zero features":
    pixels, words = jnp.zeros_like(pixels), jnp.zeros_like(words)
  for score in (SCORES["threshold, 3 rounds"], SCORES["cosine"], SCORES["gloria"]):
    (got, _), gradients = loss(evaluate, score, keys)(pixels, words, say, scale)
    assert got == 0 or what == "zero features"
    assert all(np.isfinite(x).all() for x in gradients)


def compiled(score, batch, evaluate, shapes=(49, 8, 16)):
  pixels, words, size = shapes
  index = jax.ShapeDtypeStruct((batch,), jnp.int32)
  keys = pairwise.Keys(index, index, index, jax.ShapeDtypeStruct((batch,), bool))

  def f(keys, *inputs):
    return loss(evaluate, score, keys)(*inputs)

  arrays = [jax.ShapeDtypeStruct(s, jnp.float32)
            for s in ((batch, pixels, size), (batch, words, size), (batch, words), ())]  # fmt: skip
  found = jax.sharding.get_abstract_mesh()
  if not found.empty:
    split = jax.sharding.PartitionSpec(found.axis_names)
    shard = jax.NamedSharding(found, split)
    whole = jax.NamedSharding(found, jax.sharding.PartitionSpec())
    ins = (shard, shard, shard, shard, whole)
    return jax.jit(f, in_shardings=ins).lower(keys, *arrays).compile()
  return jax.jit(f).lower(keys, *arrays).compile()


@pytest.mark.parametrize("name", list(SCORES))
def test_a_tile_holds_no_more_than_it_says(name):
  """What a larger tile costs more, by XLA's own count, is within `tile_bytes`."""
  shapes, score = (196, 16, 32), SCORES[name]
  held = [
    compiled(score, 16, in_tiles(n, n), shapes).memory_analysis().temp_size_in_bytes for n in (4, 8)
  ]
  said = [score.tile_bytes(n, n, *shapes) for n in (4, 8)]
  assert held[1] - held[0] <= said[1] - said[0]


def test_memory_grows_with_the_features_only():
  """Not with the square of the batch."""
  score = SCORES["threshold, 1 rounds"]
  held = {
    batch: compiled(score, batch, in_tiles(4, 4)).memory_analysis().temp_size_in_bytes
    for batch in (64, 128, 256)
  }
  features = 4 * 16 * (49 + 8)  # of one pair
  assert (held[256] - held[128]) / 128 < 4 * features
  full = compiled(score, 64, pairwise.full).memory_analysis().temp_size_in_bytes
  assert full > 10 * held[64]


def test_the_ring_gathers_nothing_and_is_flat_in_the_number_of_devices():
  score, held = SCORES["threshold, 3 rounds"], {}
  for count in (2, 8):
    with jax.set_mesh(mesh(count, 1)):
      program = compiled(score, 8 * count, in_tiles(4, 4, pairwise.ring))
    held[count] = program.memory_analysis().temp_size_in_bytes
    text = program.as_text()
    for name in ("all-gather", "all-to-all"):
      assert not re.search(rf"= .*\b{name}", text)
    assert "collective-permute" in text
  assert held[8] < 1.1 * held[2]


def test_tiles_fit_the_memory_and_fill_alike():
  score = SCORES["threshold, 1 rounds"]

  def tile(mib, images=0, reports=0, batch=96):
    return pairwise.tile(
      score, (batch, 196, 64), (batch, 32, 64), images=images, reports=reports, mib=mib
    )

  assert tile(10_000).reports == 8  # 256 words
  some = tile(16)
  assert some.reports <= 8
  assert score.tile_bytes(*some, 196, 32, 64) <= 16 * 2**20
  assert tile(10_000).images == 96 and tile(10_000, batch=3) == (3, 3)
  assert tile(10_000, images=5, reports=7) == (5, 7)
  assert tile(16, images=8).images == 8
  with pytest.raises(ValueError, match=r"alignment\.tile_mib: is 1; a tile of 64 images x 64"):
    tile(1, images=64, reports=64)
  with pytest.raises(ValueError, match="1 images x 1 reports .* needs"):
    pairwise.tile(score, (8, 10_000, 64), (8, 300, 64), images=0, reports=0, mib=1)
  with jax.set_mesh(mesh(8, 1)):
    assert tile(10_000, batch=64).images == 8  # of one device


def test_every_sparsifier_is_tried():
  assert {score.rounds.sparsifier for score in SCORES.values() if hasattr(score, "rounds")} == set(
    regions.SPARSIFIERS
  )
