"""Worker processes that run a job over many tasks, and the bar that shows their progress."""

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import tqdm

from input_pipeline.errors import UserError

_M_TOP_PAD = -2  # of malloc.h: how much free memory a process keeps


class WorkerError(UserError):
  """A worker process died."""


def in_processes(job: Callable[[Any], Any], tasks: Sequence, workers: int | None) -> Iterator:
  """Runs the job on every task; results come as they are ready, in any order.

  Job, tasks and results are picklable. 0 and 1 workers stay in this process, None is one a core.

  Raises WorkerError where a process died, and whatever the job raises.
  """
  workers = os.cpu_count() or 1 if workers is None else workers
  if workers <= 1 or len(tasks) <= 1:
    yield from map(job, tasks)
    return
  context = multiprocessing.get_context("spawn")  # a fork would copy the threads of the libraries
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(tasks)), mp_context=context, initializer=_start
  )
  try:
    # Workers start here and inherit the mask: Ctrl-C ends the parent alone, which ends them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      futures = [pool.submit(job, task) for task in tasks]
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  except BrokenProcessPool:
    raise WorkerError(
      "a worker process died: killed for want of memory, or the calling script has no __main__"
      " guard. Finished work is kept: run the same command again, with fewer workers"
    ) from None
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def progress_bar(
  name: str, total: int, *, initial: int = 0, show: bool = True, unit: str = "image"
) -> tqdm.tqdm:
  """Returns a bar on stderr, which a log file gets every 30 seconds."""
  interval = 0.5 if sys.stderr.isatty() else 30
  options = {"disable": not show, "mininterval": interval, "dynamic_ncols": True}
  return tqdm.tqdm(total=total, initial=initial, unit=unit, desc=name, **options)


def set_up() -> None:
  """Makes a process a good worker: one thread for OpenCV, and freed memory is kept."""
  cv2.setNumThreads(1)
  # glibc would give what an image frees back to the system, to get the same again for the next.
  with contextlib.suppress(OSError, AttributeError):  # another libc
    ctypes.CDLL(None).mallopt(_M_TOP_PAD, 2**28)


def _start() -> None:
  set_up()
  threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)  # a killed parent cannot tell its workers to stop
