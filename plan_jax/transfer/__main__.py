"""Learns a task on the image encoder of a run; see `command`."""

from plan_jax.transfer.command import main

if __name__ == "__main__":
  main()
