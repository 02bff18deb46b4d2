"""Folders of records, and folders to convert into them."""

from pathlib import Path

from fakes.images import image, manifest
from input_pipeline import records, shards

SMALL = {"train_images": 20, "validation_images": 5, "test_images": 0, "size_px": 64}


def content(directory):
  return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def image_folder(directory, broken=(), count=12):
  """Writes a folder of images for the folder reader, some cut short."""
  for i in range(count):
    image(directory / f"{i}.jpg", 64, 48, seed=i)
    if i in broken:
      whole = (directory / f"{i}.jpg").read_bytes()
      (directory / f"{i}.jpg").write_bytes(whole[: len(whole) * 2 // 3])
  rows = [{"image": f"{i}.jpg", "text": "Normal.", "split": "train"} for i in range(count)]
  manifest(directory, rows)
  return str(directory)


def write(directory, splits, name="toy"):
  """Writes a folder of records of splits -> lists of shards, each a list of examples."""
  paths = {}
  for split, parts in splits.items():
    for i, examples in enumerate(parts):
      path = directory / shards.shard_name(name, split, i, len(parts))
      with shards.ShardWriter(path) as writer:
        for example in examples:
          writer.write(example)
      paths.setdefault(split, []).append(path)
  records.write_metadata(directory, name, paths)
  return paths
