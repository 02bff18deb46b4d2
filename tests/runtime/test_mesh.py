import types

import jax
import numpy as np
import pytest

from plan_jax.runtime import mesh


@pytest.mark.parametrize(
  ("axes", "message"),
  [((-1, 3), "fsdp: is 3; must divide the 8 devices"), ((3, 2), "data: is 3; times fsdp, 2")],
)
def test_devices_that_do_not_divide(axes, message):
  with pytest.raises(mesh.MeshError, match=message):
    mesh.make_mesh(*axes)


def devices(platform, kind, *stats):
  """Devices in a mesh, each with what it tells of its memory; None: it cannot be asked."""

  def ask(answer):
    if answer is None:
      pytest.fail("it is not here")
    return answer

  made = [
    types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda x=x: ask(x))
    for x in stats
  ]
  return types.SimpleNamespace(devices=np.array([made], object), local_devices=made)


@pytest.mark.parametrize(
  ("of", "memory_bytes"),
  [
    (devices("gpu", "NVIDIA H100", {"bytes_limit": 9 * 2**30}, {"bytes_limit": 8 * 2**30}), 2**33),
    (devices("gpu", "NVIDIA H100", {}), 2**32),
    (devices("tpu", "TPU v4", {"bytes_limit": 31 * 2**30}), 31 * 2**30),
    (devices("tpu", "TPU v5 lite", None), 16 * 2**30),
    (devices("tpu", "TPU v5", None, None), 95 * 2**30),
    (devices("cpu", "cpu", None), None),
  ],
)
def test_memory_of_a_device(of, memory_bytes):
  assert mesh.memory_bytes(of) == memory_bytes


def test_memory_of_gpus_that_do_not_tell(monkeypatch):
  silent = devices("gpu", "NVIDIA H100", {})
  monkeypatch.setattr(silent.local_devices[0], "memory_stats", lambda: None)
  assert mesh.memory_bytes(silent) == 2**32


def test_memory_is_the_least_of_all_processes(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)

  def gather(value):  # JAX gathers no whole numbers of 64 bits
    return np.asarray(jax.numpy.stack([value, value * 5 // 8]))

  monkeypatch.setattr(mesh.processes.multihost_utils, "process_allgather", gather)
  assert mesh.memory_bytes(devices("gpu", "any", {"bytes_limit": 2**37})) == 5 * 2**34


def test_memory_of_the_devices_here():
  assert mesh.memory_bytes(mesh.make_mesh(-1, 1)) is None
