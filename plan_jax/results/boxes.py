"""True and predicted boxes on disk, so that two detectors can be compared image by image."""

import os
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.digests import DamagedError
from input_pipeline.files import replacing
from plan_jax.metrics.detection import Image

_TEXTS = ("image_id", "patient_id")
_SIZES = ("height", "width")
_PER_BOX = {"truth": ("truth", "truth_labels"), "predicted": ("boxes", "scores", "labels")}


def write(path: str | os.PathLike, images: Sequence[Image], findings: Sequence[str]) -> None:
  """Writes images as a compressed .npz, whole or not at all; boxes and scores as float32."""
  arrays: dict[str, np.ndarray] = {"findings": np.array(findings, str)}
  for name in _TEXTS + _SIZES:
    arrays[name] = np.array([getattr(image, name) for image in images])
  for side, names in _PER_BOX.items():
    arrays[f"{side}_count"] = np.array([len(getattr(image, names[0])) for image in images])
    for name in names:
      dtype = np.int32 if name.endswith("labels") else np.float32
      arrays[name] = np.concatenate([getattr(image, name) for image in images]).astype(dtype)
  with replacing(path) as temporary, temporary.open("wb") as file:
    np.savez_compressed(file, **arrays)


def read(path: str | os.PathLike) -> tuple[list[Image], list[str]]:
  """Reads images and findings that `write` wrote. Raises DamagedError, naming the file."""
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    texts = [arrays[name].tolist() for name in _TEXTS + _SIZES]
    sides = []
    for side, names in _PER_BOX.items():
      ends = np.cumsum(arrays[f"{side}_count"])[:-1]
      sides += [np.split(arrays[name], ends) for name in names]
    images = [Image(*fields) for fields in zip(*texts, *sides, strict=True)]
    return images, arrays["findings"].tolist()
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise DamagedError(f"{path} holds no boxes of a detector ({error}); evaluate again") from error
