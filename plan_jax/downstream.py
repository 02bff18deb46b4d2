"""A run's image encoder, or one to compare it with, for tasks that build on it."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from plan_jax import grounder
from plan_jax.models.plan import image_encoder
from plan_jax.reporting import say

NO_RUN = -1  # the step of fresh weights


def encoder_of(
  workdir: Path, config: ConfigDict, *, fresh: bool, image_px: int, seed: int
) -> tuple[nn.Module, dict, int]:
  """The module, its weights {"params", "batch_stats"} and the step of the run they are of.

  Args:
    workdir: of the run.
    config: of the run.
    fresh: whether the weights are new, of the same architecture.
    image_px: side of the square that fresh weights are made for.
    seed: of fresh weights.

  Raises UserError where the run cannot be loaded.
  """
  encoder = image_encoder(config.model.image)
  if fresh:
    image = np.zeros((1, image_px, image_px, 1), np.float32)
    return encoder, jax.jit(encoder.init)(jax.random.key(seed), image), NO_RUN
  model = grounder.load(workdir)
  parts = jax.device_get(model.variables)
  weights = {part: tree.get("image_encoder", {}) for part, tree in parts.items()}
  say(f"image encoder of {workdir} at step {model.step}")
  return encoder, weights, model.step


def data_name(folder: Path, split: str) -> str:
  """What a split of a folder of records is called in rows."""
  return f"{json.loads((Path(folder) / 'dataset_info.json').read_text())['name']}/{split}"
