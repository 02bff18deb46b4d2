"""The command plan-jax evaluate: plan_jax.main with --mode=evaluate."""

from collections.abc import Sequence

from plan_jax.main import start


def main(arguments: Sequence[str]) -> None:
  """Starts plan_jax.main in place of this process."""
  start(["--mode=evaluate", *arguments])
