"""The device mesh, how parameters lie on it, and how host batches become global arrays."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError
from plan_jax.runtime import processes, topology

_SMALL = 2**18  # parameters below this many numbers are not worth splitting
_UNTOLD_BYTES = 4 * 2**30  # memory of a device that does not tell it: few have less


class MeshError(UserError):
  """The devices do not divide as asked for; the message names the axis."""


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a mesh with axes "data" and "fsdp"; `data` -1 takes all devices that `fsdp` leaves.

  Without `devices` it is of those here. Raises MeshError where the devices do not divide.
  """
  count = len(jax.devices() if devices is None else devices)
  if fsdp < 1 or count % fsdp:
    raise MeshError(f"fsdp: is {fsdp}; must divide the {count} devices")
  if data == -1:
    data = count // fsdp
  if data < 1 or data * fsdp != count:
    raise MeshError(f"data: is {data}; times fsdp, {fsdp}, it must be the {count} devices")
  # Auto axes: the compiler places the collectives (explicit axes would reject the B x B product).
  types = (AxisType.Auto,) * 2
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=devices)


def platform() -> str:
  """Returns the platform that the program being traced is for: "cpu", "gpu" or "tpu".

  That of the mesh in context (`jax.set_mesh`), which need not be of devices here; without a mesh
  the default.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def memory_bytes(mesh: Mesh) -> int | None:
  """Returns the memory of a device of the mesh, the least, in all processes alike; None of CPUs.

  A TPU's is the maker's value, so that a topology without devices has that of the devices; a GPU's
  is the limit of JAX's allocator. Neither depends on what is held.
  """
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return None
  if chip := topology.chip_of(device):
    return chip.hbm_bytes
  limits = ((device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices)
  return 2**20 * processes.least(min(limit or _UNTOLD_BYTES for limit in limits) // 2**20)


@contextlib.contextmanager
def quick_draws() -> Iterator[None]:
  """Draws random numbers on GPUs by one kernel, not by as many as there are parameters.

  To compile those takes three minutes for a ResNet-50 and a BERT-base on an H100. The numbers are
  the same. For first weights alone: dropout would draw for the whole batch on every device.
  """
  name = "jax_threefry_gpu_kernel_lowering"
  before = getattr(jax.config, name)
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, before)


def shared_rows(rows: int, devices: int) -> int:
  """Rounds the rows of a batch up to a multiple of the devices that share it."""
  return -(-rows // devices) * devices


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(state, mesh: Mesh):
  """Gives each leaf a sharding: the largest axis that divides over "fsdp" is split, if large."""
  size = mesh.shape["fsdp"]

  def place(leaf):
    shape = np.shape(leaf)
    if size > 1 and np.prod(shape) >= _SMALL:
      for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] % size == 0:
          return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree.map(place, state)


def everywhere(mesh: Mesh) -> NamedSharding:
  """Puts the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def spread(tree, mesh: Mesh):
  """Turns arrays [B, ...] that every host has whole into global arrays over all devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
  )


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns host batches, [B / hosts, ...] each, into global arrays [B, ...] over all devices."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }
