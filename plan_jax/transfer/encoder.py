"""A run's image encoder, or a fresh one to compare it with, and the features that a head reads."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images
from plan_jax.inference.load import load
from plan_jax.models import lora
from plan_jax.models.resnet import BLOCKS, ResNet
from plan_jax.models.two_towers import image_encoder
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import quick_draws, spread
from plan_jax.transfer.settings import LATEST

NO_RUN = -1  # the step of fresh weights


class Encoder(NamedTuple):
  """An image encoder, without what may project its last map; low-rank updates are merged.

  Attributes:
    module: a ResNet or a ViT.
    weights: {"params", "batch_stats"}.
    step: step of the run that the weights are taken from, or NO_RUN.
    fingerprint: hash of the weights; "" for fresh ones.
  """

  module: nn.Module
  weights: dict
  step: int
  fingerprint: str


def fresh_encoder(config: ConfigDict, *, image_px: int, seed: int) -> Encoder:
  """Makes an encoder of the architecture in a run's config, with weights drawn by the seed."""
  module = _module(config)
  image = np.zeros((1, image_px, image_px, 1), np.float32)
  with quick_draws():
    weights = jax.jit(module.init)(jax.random.key(seed), image)
  return Encoder(module, weights, NO_RUN, "")


def run_encoder(workdir: Path, config: ConfigDict, *, step: int = LATEST) -> Encoder:
  """Loads the encoder of a run with this config. Raises UserError where it cannot be loaded."""
  model = load(workdir, step=None if step == LATEST else step)
  weights = encoder_weights(model.variables)
  log.info(f"image encoder of {workdir} at step {model.step}")
  return Encoder(_module(config), weights, model.step, fingerprint(weights))


def _module(config: ConfigDict) -> nn.Module:
  module = image_encoder(config.model.image)
  return module.clone(**{"projector" if isinstance(module, ResNet) else "lora_rank": 0})


def encoder_weights(variables: dict) -> dict:
  """Returns the image encoder's part of a model's variables, on the host.

  It is without its projector, and low-rank updates are in their kernels.
  """
  parts = {
    collection: {
      name: leaf
      for name, leaf in tree.get("image_encoder", {}).items()
      if not name.startswith("projector_")
    }
    for collection, tree in jax.device_get(variables).items()
  }
  return parts | {"params": lora.merged(parts["params"])}


def fingerprint(weights: dict) -> str:
  """Returns twelve letters that change with the weights."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten_dict(weights, sep="/").items()):
    digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:12]


def letterboxed(
  function: Callable, arrays: Sequence[np.ndarray], side: int, batch: int, mesh: Mesh
) -> Iterator:
  """Yields what `function` gives for images uint8 [H, W], `batch` at a time, on the host.

  It takes float32 [batch, side, side, 1] on the mesh, the last batch filled up, and gives trees of
  arrays [batch, ...], of which those of the filling are cut off.
  """
  for start in range(0, len(arrays), batch):
    chunk = arrays[start : start + batch]
    square = np.zeros((batch, side, side, 1), np.float32)
    for i, image in enumerate(chunk):
      square[i, ..., 0] = images.fit(image, side)
    out = jax.device_get(function(spread(square, mesh)))
    yield jax.tree.map(itemgetter(slice(len(chunk))), out)


def pooled(
  encoder: nn.Module, variables: dict, image: jax.Array, *, train: bool
) -> tuple[jax.Array, dict]:
  """Returns the mean of the last map over its grid, float32 [B, C], and the statistics after it.

  `encoder` is a ResNet or a ViT, `variables` are its "params" and "batch_stats", and `image` is
  float32 [B, S, S, 1] in [0, 1]; with `train` batch norm goes by the batch.
  """
  out, mutated = encoder.apply(
    variables, image, train=train, mutable=["batch_stats"] if train else []
  )
  stats = mutated.get("batch_stats", variables.get("batch_stats", {}))
  return out.astype(jnp.float32).mean((1, 2)), stats


def pyramid(
  encoder: nn.Module, variables: dict, image: jax.Array, strides: Sequence[int], *, train: bool
) -> tuple[list[jax.Array], dict]:
  """Returns feature maps of the given strides, and the running statistics after them.

  Stage s of a ResNet has stride 2^(s + 1), and a stage that it lacks is replaced by its last; a ViT
  gives its one grid each time. A map of another stride is resampled, bilinear (a stage that is
  dilated or cut short is shrunk; a ViT's grid of 16 pixels is enlarged for stride 8).

  Args:
    encoder, variables, train: see `pooled`.
    image: [B, S, S, 1] float32 in [0, 1], S a multiple of each stride.
    strides: powers of two, from 4 on.
  """
  names = []
  if isinstance(encoder, ResNet):
    counts = BLOCKS[encoder.depth][: encoder.stages]
    stages = [min(int(math.log2(stride)) - 2, len(counts) - 1) for stride in strides]
    names = [f"stage{stage + 1}_block{counts[stage]}" for stage in stages]
  out, mutated = encoder.apply(
    variables,
    image,
    train=train,
    capture_intermediates=lambda module, _: module.name in names,
    mutable=["intermediates", "batch_stats"] if train else ["intermediates"],
  )
  levels = []
  for i, stride in enumerate(strides):
    side = image.shape[1] // stride
    x = mutated["intermediates"][names[i]]["__call__"][0] if names else out
    levels.append(jax.image.resize(x, (x.shape[0], side, side, x.shape[-1]), "linear"))
  return levels, mutated.get("batch_stats", variables.get("batch_stats", {}))
