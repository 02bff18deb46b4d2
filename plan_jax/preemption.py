"""SIGTERM, the notice that the machine will be taken away: save, and exit with a special code."""

import signal

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again


class Preempted(KeyboardInterrupt):
  """SIGTERM came; all that can be saved is. The same command goes on from there."""


def interrupt(*_) -> None:
  """Signal handler for all work that is merely begun again: raises Preempted."""
  raise Preempted


class Notice:
  """While open, SIGTERM interrupts nothing; `came` tells of it between steps.

  With several processes the notice to any of them is one to all, and all hear of it after the same
  step (JAX's preemption service, which has its own handler of SIGTERM).
  """

  def __enter__(self):
    self._noticed = False
    self._before = signal.getsignal(signal.SIGTERM)
    if not jax.distributed.is_initialized():
      signal.signal(signal.SIGTERM, self._take)
    return self

  def __exit__(self, *_):
    # None: the handler is not Python's own, but the service's, which nobody asks any more.
    signal.signal(signal.SIGTERM, interrupt if self._before is None else self._before)

  def came(self, count: int) -> bool:
    """Whether to stop now; `count` must be 1 at the first call, and grow by 1."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(count)
    return self._noticed

  def _take(self, *_):
    self._noticed = True
