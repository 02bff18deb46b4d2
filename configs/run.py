"""The config of a run that has begun, by its folder: `configs/run.py:runs/a`.

plan_jax.main takes it where no --config is given.
"""

from ml_collections import ConfigDict

from plan_jax.runtime.workdir import Workdir


def get_config(workdir: str) -> ConfigDict:
  """Loads the config that the run was started with."""
  return Workdir(workdir).load_config()
