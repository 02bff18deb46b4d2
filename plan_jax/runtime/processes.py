"""Several processes as one run: how they meet, who writes, what they must agree on, how they part.

All processes run the same program on one global mesh. What only one may do (write, convert), the
first does; a process that is lost takes the others with it, so that they can be started again.
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

from input_pipeline.errors import UserError

_LOST_SECONDS = 40  # a process that is silent for so long is lost: the others abort
_LEAVE_SECONDS = 10
_APPEAR_SECONDS = 15


def start(address: str | None, count: int | None, index: int | None) -> None:
  """Meets the other processes; before anything else of JAX. Only the first speaks from here on.

  Args:
    address: HOST:PORT of process 0, where all can reach it.
    count: of processes.
    index: of this one.
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
      # Told all, it need not look around; else it asks Kubernetes even so.
      cluster_detection_method="deactivate" if all(given) else None,
      heartbeat_timeout_seconds=_LOST_SECONDS,
      shutdown_timeout_seconds=_LOST_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    why = " ".join(str(error).split())
    raise UserError(
      f"--distributed: {why} (not on a TPU pod, in Slurm or under Open MPI, give"
      " --coordinator_address, --num_processes and --process_id)"
    ) from error
  if not is_primary():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def is_primary() -> bool:
  """Whether this is the process that writes; a lone process is."""
  return jax.process_index() == 0


def on_primary(work: Callable[[], None]) -> None:
  """The first process does `work`, the others wait; they go on together or not at all.

  Raises:
    UserError: the first process met it.
  """
  error = None
  if is_primary():
    try:
      work()
    except UserError as met:
      error = met
  if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.bool_(error is not None)):
    raise error or UserError("process 0 met an error, and says which")
  if error:
    raise error


def wait_for(path: Path) -> bool:
  """Whether what the first process made is here, too; a network's file system may lag behind."""
  deadline = time.monotonic() + _APPEAR_SECONDS
  while not (there := path.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)
  return there


def assert_equal(what: str, value: str) -> None:
  """Checks that all processes have the same value.

  Raises:
    UserError: they have not; in all of them, naming `what` and who differs from process 0.
  """
  if jax.process_count() == 1:
    return
  digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  if differ := [i for i, other in enumerate(digests) if (other != digests[0]).any()]:
    here = f" ({value} in process {jax.process_index()})" if len(value) < 100 else ""
    raise UserError(
      f"{what} of process {', '.join(map(str, differ))} is not that of process 0{here}: all hosts"
      " must see the same files and be given the same flags"
    )


def exit(code: int, message: str) -> NoReturn:
  """Ends the process, saying why; if the others do not end too, without waiting for them.

  They notice that this one is lost within a minute, and abort.
  """
  print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    try:
      multihost.get_barrier_sync_fn()(key="plan_jax_leave", timeout_ms=1000 * _LEAVE_SECONDS)
    except jax.errors.JaxRuntimeError:
      os._exit(code)  # the orderly way out would wait for all, and abort
  sys.exit(code)
