"""Results of a GPU equal those of the CPU: make test-gpu, on a machine that has one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.step_inputs import SMALL
from configs import base
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment, EmbeddedBatch
from plan_jax.alignment.objective import objective
from plan_jax.models.bert import Bert
from plan_jax.models.layers.attention import attend, flash_fits
from plan_jax.models.mpnet import MPNet
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT

pytestmark = pytest.mark.skipif(
  jax.default_backend() != "gpu", reason="JAX sees no GPU (make test-gpu)"
)
KEY = jax.random.key(0)
B, P, W, D = 24, 49, 20, 32
ALIGNMENT = dataclasses.replace(
  Alignment(**base.get_config().alignment),
  dtype="float32",
  word_weight=0.5,
  term_weight=0.5,
  side_weight=0.5,
  tile_images=8,
  tile_reports=8,
  tile_mib=256,
)
STAGE = curriculum.Stage("words", 0.0, 1.0, 1.0, 0.2)


def on_both(function, *args):
  """Returns results of the GPU and of the CPU, products in full float32."""
  results = []
  for device in (jax.devices()[0], jax.devices("cpu")[0]):
    with jax.default_matmul_precision("highest"):
      results.append(jax.device_get(jax.jit(function)(*jax.device_put(args, device))))
  return results


def assert_close(got, want, within):
  """Compares within a share of each wanted number, and of a twentieth of the largest."""
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(want))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=within, atol=0.05 * within * largest)


def embedded_batch() -> EmbeddedBatch:
  rng = np.random.default_rng(0)
  mask = np.arange(W) < rng.integers(0, W + 1, (B, 1))

  def normal(*shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  return EmbeddedBatch(
    pixels=normal(B, P, D),
    image_embedding=normal(B, D),
    words=normal(B, W, D) * mask[..., None],
    text_embedding=normal(B, D),
    mask=mask,
    term=mask & (rng.random((B, W)) < 0.3),
    half=(mask * rng.integers(-1, 2, (B, W))).astype(np.int32),
    significance=np.where(mask, rng.uniform(0.1, 0.9, (B, W)), 0).astype(np.float32),
    attention=np.where(mask, rng.uniform(0.1, 0.9, (B, W)), 0).astype(np.float32),
    report_key=rng.integers(1, B, B).astype(np.int32),
    study_key=np.arange(B, dtype=np.int32),
    global_scale=np.float32(5),
    local_scale=np.float32(7),
  )


@pytest.mark.parametrize("implementation", ["full", "chunked"])
@pytest.mark.parametrize("method", ["plan", "gloria", "sparc", "mgca", "none"])
def test_losses_and_their_gradients(method, implementation):
  alignment = dataclasses.replace(ALIGNMENT, method=method, implementation=implementation)
  x = embedded_batch()

  def loss(pixels, words, significance):
    given = x._replace(pixels=pixels, words=words, significance=significance)
    return objective(jax.tree.map(jnp.asarray, given), STAGE, alignment)[0]

  got, want = on_both(jax.value_and_grad(loss, (0, 1, 2)), x.pixels, x.words, x.significance)
  for a, b in zip(got, want, strict=True):
    assert_close(a, b, 1e-3)


IMAGES = np.random.default_rng(0).random((4, 64, 64, 1), np.float32)
SMALL_TEXT = dict(embed_dim=32, depth=2, num_heads=4, mlp_dim=64, dropout=0.0)
TOKENS = np.random.default_rng(0).integers(0, 50, (4, 24), np.int32)
PLACES = np.zeros((4, 24), np.int32), np.tile(np.arange(24, dtype=np.int32), (4, 1))
ENCODERS = {
  "resnet-18": (ResNet(18, 0.25), IMAGES),
  "resnet-50, dilated": (ResNet(50, 0.25, output_stride=16), IMAGES),
  "vit": (ViT(32, 2, 4, 64, 16, 4), IMAGES),
  "dinov2": (ViT(32, 2, 4, 64, 16, 4, variant="dinov2_registers", registers=2), IMAGES),
  "mpnet": (MPNet(50, **SMALL_TEXT), TOKENS, *PLACES),
  "bert": (Bert(50, **SMALL_TEXT), TOKENS, *PLACES),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_and_their_gradients(name):
  net, *args = ENCODERS[name]
  variables = jax.device_get(jax.jit(net.init)(KEY, *args))
  # Batch norm's scales of zero would hide the branches behind them.
  params = jax.tree.map(lambda x: x + 0.1, variables.pop("params"))

  def loss(params, *args):
    out, stats = net.apply(
      {"params": params, **variables}, *args, train=True, mutable=["batch_stats"]
    )
    return jnp.square(out).mean(), (out, stats)

  got, want = on_both(jax.value_and_grad(loss, has_aux=True), params, *args)
  assert_close(got[0], want[0], 2e-3)
  # Of sums of thousands of rounded numbers.
  assert_close(got[1], want[1], 2e-2)


@pytest.mark.parametrize("length", [256, 197])
def test_attention_without_a_mask_is_flash(length):
  parts = jax.random.normal(KEY, (3, 2, length, 4, 64), jnp.bfloat16)
  if not flash_fits(parts.dtype, 64, jax.devices()[0]):
    pytest.skip("this GPU is older than cuDNN's flash attention")
  everywhere = jnp.ones((2, 1, length, length), bool)  # leaves it to XLA

  def loss(parts, mask):
    return jnp.square(attend(*parts, mask).astype(jnp.float32)).mean()

  flash = jax.jit(jax.value_and_grad(lambda parts: loss(parts, None)))
  plain = jax.jit(jax.value_and_grad(lambda parts: loss(parts, everywhere)))
  assert "fmha" in flash.lower(parts).compile().as_text()
  assert "fmha" not in plain.lower(parts).compile().as_text()
  for a, b in zip(*(jax.device_get(f(parts)) for f in (flash, plain)), strict=True):
    assert_close(a.astype(np.float32), b.astype(np.float32), 3e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_step_learns(dtype):
  size = dataclasses.replace(SMALL, dtype=dtype)
  step = train_step.ours(size)["whole step"]
  losses = [float(step()[1]["loss"]) for _ in range(8)]
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0]
