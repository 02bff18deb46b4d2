"""A run's image encoder, or one to compare it with, and what a head on it can read."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from plan_jax.inference.load import load as load_run
from plan_jax.inference.predictor import Predictor
from plan_jax.models.resnet import BLOCKS, ResNet
from plan_jax.models.two_towers import image_encoder
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import quick_draws

NO_RUN = -1  # the step of fresh weights


class Encoder(NamedTuple):
  """An image encoder, without what may project its last map.

  Attributes:
    module: a ResNet or a ViT.
    weights: {"params", "batch_stats"}.
    step: of the run that they are of, or NO_RUN.
    mark: tells them from other weights; "" of fresh ones.
  """

  module: nn.Module
  weights: dict
  step: int
  mark: str


def encoder_of(
  workdir: Path, config: ConfigDict, *, fresh: bool, image_px: int, seed: int, step: int = NO_RUN
) -> Encoder:
  """The image encoder of a run, or a fresh one of the same architecture.

  Args:
    workdir: of the run.
    config: of the run.
    fresh: whether the weights are new.
    image_px: side of the square that fresh weights are made for.
    seed: of fresh weights.
    step: of the run's checkpoint; by default that which is evaluated.

  Raises UserError where the run cannot be loaded.
  """
  module = image_encoder(config.model.image)
  if isinstance(module, ResNet):
    module = module.clone(projector=0)
  if fresh:
    image = np.zeros((1, image_px, image_px, 1), np.float32)
    with quick_draws():
      weights = jax.jit(module.init)(jax.random.key(seed), image)
    return Encoder(module, weights, NO_RUN, "")
  model = load_run(workdir, step=None if step == NO_RUN else step)
  weights = weights_of(model)
  log.info(f"image encoder of {workdir} at step {model.step}")
  return Encoder(module, weights, model.step, mark_of(weights))


def weights_of(model: Predictor) -> dict:
  """{"params", "batch_stats"} of a run's image encoder, on the host, without its projector."""
  parts = jax.device_get(model.variables)
  return {
    part: {
      name: some
      for name, some in tree.get("image_encoder", {}).items()
      if not name.startswith("projector_")
    }
    for part, tree in parts.items()
  }


def mark_of(weights: dict) -> str:
  """Twelve letters that change with the weights."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten_dict(weights, sep="/").items()):
    digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:12]


def data_name(folder: Path, split: str) -> str:
  """What a split of a folder of records is called in rows."""
  return f"{json.loads((Path(folder) / 'dataset_info.json').read_text())['name']}/{split}"


def pooled(
  encoder: nn.Module, variables: dict, image: jax.Array, *, train: bool
) -> tuple[jax.Array, dict]:
  """The mean over the grid of the last map, float32 [B, C], and the running statistics after.

  Args:
    encoder: a ResNet or a ViT.
    variables: "params", "batch_stats".
    image: [B, S, S, 1] float32 in [0, 1].
    train: whether batch norm goes by the batch.
  """
  out, mutated = encoder.apply(
    variables, image, train=train, mutable=["batch_stats"] if train else []
  )
  stats = mutated.get("batch_stats", variables.get("batch_stats", {}))
  return out.astype(jnp.float32).mean((1, 2)), stats


def pyramid(
  encoder: nn.Module, variables: dict, image: jax.Array, strides: Sequence[int], *, train: bool
) -> tuple[list[jax.Array], dict]:
  """Feature maps of the strides, and the running statistics after.

  Stage s of a ResNet has stride 2^(s + 1), and one that it lacks is replaced by its last; a ViT has
  its one grid each time. What does not have the stride wanted is resampled, bilinear (a stage
  without stride, for it is dilated or cut short, is shrunk; a ViT's grid of 16 pixels is enlarged
  for stride 8).

  Args:
    encoder, variables, train: as of `pooled`.
    image: [B, S, S, 1] float32 in [0, 1], S a multiple of each stride.
    strides: powers of two, from 4 on.
  """
  names = []
  if isinstance(encoder, ResNet):
    counts = BLOCKS[encoder.depth][: encoder.stages]
    stages = [min(int(math.log2(stride)) - 2, len(counts) - 1) for stride in strides]
    names = [f"stage{stage + 1}_block{counts[stage]}" for stage in stages]
  out, mutated = encoder.apply(
    variables, image, train=train,
    capture_intermediates=lambda module, _: module.name in names,
    mutable=["intermediates", "batch_stats"] if train else ["intermediates"],
  )  # fmt: skip
  levels = []
  for i, stride in enumerate(strides):
    side = image.shape[1] // stride
    x = mutated["intermediates"][names[i]]["__call__"][0] if names else out
    levels.append(jax.image.resize(x, (x.shape[0], side, side, x.shape[-1]), "linear"))
  return levels, mutated.get("batch_stats", variables.get("batch_stats", {}))
