"""Studies on disk: checksummed TFRecord shards with an index each, readable without TensorFlow.

A folder of records holds, for every split, `NAME-SPLIT.tfrecord-0000i-of-0000n`, beside each shard
its `.index.json`, and the TFDS metadata (`dataset_info.json`, `features.json`), written last: a
folder without them is incomplete. An index is a JSON object:

  offsets  N + 1 file positions: record i lies in [offsets[i], offsets[i + 1])
  text     N flags: the record has sentences
  regions  N flags: the record has true regions
  skipped  what the converter could not read, as {"path", "reason"}
  source   a hash of the items the shard was made from: a resumed conversion compares it
  crc      CRC-32C of the whole shard file
"""

import functools
import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import example as example_lib
from input_pipeline.errors import UserError
from input_pipeline.example import Entity, Example, Region
from input_pipeline.files import replace_text, temporary_path

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER = _LENGTH.size + _CRC.size
_FRAME = _HEADER + _CRC.size  # what TFRecord adds to the payload of one record
_TEXTS = ("image_id", "study_id", "patient_id", "view", "text_kind")
_DECODERS = {"image": tfds.decode.SkipDecoding()}
_OPEN_FILES = 256  # well below the usual limit of 1024 a process
_REDO = (
  "delete this shard and run `python -m input_pipeline.conversion.convert` again with the same arguments:"
  " it writes what is missing"
)


class RecordError(UserError):
  """A record, a shard or a folder of records cannot be read; the message says which, and why."""


@functools.cache
def features() -> tfds.features.FeaturesDict:
  """The TFDS features of one record: a Study with its nested parts laid flat."""

  def texts():
    return tfds.features.Sequence(tfds.features.Text())

  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 1)),
      "width": tfds.features.Scalar(np.int32),
      "height": tfds.features.Scalar(np.int32),
      **{name: tfds.features.Text() for name in _TEXTS},
      "section_names": texts(),
      "section_texts": texts(),
      "sentences": texts(),
      "label_names": texts(),
      "label_values": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "region_phrases": texts(),
      "region_labels": texts(),
      "region_masks": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
      "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
      "box_region": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "entity_labels": texts(),
      "entity_spans": tfds.features.Tensor(shape=(None, 3), dtype=np.int32),
    }
  )


@functools.cache
def _serializer() -> tfds.core.example_serializer.ExampleSerializer:
  return tfds.core.example_serializer.ExampleSerializer(features().get_serialized_info())


def encode(example: Example) -> bytes:
  """Serializes a study as one tf.train.Example; equal studies give equal bytes.

  Raises ValueError, naming the field, where the study contradicts itself (study.check).
  """
  example_lib.check(example)
  boxes = [region.boxes for region in example.regions]
  serialized = features().encode_example(
    {
      "image": io.BytesIO(example.image),
      "width": example.width,
      "height": example.height,
      **{name: getattr(example, name) for name in _TEXTS},
      "section_names": list(example.sections.keys()),
      "section_texts": list(example.sections.values()),
      "sentences": list(example.sentences),
      "label_names": list(example.labels.keys()),
      "label_values": np.array(list(example.labels.values()), np.int32),
      "region_phrases": [region.phrase for region in example.regions],
      "region_labels": [region.label for region in example.regions],
      "region_masks": [region.mask for region in example.regions],
      "boxes": np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32),
      "box_region": np.repeat(np.arange(len(boxes), dtype=np.int32), [len(b) for b in boxes]),
      "entity_labels": [entity.label for entity in example.entities],
      "entity_spans": np.array(
        [(entity.sentence, entity.start, entity.end) for entity in example.entities], np.int32
      ).reshape(-1, 3),
    }
  )
  # A proto map has no order of its own: without `deterministic` the bytes differ between processes.
  return _serializer().get_tf_example(serialized).SerializeToString(deterministic=True)


