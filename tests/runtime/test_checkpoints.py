import json
import logging
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fakes.disk import full_disk
from input_pipeline import digests
from input_pipeline.digests import DamagedError
from input_pipeline.disk import DiskError
from plan_jax.runtime.checkpoints import CheckpointError, Checkpoints
from plan_jax.training.state import TrainState


def test_checkpoints_keep_the_last_and_the_best(tmp_path):
  state = {"x": jnp.arange(3.0)}
  checkpoints = Checkpoints(tmp_path / "c", keep_last=2, best_metric="score")
  for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4]):
    checkpoints.save(step, {"x": state["x"] + step}, {"score": score})
  checkpoints.wait()
  assert checkpoints.latest() == 4 and checkpoints.best() == 1
  there = sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit())
  assert there == [1, 3, 4]
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  np.testing.assert_array_equal(checkpoints.restore(abstract, 1)["x"], [1, 2, 3])
  with pytest.raises(CheckpointError, match="no checkpoint of step 2"):
    checkpoints.restore(abstract, 2)
  checkpoints.close()


def test_a_checkpoint_of_another_model(tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")
  state = {"x": jnp.arange(3.0)}
  checkpoints.save(1, state)
  checkpoints.wait()
  sharding = state["x"].sharding
  other = {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
  with pytest.raises(CheckpointError, match=r"^[^\n]* does not fit the model[^\n]*$"):
    checkpoints.restore(other)
  other = {"y": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)}
  with pytest.raises(CheckpointError, match=r"^[^\n]* does not fit the model[^\n]*$"):
    checkpoints.restore(other)
  checkpoints.close()


def test_a_checkpoint_under_another_name(tmp_path):
  """Its digests are right; a training beyond its last step would begin."""
  checkpoints = Checkpoints(tmp_path)
  state = TrainState(jnp.int32(6), {"x": jnp.arange(3.0)}, {}, ())
  checkpoints.save(6, state)
  checkpoints.close()
  shutil.copytree(tmp_path / "6", tmp_path / "12")
  checkpoints = Checkpoints(tmp_path)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  with pytest.raises(CheckpointError, match="^checkpoint 12 in .* holds the state of step 6"):
    checkpoints.restore(abstract)
  assert int(checkpoints.restore(abstract, 6).step) == 6
  checkpoints.close()


def saved(folder, scores=(0.5, 0.4)):
  """Checkpoints 1, 2, ... with these scores; gives the shapes of their state."""
  checkpoints, state = Checkpoints(folder, keep_last=9, best_metric="score"), {"x": jnp.arange(3.0)}
  for step, score in enumerate(scores, 1):
    checkpoints.save(step, state, {"score": score})
  checkpoints.close()
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_damaged_metrics_choose_no_other_best(tmp_path):
  saved(tmp_path)
  (tmp_path / "1" / "metrics" / "metrics").write_text('{"score": 0.1}')
  with pytest.raises(DamagedError, match=r"1/metrics/metrics is not as it was.*give back 1 of"):
    Checkpoints(tmp_path, best_metric="score")


@pytest.mark.parametrize("rest", ["SHA256SUMS", "metrics/metrics"])
def test_a_deletion_that_was_stopped_is_named_and_does_not_stop_the_run(tmp_path, caplog, rest):
  abstract = saved(tmp_path, (0.9, 0.5, 0.4))
  (tmp_path / "1" / rest).unlink()
  with caplog.at_level("WARNING", "plan_jax"):
    checkpoints = Checkpoints(tmp_path, best_metric="score")
  assert f"checkpoint 1 is not whole, its metrics do not count: {tmp_path}/1/{rest} " in caplog.text
  assert (checkpoints.latest(), checkpoints.best(), checkpoints.to_evaluate("best")) == (3, 2, 2)
  np.testing.assert_array_equal(checkpoints.restore(abstract)["x"], [0, 1, 2])
  with pytest.raises(DamagedError, match=f"{rest} is missing"):
    checkpoints.restore(abstract, 1)
  checkpoints.close()


def test_a_checkpoint_without_its_digests_does_not_count(tmp_path, monkeypatch):
  """A kill while they are written: the name is not given, and the next start saves again."""

  def killed(*_, **__):
    raise KeyboardInterrupt

  saved(tmp_path, [0.1])
  with monkeypatch.context() as patch:
    patch.setattr(digests, "write_sums", killed)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {"x": jnp.arange(3.0)})
    with pytest.raises(KeyboardInterrupt):
      checkpoints.wait()
  assert not (tmp_path / "2").exists()
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() == 1
  checkpoints.save(2, {"x": jnp.arange(3.0)})
  checkpoints.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
  assert (tmp_path / "2" / "SHA256SUMS").exists()


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_before(tmp_path, capfd):
  """Orbax fails in several threads, and each told a traceback."""
  rng = np.random.default_rng(0)
  state = {f"x{i}": jnp.asarray(rng.normal(size=8000).astype(np.float32)) for i in range(40)}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {"x": jnp.arange(3.0)})
  checkpoints.wait()
  with full_disk(20_000), pytest.raises(DiskError, match=f"^{tmp_path}: File too large; raise"):
    checkpoints.save(2, state)
    checkpoints.wait()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
  checkpoints.save(3, state)
  checkpoints.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
  output = capfd.readouterr()
  assert "Traceback" not in output.out + output.err


def with_times(change):
  def damage(content):
    times = json.loads(content)
    change(times)
    return json.dumps(times).encode()

  return damage


@pytest.mark.parametrize(
  "damage",
  [
    with_times(lambda times: times.update(init_timestamp_nsecs=17.95)),
    with_times(lambda times: times.update(commit_timestamp_nsecs=10**30)),
    lambda _: b"[]",
    lambda _: b"1",
    lambda _: b"[" * 100_000,
  ],
)
def test_damaged_times_are_one_line_and_can_be_deleted(tmp_path, damage):
  abstract = saved(tmp_path)
  path = tmp_path / "1" / "_CHECKPOINT_METADATA"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(DamagedError) as error:
    Checkpoints(tmp_path, best_metric="score")
  line = error.value.args[0]
  assert line.startswith(f"{path} is damaged (") and "\n" not in line
  path.unlink()
  checkpoints = Checkpoints(tmp_path, best_metric="score", create=False)
  np.testing.assert_array_equal(checkpoints.restore(abstract, 1)["x"], [0, 1, 2])
  assert (checkpoints.latest(), checkpoints.best()) == (2, 1)


def test_others_may_tell_their_errors(tmp_path, caplog):
  def tells():
    caplog.clear()
    try:
      raise ValueError("mine")
    except ValueError:
      logging.getLogger("absl").exception("x")
    return [record.exc_info is not None for record in caplog.records if record.message == "x"]

  hook = sys.unraisablehook
  checkpoints = Checkpoints(tmp_path)
  assert tells() == [True] and sys.unraisablehook is hook
  checkpoints.save(1, {"x": jnp.arange(3.0)})
  assert tells() == [True]
  checkpoints.wait()
  assert tells() == [True] and sys.unraisablehook is hook
  checkpoints.close()


def test_what_a_killed_save_left_is_removed_by_who_saves_next(tmp_path):
  saved(tmp_path)
  left = tmp_path / "7.orbax-checkpoint-tmp"
  left.mkdir()
  Checkpoints(tmp_path, create=False).close()
  assert left.exists()
  Checkpoints(tmp_path).close()
  assert not left.exists()
