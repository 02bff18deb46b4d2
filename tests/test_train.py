import itertools
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from input_pipeline import digests, records
from input_pipeline.conversion import convert
from input_pipeline.errors import UserError
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax import train
from plan_jax.alignment.methods.by_name import METHODS
from plan_jax.inference import load
from plan_jax.runtime import mesh, workdir
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import read_scalars
from plan_jax.training.assembly import assemble
from plan_jax.training.step import StagedStep, dropout_key, make_step
from tiny_runs import flags, tiny, two_stages, untrained


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("records") / "phantom"
  convert.convert("phantom", out, workers=0, progress=False, **tiny().data.options)
  return out


def leaves(where):
  """The newest checkpoint of a run as {path: array}."""
  run = workdir.Workdir(where)
  parts = assemble(tiny(**SETTINGS), Tokenizer(run.tokenizer))
  checkpoints = Checkpoints(run.checkpoints, create=False)
  state = checkpoints.restore(parts.abstract_state)
  checkpoints.close()
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


SETTINGS = {"train.ema_decay": 0.9}


def start(folder, where, *, cached=True, **more):
  """The real command, one CPU device, in a process of its own."""
  command = [
    sys.executable,
    "-m",
    "plan_jax.main",
    "--config=configs/phantom.py",
    f"--workdir={where}",
    "--mode=train",
    *flags(**{"data.records": folder}, **SETTINGS, **more),
  ]
  environment = dict(os.environ)
  if not cached:
    environment["JAX_COMPILATION_CACHE_DIR"] = f"{where}-cache"
  return subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def test_killed_and_started_again_gives_the_same_bits(folder, tmp_path):
  never, killed = tmp_path / "never", tmp_path / "killed"
  finish(start(folder, never))
  # Without compiled programs at hand, the next stage leaves the time to be killed in.
  process = start(folder, killed, cached=False)
  deadline = time.monotonic() + 240
  while not (killed / "checkpoints" / "2").exists():  # the first whole checkpoint
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert "resumed from step" in finish(start(folder, killed))
  wanted, resumed = leaves(never), leaves(killed)
  assert wanted.keys() == resumed.keys() and int(wanted[".step"]) == 6
  for path in wanted:
    np.testing.assert_array_equal(resumed[path], wanted[path], err_msg=path)
  for name in ("never", "killed"):
    steps = [row["step"] for row in read_scalars(tmp_path / name / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


def run_steps(config, folder, count):
  """Makes `count` steps by hand: the last state, and the metrics of each step."""
  source = records.RecordSource(folder, "train", where="text")
  tokenizer = run_steps.tokenizer
  parts = assemble(config, tokenizer)
  state = parts.initial_state()
  update = StagedStep(parts)
  batches = train.make_batches(config, tokenizer, source, 0)
  measured = []
  for step, batch in enumerate(itertools.islice(batches, count)):
    state, metrics = update(step, state, mesh.to_global(batch, parts.mesh))
    measured.append(jax.device_get(metrics))
  batches.close()
  return jax.device_get(state), measured


@pytest.fixture(scope="session", autouse=True)
def vocabulary(folder, tmp_path_factory):
  source = records.RecordSource(folder, "train", where="text")
  run = workdir.Workdir(tmp_path_factory.mktemp("vocabulary"))
  run_steps.tokenizer = train.make_tokenizer(tiny(), run, source)


def test_a_run_that_is_older_than_a_key_goes_on(folder):
  config = tiny(**{"text.concise_fraction": 0.0})
  source = records.RecordSource(folder, "train", where="text")
  first = []
  for _ in range(2):
    batches = train.make_batches(config, run_steps.tokenizer, source, 3)
    first.append(next(batches)["tokens"])
    batches.close()
    with config.unlocked():
      config.text = {k: v for k, v in config.text.items() if k != "concise_fraction"}
  np.testing.assert_array_equal(*first)


@pytest.mark.parametrize("swap_weight", [0.0, 1.0])
def test_the_batch_is_as_it_is_described(folder, swap_weight):
  config = tiny(**{"alignment.swap_weight": swap_weight})
  source = records.RecordSource(folder, "train", where="text")
  batches = train.make_batches(config, run_steps.tokenizer, source, 0)
  batch = next(batches)
  batches.close()
  described = assemble(config, run_steps.tokenizer).abstract_batch()
  assert {name: (x.shape, x.dtype) for name, x in described.items()} == {
    name: (x.shape, x.dtype) for name, x in batch.items()
  }


SHAPES = [
  (8, 1),
  (2, 4),
  *(
    pytest.param(*shape, marks=pytest.mark.slow)
    for shape in ((2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (4, 2), (1, 8))
  ),
]
STEPS = 3
BASELINE_METHODS = [name for name in METHODS if name not in ("plan", "none")]


def on_mesh(monkeypatch, data, fsdp):
  """A config whose parts lie on the first data * fsdp devices, small parameters split too."""
  devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
  made = jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  monkeypatch.setattr("plan_jax.training.assembly.make_mesh", lambda *_: made)
  monkeypatch.setattr(mesh, "_SMALL", 64)
  swaps = {"alignment.swap_weight": 1.0, "alignment.move_weight": 0.2}
  return tiny(**{"model.image.norm": "batch", "model.text.dropout": 0.0, **swaps})


@pytest.fixture(scope="module")
def on_one(folder):
  with pytest.MonkeyPatch.context() as patch:
    return run_steps(on_mesh(patch, 1, 1), folder, STEPS)


@pytest.mark.parametrize(("data", "fsdp"), SHAPES)
def test_every_mesh_equals_one_device(folder, on_one, data, fsdp, monkeypatch):
  """The same losses (to 1e-4 of them) and parameters (to 2e-4) after three steps."""
  state, metrics = run_steps(on_mesh(monkeypatch, data, fsdp), folder, STEPS)
  wanted_state, wanted = on_one
  np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in wanted], rtol=1e-4)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted_state.params), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_checkpoint_goes_from_mesh_to_mesh(folder, tmp_path, monkeypatch):
  """Saved from eight devices, restored on one, four and 2 x 4: the same bits, laid out anew."""
  config = on_mesh(monkeypatch, 1, 8)
  state = assemble(config, run_steps.tokenizer).initial_state()
  assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(0, state)
  checkpoints.wait()
  for shape in ((1, 1), (4, 1), (2, 4)):
    parts = assemble(on_mesh(monkeypatch, *shape), run_steps.tokenizer)
    restored = checkpoints.restore(parts.abstract_state)
    assert jax.tree.map(lambda x: x.sharding, restored) == parts.shardings
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
  checkpoints.close()


