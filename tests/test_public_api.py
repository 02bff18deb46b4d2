import subprocess
import sys
from importlib.resources import files

import plan_jax


def test_names_are_imported_when_they_are_used():
  """`import plan_jax` alone costs nothing."""
  code = (
    "import sys, plan_jax; assert plan_jax.__version__ and 'jax' not in sys.modules\n"
    "assert plan_jax.Predictor.__name__ == 'Predictor' and plan_jax.load.__name__ == 'load'"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_public_names():
  assert plan_jax.train.train and plan_jax.evaluate.evaluate
  assert set(dir(plan_jax)) == {"Predictor", "__version__", "evaluate", "load", "train"}
  assert not hasattr(plan_jax, "nothing")
  for package in ("plan_jax", "input_pipeline"):
    assert (files(package) / "py.typed").is_file()
