"""The command plan-jax train: plan_jax.main under a shorter name."""

from collections.abc import Sequence

from plan_jax.main import start


def main(arguments: Sequence[str]) -> None:
  """Starts plan_jax.main in place of this process."""
  start(arguments)
