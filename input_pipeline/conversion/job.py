"""Job of a conversion: the shards to write, and the function that writes each."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.conversion.settings import ConvertError
from input_pipeline.conversion.skipped import Skipped
from input_pipeline.example import SPLITS, Example, UnreadableError
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import bounded, store_image
from input_pipeline.readers.source import Item, Source
from input_pipeline.shards import ShardWriter, read_index, shard_name


@dataclass(frozen=True)
class Shard:
  """One shard to be, small enough to send to a worker; `source` is a hash of its items."""

  path: Path
  split: str
  items: tuple[Item, ...]
  source: str

  def index(self) -> dict[str, Any] | None:
    """Returns the index of the finished shard; None where it is still to be written."""
    if not self.path.exists():
      return None
    index = read_index(self.path)
    whole = index["source"] == self.source and index["offsets"][-1] == self.path.stat().st_size
    return index if whole else None


@dataclass(frozen=True)
class Job:
  """Function that writes a shard; picklable, the same for all workers."""

  read: Callable[[Item], Example]
  image_px: int
  image_format: str
  max_decoded_px: int

  def __call__(self, shard: Shard) -> tuple[Shard, Skipped]:
    """Writes a shard, unless it is finished. Returns it and what it lacks, as in its index.

    Raises SourceError where the source contradicts itself.
    """
    index = shard.index()
    if index is not None:
      return shard, index["skipped"]
    skipped = []
    with ShardWriter(shard.path, shard.source) as writer:
      for item in shard.items:
        try:
          with bounded(self.max_decoded_px):
            writer.write(store_image(self.read(item), self.image_px, self.image_format))
        except UnreadableError as error:
          writer.skip(item.key, str(error))
          skipped.append({"path": item.key, "reason": str(error)})
        except ValueError as error:
          raise SourceError(f"{item.key}: {error}") from error
    return shard, skipped


# Calls the job with every shard, and gives back what it returns, in any order.
Runner = Callable[[Job, list[Shard]], Iterator[tuple[Shard, Skipped]]]


def plan(source: Source, out: Path, shard_size: int, limit: int | None) -> list[Shard]:
  """Cuts the items of every split into shards, in the reader's order.

  Raises ConvertError where there is none.
  """
  shards = []
  for split in SPLITS:
    items = [item for item in source.items if item.split == split][:limit]
    chunks = [tuple(items[i : i + shard_size]) for i in range(0, len(items), shard_size)]
    for i, chunk in enumerate(chunks):
      digest = hashlib.blake2b(repr(chunk).encode(), digest_size=16).hexdigest()
      path = out / shard_name(source.name, split, i, len(chunks))
      shards.append(Shard(path, split, chunk, digest))
  if not shards:
    raise ConvertError("there is no image to convert")
  return shards