def decode(example: bytes) -> Example:
  """The study of a serialized tf.train.Example; its image stays encoded.

  Raises KeyError, AttributeError or ValueError (also protobuf's DecodeError) where the bytes are
  no record of this version; RecordSource turns them into a RecordError.
  """
  fields = features().deserialize_example_np(example, decoders=_DECODERS)
  boxes, box_region = fields["boxes"], fields["box_region"]
  regions = zip(
    fields["region_phrases"], fields["region_labels"], fields["region_masks"], strict=True
  )
  return Example(
    image=fields["image"],
    width=int(fields["width"]),
    height=int(fields["height"]),
    sections=dict(zip(_text(fields["section_names"]), _text(fields["section_texts"]), strict=True)),
    sentences=tuple(_text(fields["sentences"])),
    labels=dict(zip(_text(fields["label_names"]), fields["label_values"].tolist(), strict=True)),
    regions=tuple(
      Region(phrase.decode(), label.decode(), boxes[box_region == i], bytes(mask))
      for i, (phrase, label, mask) in enumerate(regions)
    ),
    entities=tuple(
      Entity(*span, label)
      for span, label in zip(
        fields["entity_spans"].tolist(), _text(fields["entity_labels"]), strict=True
      )
    ),
    **{name: fields[name].decode() for name in _TEXTS},
  )


def _text(values: Iterable[bytes]) -> list[str]:
  return [value.decode() for value in values]


def shard_name(name: str, split: str, index: int, count: int) -> str:
  """File name of shard `index` of `count`, as TFDS spells it."""
  return f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def index_path(shard: str | os.PathLike) -> Path:
  """The index that belongs to a shard."""
  return Path(f"{os.fspath(shard)}.index.json")


class ShardWriter:
  """Writes one shard and its index; both appear whole when the `with` block ends, or not at all.

  The index takes its name before the shard does, so a shard that can be seen has its index.
  """

  def __init__(self, path: str | os.PathLike, source: str = ""):
    """Args: path of the finished shard; `source`, a hash of what it is made from."""
    self._path = Path(path)
    self._temporary = temporary_path(self._path)
    self._index = {"offsets": [0], "text": [], "regions": [], "skipped": [], "source": source}
    self._crc = 0

  def __enter__(self) -> "ShardWriter":
    self._file = open(self._temporary, "wb")
    return self

  def write(self, example: Example) -> None:
    """Appends a study. Raises ValueError where it contradicts itself."""
    payload = encode(example)
    length = _LENGTH.pack(len(payload))
    frame = b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))
    self._file.write(frame)
    self._crc = google_crc32c.extend(self._crc, frame)
    self._index["offsets"].append(self._index["offsets"][-1] + len(frame))
    self._index["text"].append(int(bool(example.sentences)))
    self._index["regions"].append(int(bool(example.regions)))

  def skip(self, path: str, reason: str) -> None:
    """Notes that an item of this shard could not be read."""
    self._index["skipped"].append({"path": path, "reason": reason})

  def __exit__(self, kind, error, traceback) -> None:
    if kind is not None:
      self._file.close()
      self._temporary.unlink()
      return
    self._file.flush()
    os.fsync(self._file.fileno())  # after a power cut, too, a shard that has its name is whole
    self._file.close()
    self._path.unlink(missing_ok=True)  # a shard written again must not meet its new index
    replace_text(index_path(self._path), json.dumps(self._index | {"crc": self._crc}))
    os.replace(self._temporary, self._path)


def _masked_crc(data: bytes) -> bytes:
  crc = google_crc32c.value(data)
  return _CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def read_index(shard: str | os.PathLike) -> dict[str, Any]:
  """The index of a shard, as described on top of this module. Raises RecordError."""
  path = index_path(shard)
  try:
    index = json.loads(path.read_bytes())
    if len(index["offsets"]) == len(index["text"]) + 1 == len(index["regions"]) + 1:
      return index
    problem = "its lists differ in length"
  except (OSError, ValueError, KeyError, TypeError) as error:
    problem = f"{type(error).__name__}: {error}"
  raise RecordError(f"{path}: the index of a shard cannot be read ({problem}); {_REDO}")


