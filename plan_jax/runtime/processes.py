"""Several processes as one run: start, work of the primary process, checks of equality, exit.

All processes run the same program on one global mesh. Work that only one may do (write, convert) is
the first one's; a process that is lost takes the others with it, so that they can be started again.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError, one_line

_LOST_SECONDS = 40  # a process that is silent for so long is lost: the others abort
_EXIT_SECONDS = 10
_WAIT_SECONDS = 15


def start(address: str | None, count: int | None, index: int | None) -> None:
  """Joins the other processes, before anything else of JAX; only the first prints from here on.

  Args:
    address: HOST:PORT of process 0, where all can reach it.
    count: of processes.
    index: of this process.
      All three, or none where JAX finds them itself: on TPU pods, in Slurm, under Open MPI.

  Raises:
    UserError: some of the three are missing, or JAX finds no others; remedy in the message. Where
      they are known but do not come within five minutes, JAX aborts the process.
  """
  given = [value is not None for value in (address, count, index)]
  if any(given) != all(given):
    raise UserError(
      "--coordinator_address, --num_processes and --process_id go together: give all, or none"
    )
  if all(given):
    if ":" not in address:
      raise UserError(f"--coordinator_address={address}: must be HOST:PORT")
    if not 0 <= index < count:
      raise UserError(f"--process_id={index}: must be 0 to {count - 1}, below --num_processes")
  try:
    jax.distributed.initialize(
      address,
      count,
      index,
      # Given all three, JAX need not detect a cluster; it would ask Kubernetes even so.
      cluster_detection_method="deactivate" if all(given) else None,
      heartbeat_timeout_seconds=_LOST_SECONDS,
      shutdown_timeout_seconds=_LOST_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"--distributed: {one_line(error)} (not on a TPU pod, in Slurm or under Open MPI, give"
      " --coordinator_address, --num_processes and --process_id)"
    ) from error
  if not is_primary():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def is_primary() -> bool:
  """Tells whether this is the process that writes; a lone process is."""
  return jax.process_index() == 0


def on_primary(work: Callable[[], None]) -> None:
  """Does `work` in the first process while the others wait; they go on together or not at all.

  Raises UserError in all of them, where `work` raises it, or the disk refuses it (DiskError).
  """
  error = None
  if is_primary():
    try:
      with disk_errors():
        work()
    except UserError as raised:
      error = raised
  if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.bool_(error is not None)):
    raise error or UserError("process 0 met an error, and says which")
  if error:
    raise error


def require(path: Path) -> None:
  """Waits for a file of the first process, as network disks may lag.

  Raises UserError where it does not come.
  """
  if is_primary():
    return
  deadline = time.monotonic() + _WAIT_SECONDS
  while not (exists := path.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)
  if not exists:
    raise UserError(
      f"process {jax.process_index()} does not see {path}, which process 0 has: --workdir and"
      " config.data.records must be folders that all hosts share"
    )


def assert_equal(name: str, value: str) -> None:
  """Raises UserError, in all processes, unless they have the same value; it names who differs."""
  if jax.process_count() == 1:
    return
  digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  if differ := [i for i, other in enumerate(digests) if (other != digests[0]).any()]:
    here = f" ({value} in process {jax.process_index()})" if len(value) < 100 else ""
    raise UserError(
      f"{name} of process {', '.join(map(str, differ))} is not that of process 0{here}: all hosts"
      " must see the same files and be given the same flags"
    )


def least(value: int) -> int:
  """Returns the least that any process gives; below 2**31, for JAX would cut off the rest."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.process_allgather(np.int32(value)).min())


def exit(code: int, message: str) -> NoReturn:
  """Ends the process with a message; if the others do not end too, without waiting for them.

  They notice that this one is lost within a minute, and abort.
  """
  print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    try:
      multihost.get_barrier_sync_fn()(key="plan_jax_leave", timeout_ms=1000 * _EXIT_SECONDS)
    except jax.errors.JaxRuntimeError:
      os._exit(code)  # the orderly way out would wait for all, and abort
  sys.exit(code)
