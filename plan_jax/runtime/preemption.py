"""Preemption: SIGTERM says that the machine will be taken away; save, and exit with a code."""

import ctypes
import os
import signal
import socket
import threading
import time

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again
_END_SECONDS = 4


class Preempted(KeyboardInterrupt):
  """SIGTERM came, and all that can be saved is; the same command goes on from there."""


def interrupt(*_) -> None:
  """Raises Preempted: the signal handler for all work that is merely begun again."""
  raise Preempted


def take_over() -> None:
  """Takes SIGTERM back after processes.start, where JAX took it for a service of its own.

  It raises Preempted, but in the main thread only while that waits for no other process. A process
  that waits for longer ends all the same, process 0 last: its end would abort the others.
  """
  get = ctypes.pythonapi.PyOS_getsig
  get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
  Notice.service = get(signal.SIGTERM)
  signal.signal(signal.SIGTERM, interrupt)
  receiver, sender = socket.socketpair()
  sender.setblocking(False)
  signal.set_wakeup_fd(sender.detach())

  def end():
    while receiver.recv(1) != bytes([signal.SIGTERM]):
      pass
    time.sleep(_END_SECONDS * (1 if jax.process_index() else 2))
    os._exit(EXIT_CODE)

  threading.Thread(target=end, daemon=True).start()


class Notice:
  """A context in which SIGTERM interrupts nothing; `received` tells of it between steps.

  With several processes the notice to any of them is one to all, and all learn of it after the same
  step (JAX's preemption service, which has its own handler of SIGTERM).
  """

  service: int | None = None  # address of that handler

  def __enter__(self):
    self._noticed = False
    self._before = signal.getsignal(signal.SIGTERM)
    if not jax.distributed.is_initialized():
      signal.signal(signal.SIGTERM, self._take)
    elif self.service is not None:
      put = ctypes.pythonapi.PyOS_setsig
      put.restype, put.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
      put(signal.SIGTERM, self.service)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGTERM, self._before)

  def received(self, count: int) -> bool:
    """Tells whether to stop now; `count` must be 1 at the first call, and grow by 1."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(count)
    return self._noticed

  def _take(self, *_):
    self._noticed = True