def write_metadata(directory: str | os.PathLike, name: str, shards: dict[str, list[Path]]) -> None:
  """Writes features.json, then dataset_info.json, which marks the folder complete.

  Args:
    directory: the folder the shards lie in.
    name: the data set's name, which its shards' names begin with.
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
      features=features(),
      split_infos=infos,
      version="1.0.0",
      check_data=False,
      description="Chest images with their texts and true regions.",
    )
    for file in ("features.json", "dataset_info.json"):
      os.replace(scratch / file, Path(directory) / file)
  finally:
    shutil.rmtree(scratch)


def shard_lengths(directory: str | os.PathLike) -> dict[str, list[tuple[Path, int]]]:
  """Split -> (shard, number of its records) in order.

  Raises RecordError where the directory is no complete folder of records.
  """
  directory = Path(directory)
  info = directory / "dataset_info.json"
  found, problem = {}, ""
  if not directory.is_dir():
    problem = "there is no such folder"
  elif not info.exists():
    begun = (directory / "convert.json").exists()
    problem = "its conversion has not finished" if begun else "no records (no dataset_info.json)"
  else:
    contents, present = json.loads(info.read_bytes()), set(os.listdir(directory))
    for split in contents["splits"]:
      name, lengths = split["name"], [int(length) for length in split["shardLengths"]]
      names = [shard_name(contents["name"], name, i, len(lengths)) for i in range(len(lengths))]
      missing = [shard for shard in names if shard not in present]
      if missing:
        problem = f"{len(missing)} shards of split {name!r} are missing, first {missing[0]}"
      found[name] = [(directory / n, length) for n, length in zip(names, lengths, strict=True)]
  if problem:
    raise RecordError(
      f"{directory}: {problem}; run `python -m input_pipeline.conversion.convert --out={directory} ...`:"
      " it makes the records, or goes on where it stopped"
    )
  return found


def is_complete(directory: str | os.PathLike) -> bool:
  """Whether a conversion into `directory` has finished."""
  try:
    shard_lengths(directory)
  except RecordError:
    return False
  return True


def splits(directory: str | os.PathLike) -> dict[str, int]:
  """Split -> number of records.

  Raises RecordError, naming directory and remedy, where it is no complete folder of records.
  """
  return {split: sum(n for _, n in shards) for split, shards in shard_lengths(directory).items()}


def fingerprint(directory: str | os.PathLike) -> str:
  """16 hex digits that change when any record of the folder does; runs write them down.

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
  """The records of one split, by number; each read checks the record's CRC.

  Safe to share between threads and to fork (reads are positional), and to pickle (open files stay
  behind). Records keep the order they were converted in.
  """

  def __init__(self, directory: str | os.PathLike, split: str, *, where: str | None = None):
    """Reads the indices of a split; no record is touched.

    Args:
      directory: a folder that `convert` completed.
      split: one of `splits(directory)`.
      where: None for all records, "text" for those with sentences, "regions" for those with true
        regions.

    Raises:
      RecordError: the folder is incomplete, has no such split, or an index does not fit its shard.
      ValueError: `where` is none of the above.
    """
    if where not in (None, "text", "regions"):
      raise ValueError(f"where is {where!r}; it must be None, 'text' or 'regions'")
    shards = shard_lengths(directory)
    if split not in shards:
      raise RecordError(f"{directory}: no split {split!r}; it has {', '.join(shards)}")
    self._paths = [path for path, _ in shards[split]]
    self._files: dict[int, _File] = {}
    rows = []  # per shard int64 [n, 4]: shard, number in the shard, first byte, end byte
    for shard, (path, length) in enumerate(shards[split]):
      index = read_index(path)
      if len(index["text"]) != length:
        raise RecordError(
          f"{index_path(path)}: lists {len(index['text'])} records, dataset_info.json {length};"
          f" {_REDO}"
        )
      offsets = np.array(index["offsets"], np.int64)
      numbers = np.arange(length)
      row = np.stack([np.full(length, shard), numbers, offsets[:-1], offsets[1:]], axis=1)
      rows.append(row if where is None else row[np.array(index[where], bool)])
    self._rows = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Example:
    """Reads record i, negative from the end. Raises IndexError, or RecordError for a bad record."""
    shard, number, start, end = self._rows[i].tolist()
    path = self._paths[shard]
    try:
      frame = os.pread(self._file(shard).descriptor, end - start, start)
    except OSError as error:
      raise RecordError(f"{path}: record {number} cannot be read ({error}); {_REDO}") from error
    payload = frame[_HEADER : -_CRC.size]
    if len(frame) != end - start or len(frame) < _FRAME:
      problem = "is cut short"
    elif _masked_crc(frame[: _LENGTH.size]) != frame[_LENGTH.size : _HEADER] or _LENGTH.unpack_from(
      frame
    )[0] != len(payload):
      problem = "has a damaged length (its checksum differs)"
    elif _masked_crc(payload) != frame[-_CRC.size :]:
      problem = "is damaged (its checksum differs)"
    else:
      try:
        return decode(payload)
      except Exception as error:  # protobuf and TFDS raise many kinds
        problem = f"is intact but no record of this version ({type(error).__name__}: {error})"
    raise RecordError(f"{path}: record {number} {problem}; {_REDO}")

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
