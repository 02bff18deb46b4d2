import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.runtime.checkpoints import CheckpointError, Checkpoints


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
  with pytest.raises(CheckpointError, match="does not fit the model"):
    checkpoints.restore(other)
  other = {"y": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)}
  with pytest.raises(CheckpointError, match="does not fit the model"):
    checkpoints.restore(other)
  checkpoints.close()
