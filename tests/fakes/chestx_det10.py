"""A ChestX-Det10 folder: parallel lists, a patient in both tables, images in nested folders."""

import json

from fakes.images import image


def entry(name, **boxes):
  """`boxes`: finding -> its boxes."""
  pairs = [(finding, box) for finding, each in boxes.items() for box in each]
  return {
    "file_name": name,
    "syms": [finding for finding, _ in pairs],
    "boxes": [box for _, box in pairs],
  }


NODULES = [[512, 0, 576, 64], [0, 512, 128, 640]]
TRAIN = [
  entry("00000004_000.png"),
  entry("00000011_000.png", Nodule=NODULES, Effusion=[[64, 640, 256, 1024]]),
  entry("00000071_000.png", Mass=[[1, 2, 3, 4]]),  # its patient is in the other table too
  # One box twice, as in the real table.
  entry("00000103_001.png", Consolidation=[[243, 662, 407, 886], [243, 662, 407, 886]]),
]
TEST = [entry("00000071_008.png", Effusion=[[799, 666, 937, 761]]), entry("00000091_005.png")]


def write(folder, train=TRAIN, test=TEST, *, size_px=128):
  folder.mkdir(parents=True, exist_ok=True)
  for name, entries, place in (
    ("train", train, "train_data/train-old"),
    ("test", test, "test_data/test_data"),
  ):
    (folder / f"{name}.json").write_text(json.dumps(entries))
    for i, each in enumerate(entries):
      image(folder / place / each["file_name"], size_px, size_px, seed=i)
  return folder
