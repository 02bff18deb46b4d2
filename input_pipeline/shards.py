"""Shards: checksummed TFRecord files with an index each, written whole or not at all.

Beside each shard lies its `.index.json`, a JSON object:

  offsets  N + 1 file positions: record i lies in [offsets[i], offsets[i + 1])
  text     N flags: the record has sentences
  regions  N flags: the record has true regions
  skipped  items that the converter could not read, as {"path", "reason"}
  source   a hash of the items the shard was made from: a resumed conversion compares it
  crc      CRC-32C of the whole shard file
  digest   of all this, see `digests`
"""

import contextlib
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from input_pipeline import digests, serialization
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.files import read_regular, replace_text, replacing

REMEDY = (
  "delete this shard and run `python -m input_pipeline.conversion` again with the same arguments:"
  " it writes what is missing"
)
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER = _LENGTH.size + _CRC.size


class RecordError(UserError):
  """A record, a shard or a folder of records cannot be read; the message names it and the cause."""


def shard_name(name: str, split: str, index: int, count: int) -> str:
  """Returns the file name of shard `index` of `count`, as TFDS spells it."""
  return f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def index_path(shard: str | os.PathLike) -> Path:
  """Returns the path of the index that belongs to a shard."""
  return Path(f"{os.fspath(shard)}.index.json")


def read_index(shard: str | os.PathLike) -> dict[str, Any]:
  """Reads the index of a shard, as described on top of this module. Raises RecordError."""
  path = index_path(shard)
  try:
    index = digests.unseal(read_regular(path))
    if len(index["offsets"]) == len(index["text"]) + 1 == len(index["regions"]) + 1:
      return index
    problem = "its lists differ in length"
  except (OSError, ValueError, KeyError, TypeError) as error:
    problem = f"{type(error).__name__}: {error}"
  raise RecordError(f"{path}: the index of a shard cannot be read ({problem}); {REMEDY}")


def write_index(path: Path, file: BinaryIO, index: dict[str, Any]) -> None:
  """Writes the index of a file that is written, and has yet to take the name `path`."""
  file.flush()
  os.fsync(file.fileno())  # after a power cut, too, a file that has its name is whole
  path.unlink(missing_ok=True)  # a file written again must not meet its new index
  replace_text(index_path(path), digests.seal(index))


def frame(payload: bytes) -> bytes:
  """Returns the payload as TFRecord stores it: its length and itself, each with a checksum."""
  length = _LENGTH.pack(len(payload))
  return b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))


def unframe(data: bytes, size: int) -> bytes:
  """Returns the payload of a frame of `size` bytes. Raises ValueError where it is damaged."""
  payload = data[_HEADER : -_CRC.size]
  if len(data) != size or size < _HEADER + _CRC.size:
    raise ValueError("is cut short")
  length, crc = data[: _LENGTH.size], data[_LENGTH.size : _HEADER]
  if _masked_crc(length) != crc or _LENGTH.unpack(length)[0] != len(payload):
    raise ValueError("has a damaged length (its checksum differs)")
  if _masked_crc(payload) != data[-_CRC.size :]:
    raise ValueError("is damaged (its checksum differs)")
  return payload


def _masked_crc(data: bytes) -> bytes:
  crc = google_crc32c.value(data)
  return _CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class ShardWriter:
  """Writer of one shard and its index; both appear whole when the `with` block ends, or not at all.

  The index takes its name before the shard does, so a shard that can be seen has its index.
  """

  def __init__(self, path: str | os.PathLike, source: str = ""):
    """Args: path of the finished shard; `source`, a hash of the items it is made from."""
    self._path = Path(path)
    self._index = {"offsets": [0], "text": [], "regions": [], "skipped": [], "source": source}
    self._crc = 0

  def __enter__(self) -> "ShardWriter":
    with contextlib.ExitStack() as stack:
      temporary = stack.enter_context(replacing(self._path))
      self._file = stack.enter_context(temporary.open("wb"))
      self._finish = stack.pop_all()
    return self

  def write(self, example: Example) -> None:
    """Appends an example. Raises ValueError where it contradicts itself."""
    data = frame(serialization.encode(example))
    self._file.write(data)
    self._crc = google_crc32c.extend(self._crc, data)
    self._index["offsets"].append(self._index["offsets"][-1] + len(data))
    self._index["text"].append(int(bool(example.sentences)))
    self._index["regions"].append(int(bool(example.regions)))

  def skip(self, path: str, reason: str) -> None:
    """Notes that an item of this shard could not be read."""
    self._index["skipped"].append({"path": path, "reason": reason})

  def __exit__(self, kind, error, traceback) -> None:
    if kind is not None:
      self._finish.__exit__(kind, error, traceback)  # removes what was written
      return
    with self._finish:
      write_index(self._path, self._file, self._index | {"crc": self._crc})
