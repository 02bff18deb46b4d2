"""True and predicted boxes on disk, so that two detectors can be compared film by film."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plan_jax.evaluators.detection import Film

_TEXTS = ("image_id", "patient_id")
_SIZES = ("height", "width")
_PER_BOX = {"truth": ("truth", "truth_labels"), "found": ("boxes", "scores", "labels")}


def write(path: str | os.PathLike, films: Sequence[Film], findings: Sequence[str]) -> None:
  """Writes films as a compressed .npz, whole or not at all; boxes and scores as float32."""
  arrays: dict[str, np.ndarray] = {"findings": np.array(findings, str)}
  for name in _TEXTS + _SIZES:
    arrays[name] = np.array([getattr(film, name) for film in films])
  for side, names in _PER_BOX.items():
    arrays[f"{side}_count"] = np.array([len(getattr(film, names[0])) for film in films])
    for name in names:
      kind = np.int32 if name.endswith("labels") else np.float32
      arrays[name] = np.concatenate([getattr(film, name) for film in films]).astype(kind)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".tmp.npz")
  np.savez_compressed(temporary, **arrays)
  os.replace(temporary, path)


def read(path: str | os.PathLike) -> tuple[list[Film], list[str]]:
  """The films and the findings that `write` wrote. Raises ValueError, naming the file, else."""
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    texts = [arrays[name].tolist() for name in _TEXTS + _SIZES]
    sides = []
    for side, names in _PER_BOX.items():
      ends = np.cumsum(arrays[f"{side}_count"])[:-1]
      sides += [np.split(arrays[name], ends) for name in names]
    return [Film(*one) for one in zip(*texts, *sides, strict=True)], arrays["findings"].tolist()
  except (OSError, KeyError, ValueError, EOFError) as error:
    raise ValueError(f"{path} holds no boxes of a detector: {error}") from error
