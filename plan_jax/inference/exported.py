"""Exported folders, read back; `plan_jax.export` writes them."""

import json
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from input_pipeline import digests
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.models.weights.files import WeightsError, read_safetensors
from plan_jax.runtime.workdir import TENSORS
from plan_jax.training.assembly import Assembly, assemble
from plan_jax.training.state import TrainState

CONFIG = "config.json"
_REMEDY = "fetch or export it again (plan-jax export)"


def read(folder: Path) -> tuple[Assembly, TrainState, Tokenizer]:
  """Reads the model of an exported folder, bit by bit that of the run.

  Where a run has low-rank updates, these are merged into their kernels: equal to rounding.

  Raises:
    DamagedError: the folder is not whole, or not as it was written; the message names the file.
    WeightsError: it does not fit this version; the message names the tensors.
    SectionError: nor does its config; the message names the key.
  """
  check(folder)
  about = json.loads((folder / CONFIG).read_text())
  config = ConfigDict(about["run"])
  config.mesh = {"data": -1, "fsdp": 1}
  tokenizer = Tokenizer(folder)
  parts = assemble(config, tokenizer)
  wanted = parts.abstract_state
  names = flat({"params": wanted.params, "batch_stats": wanted.batch_stats})
  tensors = read_safetensors(folder / TENSORS)
  wrong = [f"missing {name}" for name in names if name not in tensors]
  wrong += [f"unexpected {name}" for name in tensors if name not in names]
  wrong += [
    f"{name} is {tensors[name].shape}, not {x.shape}"
    for name, x in names.items()
    if name in tensors and tensors[name].shape != x.shape
  ]
  if wrong:
    raise WeightsError(f"{folder / TENSORS} does not fit its {CONFIG}: {'; '.join(wrong)}")

  def placed(part: str):
    paths = flatten_dict(getattr(wanted, part))
    tree = unflatten_dict({path: tensors[".".join(path)] for path in paths})
    return jax.device_put(tree, getattr(parts.shardings, part))

  state = TrainState(np.int32(about["step"]), placed("params"), placed("batch_stats"), ())
  return parts, state, tokenizer


def check(folder: Path) -> None:
  """Checks that an exported folder is as it was written. Raises DamagedError."""
  digests.check_sums(folder, _REMEDY)


def flat(variables: dict) -> dict:
  """Names the leaves "image_encoder.stem.kernel"; parameters and statistics share no name."""
  return {
    ".".join(path): leaf for tree in variables.values() for path, leaf in flatten_dict(tree).items()
  }
