"""Word-pixel alignment pre-training on chest X-rays and their reports.

  model = plan_jax.load("runs/a")  # a plan_jax.Predictor
  grounding = model.ground("image.dcm", "small left effusion")
  grounding.map, grounding.score, grounding.boxes(0.5), grounding.overlay()

`plan_jax.train` and `plan_jax.evaluate` are modules: `plan_jax.train.train(config, workdir, ...)`.
All is imported when it is first used.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__", "evaluate", "load", "train"]


def __getattr__(name: str):
  if name in ("evaluate", "train"):
    return importlib.import_module(f"plan_jax.{name}")
  if name == "load":
    return importlib.import_module("plan_jax.inference.load").load
  if name == "Predictor":
    return importlib.import_module("plan_jax.inference.predictor").Predictor
  raise AttributeError(f"module 'plan_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
