"""Tensors of other projects' checkpoints, read from disk; nothing in them is executed."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline import digests, json_object
from input_pipeline.errors import UserError

# Entries of a torch file under which training scripts put the tensors.
_INSIDE = ("state_dict", "model")


class WeightsError(UserError):
  """Weights that cannot be read, or do not fit the model; names file, tensors and remedy."""


class Weights(NamedTuple):
  """Content of a file or folder.

  Attributes:
    tensors: by name; numbers of any float type as float32.
    settings: of a folder's config.json, empty without.
    sha256: of the file; of shards, one after another.
  """

  tensors: dict[str, np.ndarray]
  settings: dict
  sha256: str


def read(path: str | Path) -> Weights:
  """Reads a torch or safetensors file, or a Hugging Face folder.

  A folder holds model.safetensors, shards with model.safetensors.index.json, or pytorch_model.bin.
  torch is imported for torch files alone, and these are read as tensors only.

  Raises WeightsError, naming the file, where there is none, it is broken, or holds code, and
  DamagedError where the folder is an exported one, and not as it was written.
  """
  path = Path(path)
  if not path.is_file() and not path.is_dir():
    raise WeightsError(
      f"{path} is not there, and nothing is downloaded: name a checkpoint file or a Hugging Face"
      " folder on this machine"
    )
  folder = path if path.is_dir() else path.parent
  settings = read_settings(path / "config.json")
  if settings.get("library") == "plan_jax" or digests.has_sums(folder):
    digests.check_sums(folder, "fetch or export it again (plan-jax export)")
  tensors, digest = {}, hashlib.sha256()
  for file in _files(path) if path.is_dir() else [path]:
    with open(file, "rb") as opened:
      while block := opened.read(2**24):
        digest.update(block)
    tensors |= read_safetensors(file) if file.suffix == ".safetensors" else _torch(file)
  return Weights(tensors, settings, digest.hexdigest())


def _files(folder: Path) -> list[Path]:
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    shards = read_settings(index).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if not names or any(not (folder / name).is_file() for name in names):
      raise WeightsError(f"{index} names shards that are not beside it: fetch the folder again")
    return [folder / name for name in names]
  for name in ("model.safetensors", "pytorch_model.bin"):
    if (folder / name).is_file():
      return [folder / name]
  raise WeightsError(
    f"{folder} holds neither model.safetensors (or its index) nor pytorch_model.bin"
  )


def read_settings(path: Path) -> dict:
  """Reads a JSON file, empty without. Raises WeightsError where it holds no entries by name."""
  return json_object.read(path, WeightsError) if path.is_file() else {}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a file, and compares no digest. Raises WeightsError where it is broken."""
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(str(path), framework="np") as file:
      return {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, OSError) as error:
    raise WeightsError(f"{path} is no whole safetensors file: {error}") from error


def _torch(path: Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise WeightsError(
      f"{path} is a torch file, and torch is not installed: pip install torch, or save the tensors"
      " as .safetensors where it is"
    ) from error
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # broken files fail in every way
    if "TorchScript" in str(error):
      raise WeightsError(
        f"{path} is a TorchScript archive, which holds code, and is not loaded. Where you trust it,"
        " keep the tensors alone: torch.save(torch.jit.load(PATH, map_location='cpu').state_dict(),"
        " NEW_PATH)"
      ) from error
    if "global" in str(error).lower():
      raise WeightsError(
        f"{path} holds code besides tensors, and is not loaded. Where you trust it, keep the"
        " tensors alone: torch.save(torch.load(PATH, weights_only=False)['state_dict'], NEW_PATH)"
      ) from error
    first = str(error).strip().split("\n")[0]
    raise WeightsError(f"{path} is no whole torch file: {first or 'it ends too early'}") from error
  for name in _INSIDE:
    if isinstance(content, dict) and isinstance(content.get(name), dict):
      content = content[name]
  if not isinstance(content, dict):
    raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by name")
  # Entries that are no tensors (an epoch, a learning rate) are no weights.
  return {
    str(name): _float32((x.float() if x.is_floating_point() else x).numpy())
    for name, x in content.items()
    if torch.is_tensor(x)
  }


def _float32(x: np.ndarray) -> np.ndarray:
  return x if np.issubdtype(x.dtype, np.integer) or x.dtype == bool else x.astype(np.float32)
