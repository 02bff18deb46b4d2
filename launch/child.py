"""python launch/child.py CORES PARENT COMMAND ...: becomes the command, pinned and tied.

The child does it itself: what forks after JAX is loaded may hang if it runs Python before exec.
"""

import os
import sys


def main(cores: str, parent: str, *command: str) -> None:
  """Pins to the cores, e.g. "0,1"; ends with the process `parent`; executes the command."""
  if sys.platform == "linux":
    import ctypes
    import signal

    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # A sweep that is killed outright cannot end its children; the kernel does.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
      sys.exit("the sweep ended")
  os.execv(command[0], command)


if __name__ == "__main__":
  main(*sys.argv[1:])