def test_micro_batches_change_nothing_but_memory(folder):
  """On eight devices; with channel norm, for batch norm would see the micro-batches."""
  settings = {
    "model.image.norm": "channel",
    "model.text.dropout": 0.0,
    "train.batch_size": 16,
  }
  micro = {"train.micro_batches": 2, "model.remat": "blocks"}
  whole, wanted = run_steps(tiny(**settings), folder, STEPS)
  parts, metrics = run_steps(tiny(**settings, **micro), folder, STEPS)
  np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in wanted], rtol=1e-4)
  for a, b in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_fsdp_splits_what_is_large(folder):
  parts = assemble(
    tiny(
      **{
        "mesh.fsdp": 4,
        "model.text.embed_dim": 512,
        "model.text.num_heads": 2,
        "model.text.mlp_dim": 1024,
      }
    ),
    run_steps.tokenizer,
  )
  specs = [s.spec for s in jax.tree.leaves(parts.shardings.params)]
  assert any("fsdp" in spec for spec in specs) and any("fsdp" not in spec for spec in specs)


def test_the_loss_falls(folder):
  config = tiny(
    **{
      "train.steps": 40,
      "train.warmup_fraction": 0.0,
      "train.learning_rate": 5e-3,
      "model.text.dropout": 0.0,
      "data.augment": False,
    }
  )
  _, metrics = run_steps(config, folder, 40)
  early, late = metrics[2], metrics[-1]
  assert late["loss_global"] < early["loss_global"] - 0.2
  assert late["loss_local"] < early["loss_local"] - 0.05


