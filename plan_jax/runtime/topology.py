"""TPUs that are not here, to compile for: their devices, and the maker's values of their chips."""

import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from input_pipeline.errors import UserError


class TopologyError(UserError):
  """A topology that cannot be compiled for; the message says why."""


class Chip(NamedTuple):
  """Maker's values of a chip.

  Attributes:
    hbm_bytes: memory; the compiler keeps a part of it for itself.
    flops: a second, of products in bfloat16.
    hbm_rate: bytes a second.
    clock: cycles a second: `flops` by those of a cycle (two for each place of its matrix units);
      None where the pages do not tell.
    source: page of the values.
    kinds: as JAX calls its devices.
  """

  hbm_bytes: int
  flops: float
  hbm_rate: float
  clock: float | None
  source: str
  kinds: tuple[str, ...]


_PAGES = "docs.cloud.google.com/tpu/docs/"
CHIPS = {
  "v5e": Chip(
    16 * 2**30,
    197e12,
    819e9,
    197e12 / (4 * 2 * 128**2),
    f"{_PAGES}v5e",
    ("TPU v5 lite", "TPU v5e"),
  ),
  "v5p": Chip(
    95 * 2**30,
    459e12,
    2765e9,
    459e12 / (8 * 2 * 128**2),
    f"{_PAGES}v5p",
    ("TPU v5", "TPU v5p"),
  ),
  "v6e": Chip(32 * 2**30, 918e12, 1600e9, None, f"{_PAGES}v6e", ("TPU v6 lite", "TPU v6e")),
}


def chip_of(device: jax.Device) -> Chip | None:
  """Returns the maker's values of a device, here or of a topology; None where we have none."""
  return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)


def devices(topology: str) -> list[jax.Device]:
  """Returns the devices of a topology such as "v5e:4x4", that programs can be compiled for.

  Raises TopologyError where there is no such topology, and without libtpu, the TPU's compiler.
  """
  if not re.fullmatch(rf"({'|'.join(CHIPS)}):\d+(x\d+)+", topology):
    raise TopologyError(
      f"--topology={topology}: name a chip ({', '.join(CHIPS)}) and the chips along each side,"
      " e.g. v5e:4x4 or v5p:2x2x4"
    )
  _settle_library()
  try:
    return topologies.get_topology_desc(topology, "tpu").devices
  except jax.errors.JaxRuntimeError as error:
    raise TopologyError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


def _settle_library() -> None:
  """Tells JAX and libtpu, by their environment, where the library lies and that no TPU is here."""
  if "TPU_LIBRARY_PATH" not in os.environ:
    package = importlib.util.find_spec("libtpu")
    if package is None or not package.origin:
      raise TopologyError(
        "libtpu, the TPU's compiler, is not installed (Linux only): pip install 'plan_jax[compile]'"
      )
    os.environ["TPU_LIBRARY_PATH"] = str(Path(package.origin).parent / "libtpu.so")
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no process here has a TPU to itself
  # Else it asks for them, and complains.
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  # Its programs cannot be read back without a TPU.
  jax.config.update("jax_enable_compilation_cache", False)
