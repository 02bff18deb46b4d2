"""Folders of records: the examples of a data set on disk, readable without TensorFlow.

For every split a folder holds the shards `NAME-SPLIT.tfrecord-0000i-of-0000n`, each with its index
(see `shards`), and the TFDS metadata (`dataset_info.json`, `features.json`) with their SHA256SUMS,
written last: a folder without them is incomplete.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import digests, serialization
from input_pipeline.example import Example
from input_pipeline.features import FeatureFile
from input_pipeline.shards import REMEDY, RecordError, index_path, read_index, shard_name, unframe

_OPEN_FILES = 256  # well below the usual limit of 1024 a process


def write_metadata(directory: str | os.PathLike, name: str, shards: dict[str, list[Path]]) -> None:
  """Writes features.json and SHA256SUMS, then dataset_info.json, which marks the folder complete.

  Args:
    directory: of the shards.
    name: of the data set, which its shards' names begin with.
    shards: split -> its finished shards, in order.
  """
  infos = []
  for split, paths in shards.items():
    indices = [read_index(path) for path in paths]
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(index["text"]) for index in indices],
        num_bytes=sum(index["offsets"][-1] for index in indices),
      )
    )
  scratch = Path(tempfile.mkdtemp(prefix=".metadata-", dir=directory))
  try:
    # TFDS learns the splits' names from file names; an empty file a split will do.
    for split in shards:
      (scratch / shard_name(name, split, 0, 1)).touch()
    tfds.folder_dataset.write_metadata(
      data_dir=scratch,
      features=serialization.features(),
      split_infos=infos,
      version="1.0.0",
      check_data=False,
      description="Chest images with their texts and true regions.",
    )
    for split in shards:
      (scratch / shard_name(name, split, 0, 1)).unlink()
    digests.write_sums(scratch)  # of these alone: a shard has its checksum in its index
    for file in ("features.json", digests.SUMS, "dataset_info.json"):
      os.replace(scratch / file, Path(directory) / file)
  finally:
    shutil.rmtree(scratch)


def shard_lengths(directory: str | os.PathLike) -> dict[str, list[tuple[Path, int]]]:
  """Returns split -> (shard, number of its records) in order.

  Raises RecordError where the directory is no complete folder of records, or its metadata are
  damaged.
  """
  directory = Path(directory)
  remedy = (
    f"run `python -m input_pipeline.conversion --out={directory} ...`: it makes the records, or"
    " goes on where it stopped"
  )
  info = directory / "dataset_info.json"
  lengths_of, problem = {}, ""
  if not directory.is_dir():
    problem = "there is no such folder"
  elif not info.exists():
    begun = (directory / "convert.json").exists()
    problem = "its conversion has not finished" if begun else "no records (no dataset_info.json)"
  else:
    try:
      digests.check_sums(directory, remedy)
    except digests.DamagedError as error:
      raise RecordError(str(error)) from error
    contents, present = json.loads(info.read_bytes()), set(os.listdir(directory))
    for split in contents["splits"]:
      name, lengths = split["name"], [int(length) for length in split["shardLengths"]]
      names = [shard_name(contents["name"], name, i, len(lengths)) for i in range(len(lengths))]
      if missing := [shard for shard in names if shard not in present]:
        problem = f"{len(missing)} shards of split {name!r} are missing, first {missing[0]}"
      lengths_of[name] = [(directory / n, length) for n, length in zip(names, lengths, strict=True)]
  if problem:
    raise RecordError(f"{directory}: {problem}; {remedy}")
  return lengths_of


def is_complete(directory: str | os.PathLike) -> bool:
  """Tells whether a conversion into `directory` has finished."""
  try:
    shard_lengths(directory)
  except RecordError:
    return False
  return True


def splits(directory: str | os.PathLike) -> dict[str, int]:
  """Returns split -> number of records.

  Raises RecordError, naming directory and remedy, where it is no complete folder of records.
  """
  return {split: sum(n for _, n in shards) for split, shards in shard_lengths(directory).items()}


def fingerprint(directory: str | os.PathLike) -> str:
  """Returns 16 hex digits that change when any record of the folder does; runs write them down.

  Raises RecordError as `splits` does.
  """
  digest = hashlib.blake2b(digest_size=8)
  for _, shards in sorted(shard_lengths(directory).items()):
    for path, length in shards:
      digest.update(f"{path.name} {length} {read_index(path)['crc']}\n".encode())
  return digest.hexdigest()


class _File:
  """A file descriptor that closes when its last user lets go."""

  def __init__(self, path: Path):
    self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

  def __del__(self, close=os.close):  # bound here: at exit, `os` may be gone already
    if hasattr(self, "descriptor"):
      close(self.descriptor)


class RecordSource:
  """Examples of one split, by number; each read checks the record's CRC.

    source = RecordSource("data/records", "train", where="text")
    source[0].sentences

  Safe to share between threads and to fork (reads are positional), and to pickle (open files stay
  behind). Records keep the order they were converted in.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    split: str,
    *,
    where: str | None = None,
    features: str | os.PathLike | None = None,
  ):
    """Reads the indices of a split; no record is touched.

    Args:
      directory: a folder that `convert` completed.
      split: one of `splits(directory)`.
      where: None for all records, "text" for those with sentences, "regions" for those with true
        regions.
      features: folder of stored features, which examples then have.

    Raises:
      FeaturesError: the features are not those of these records, or damaged.
      RecordError: the folder is incomplete, has no such split, or an index does not fit its shard.
      ValueError: `where` is none of the above.
    """
    if where not in (None, "text", "regions"):
      raise ValueError(f"where is {where!r}; it must be None, 'text' or 'regions'")
    shards = shard_lengths(directory)
    if split not in shards:
      raise RecordError(f"{directory}: no split {split!r}; it has {', '.join(shards)}")
    self._read_indices(shards[split], where, features)

  @classmethod
  def of_shard(cls, shard: Path, length: int) -> "RecordSource":
    """Makes the source of all records of one of `shard_lengths`. Raises RecordError."""
    source = cls.__new__(cls)
    source._read_indices([(shard, length)], None, None)
    return source

  def _read_indices(self, shards: list[tuple[Path, int]], where, features) -> None:
    self._paths = [path for path, _ in shards]
    self._files: dict[int, _File] = {}
    self._features: list[FeatureFile] = []
    rows = []  # per shard int64 [n, 4]: shard, number in the shard, first byte, end byte
    for shard, (path, length) in enumerate(shards):
      index = read_index(path)
      if len(index["text"]) != length:
        raise RecordError(
          f"{index_path(path)}: lists {len(index['text'])} records, dataset_info.json {length};"
          f" {REMEDY}"
        )
      offsets = np.array(index["offsets"], np.int64)
      numbers = np.arange(length)
      row = np.stack([np.full(length, shard), numbers, offsets[:-1], offsets[1:]], axis=1)
      rows.append(row if where is None else row[np.array(index[where], bool)])
      if features:
        self._features.append(FeatureFile(features, path, index))
    self._rows = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Example:
    """Reads record i, negative from the end. Raises IndexError, or RecordError for a bad record."""
    shard, number, start, end = self._rows[i].tolist()
    path = self._paths[shard]
    try:
      data = os.pread(self._file(shard).descriptor, end - start, start)
      payload = unframe(data, end - start)
    except OSError as error:
      problem = f"cannot be read ({error})"
    except ValueError as error:
      problem = str(error)
    else:
      try:
        example = serialization.decode(payload)
        features = self._features[shard].of(number) if self._features else None
        return replace(example, place=f"{path}: record {number}", features=features)
      except Exception as error:  # protobuf and TFDS raise many kinds
        problem = f"is intact but no record of this version ({type(error).__name__}: {error})"
    raise RecordError(f"{path}: record {number} {problem}; {REMEDY}")

  def _file(self, shard: int) -> _File:
    file = self._files.get(shard)
    if file is None:
      # No lock: dict operations are atomic, and a file another thread still reads stays open.
      file = self._files.setdefault(shard, _File(self._paths[shard]))
      if len(self._files) > _OPEN_FILES:
        self._files.pop(list(self._files)[0], None)
    return file

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_files": {}}