def test_stages_change_what_is_measured(folder):
  changes = {"curriculum.late.start_fraction": 0.6, "curriculum.words.local_weight": 0.0}
  measured = run_steps(two_stages(**{"train.steps": 3, **changes}), folder, 3)[1]
  assert ["loss_local" in metrics for metrics in measured] == [False, False, True]


@pytest.mark.parametrize(
  "method",
  ["plan", "none", *(pytest.param(name, marks=pytest.mark.slow) for name in BASELINE_METHODS)],
)
def test_every_method_learns_and_grounds(folder, method):
  config = tiny(
    **{
      "alignment.method": method,
      "train.steps": 3,
      "train.learning_rate": 1e-3,
    }
  )
  state, metrics = run_steps(config, folder, 3)
  assert all(np.isfinite(value) for step in metrics for value in step.values())
  assert ("loss_local" in metrics[-1]) == (method != "none")
  assert ("loss_term" in metrics[-1]) == (method == "plan")
  model = load.of_state(assemble(config, run_steps.tokenizer), state, run_steps.tokenizer)
  image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
  maps = model.maps_on_grid([image, image], ["effusion", "mass"])
  side = 16 if method == "plan" else 8  # its regions are shown on a finer grid
  assert maps.shape == (2, side, side) and np.isfinite(maps).all() and (maps >= 0).all()
  assert np.isfinite(model.peaks([image, image], ["effusion", "mass"])).all()


def test_weight_decay_spares_biases_norms_and_temperatures(folder):
  parts = assemble(tiny(), run_steps.tokenizer)
  state = parts.initial_state()
  zero = jax.tree.map(jnp.zeros_like, state.params)
  opt_state = state.opt_state
  for _ in range(3):  # the first rate of the warm-up is zero
    updates, opt_state = parts.optimizer.update(zero, opt_state, state.params)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    if update.ndim < 2:
      assert (np.asarray(update) == 0).all(), path
  assert any((np.asarray(update) != 0).any() for update in jax.tree.leaves(updates))


def test_the_step_is_a_function_of_its_inputs_and_ema_follows_it(folder):
  """No hidden state: the same state and batch give the same bits."""
  config = tiny(**{"train.ema_decay": 0.5, "train.warmup_fraction": 0.0})
  parts = assemble(config, run_steps.tokenizer)
  source = records.RecordSource(folder, "train", where="text")
  batches = train.make_batches(config, run_steps.tokenizer, source, 0)
  batch = next(batches)
  batches.close()
  step = make_step(
    parts.model,
    parts.optimizer,
    parts.schedule,
    parts.stages[-1],
    parts.alignment,
    parts.train,
  )
  step, state = jax.jit(step), parts.initial_state()
  first, second = (step(state, batch, dropout_key(0)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  jax.tree.map(
    lambda a, b, ema: np.testing.assert_allclose(ema, (a + b) / 2, atol=1e-6),
    *(state.params, first[0].params, first[0].ema),
  )


def test_a_vocabulary_that_was_damaged_is_named_at_once(tmp_path):
  config = untrained(tmp_path, **{"data.records": str(tmp_path / "records")})
  run = workdir.Workdir(tmp_path / "a")
  (run.tokenizer / digests.SUMS).unlink()
  with pytest.raises(digests.MissingError, match="give back .*tokenizer from a copy"):
    train.make_tokenizer(config, run, None)


def test_no_checkpoint_to_load(tmp_path):
  with pytest.raises(workdir.WorkdirError, match="holds no run"):
    load.load(tmp_path)
  (tmp_path / "config.json").write_text(digests.seal(tiny().to_dict()))
  with pytest.raises(UserError, match="no checkpoint.*train first"):
    load.load(tmp_path)
