"""Stored features: what a frozen image encoder makes of each record, on disk.

For each shard of the records a folder of features holds a file of the same name, float16
[N, V, P, C] in C order and little-endian: N records, V views (the image, and with V = 2 its mirror
image), P pixels of the feature map, C channels. Its index beside it, `.index.json`, holds

  shape    [N, V, P, C]
  crc      N values, CRC-32C of each record's block
  records  CRC-32C of the shard of records
  encoder  a fingerprint of all that the features depend on but the images
  digest   of all this, see `digests`
"""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Float16

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.files import read_regular, replacing
from input_pipeline.shards import index_path, read_index, write_index

_BYTES = 2  # of a float16
_REMEDY = "delete it and start again: what is missing is made anew"


class FeaturesError(UserError):
  """Stored features are missing, damaged, or of something else; the message names the file."""


def file_of(folder: str | os.PathLike, shard: Path) -> Path:
  """Returns the path of the features of a shard of records."""
  return Path(folder) / shard.name


def write(
  folder: str | os.PathLike,
  shard: Path,
  blocks: Iterable[Float16[np.ndarray, "V P C"]],
  encoder: str,
) -> None:
  """Writes the features of a shard, one block a record, whole or not at all.

  Raises FeaturesError for a value that float16 does not hold, and DiskError.
  """
  path, crcs, shape = file_of(folder, shard), [], ()
  with replacing(path) as temporary, temporary.open("wb") as file:
    for number, block in enumerate(blocks):
      if not np.isfinite(block).all():
        raise FeaturesError(
          f"{shard}: record {number}: its features are not finite in float16: the weights do not"
          " fit the images, or config.data.store_features=False"
        )
      data = np.ascontiguousarray(block, "<f2").tobytes()
      file.write(data)
      crcs.append(google_crc32c.value(data))
      shape = block.shape
    index = {"shape": [len(crcs), *shape], "crc": crcs, "encoder": encoder}
    write_index(path, file, index | {"records": read_index(shard)["crc"]})


def is_stored(folder: str | os.PathLike, shard: Path, encoder: str, views: int) -> bool:
  """Tells whether the features of a shard are there, whole, of at least so many views.

  Raises FeaturesError where those there are of another encoder or other records, or damaged.
  """
  path = file_of(folder, shard)
  if not path.exists():
    return False
  index = _read_index(path, shard, read_index(shard))
  if index["encoder"] != encoder:
    raise FeaturesError(
      f"{path}: its features are of another encoder, other settings of it, dtype or image size:"
      " name another folder in config.data.features (of an evaluation set in its own key features),"
      " or delete this one"
    )
  return index["shape"][1] >= views


def _read_index(path: Path, shard: Path, records: dict) -> dict:
  try:
    index = digests.unseal(read_regular(index_path(path)))
    count, *block = index["shape"]
    if len(index["crc"]) != count:
      raise ValueError("its lists differ in length")
    if path.stat().st_size != count * math.prod(block) * _BYTES:
      raise ValueError(f"{path.name} is not of the length that it says")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise FeaturesError(
      f"{path}: its index {index_path(path).name} cannot be read ({type(error).__name__}: {error});"
      f" {_REMEDY}"
    ) from error
  if (index["records"], count) != (records["crc"], len(records["text"])):
    raise FeaturesError(f"{path}: its features are of other records than {shard}; {_REMEDY}")
  return index


class FeatureFile:
  """Features of one shard of records, each read checked by its CRC.

  Safe to share between threads and to fork: reads are positional. Raises FeaturesError where the
  file is missing, damaged, or of other records.
  """

  def __init__(self, folder: str | os.PathLike, shard: Path, records: dict):
    """Args: folder of the features; the shard of records and its index, as `read_index` gives."""
    self._path = file_of(folder, shard)
    index = _read_index(self._path, shard, records)
    self._shape, self._crc = tuple(index["shape"][1:]), index["crc"]

  def of(self, number: int) -> Callable[[int], Float16[np.ndarray, "P C"]]:
    """Returns the function from a view of record `number`, 0 or 1, to its features.

    Nothing is read before it is called: who reads the text alone pays for nothing.
    """
    return lambda view: self._read(number)[view]

  def _read(self, number: int) -> Float16[np.ndarray, "V P C"]:
    size = math.prod(self._shape) * _BYTES
    data, problem = b"", "is damaged (its checksum differs)"
    try:
      with self._path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, number * size)
    except OSError as error:
      problem = f"cannot be read ({error.strerror})"
    if google_crc32c.value(data) != self._crc[number]:
      raise FeaturesError(f"{self._path}: the block of record {number} {problem}; {_REMEDY}")
    return np.frombuffer(data, "<f2").reshape(self._shape)
