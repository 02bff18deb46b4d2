"""Reader of the synthetic phantom: it draws its images, so there is no folder to read."""

import functools
import math

from input_pipeline.example import SPLITS, Example
from input_pipeline.phantom import radiograph
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Source


def open_source(
  *,
  train_images: int = 20_000,
  validation_images: int = 500,
  test_images: int = 500,
  size_px: int = 128,
  seed: int = 0,
  small_only: bool = False,
  wrong_sentence_fraction: float = 0.0,
  swapped_side_fraction: float = 0.0,
) -> Source:
  """Lists the images of a phantom data set; splits take consecutive numbers, whole patients each.

  Args:
    train_images, validation_images, test_images: rounded up to whole patients.
    size_px: side of the square images.
    seed: of the whole set.
    small_only: draws small findings only.
    wrong_sentence_fraction: share of *training* reports with a sentence dropped or false.
    swapped_side_fraction: share of *training* reports with left and right swapped. Validation and
      test reports stay true: they measure.

  Raises SourceError: an option is out of its range.
  """
  counts = dict(zip(SPLITS, (train_images, validation_images, test_images), strict=True))
  for split, count in counts.items():
    _check_range(f"{split}_images", count, 0)
  _check_range("size_px", size_px, *radiograph.SIZES_PX)
  _check_range("seed", seed, 0)
  wrong = {
    "wrong_sentence_fraction": wrong_sentence_fraction,
    "swapped_side_fraction": swapped_side_fraction,
  }
  for name, fraction in wrong.items():
    _check_range(name, fraction, 0, 1)

  items, notes, start = [], [], 0
  for split, count in counts.items():
    whole = -(-count // radiograph.IMAGES_PER_PATIENT) * radiograph.IMAGES_PER_PATIENT
    if whole != count:
      notes.append(f"{split}_images: {count} rounded up to {whole}, whole patients")
    for index in range(start, start + whole):
      items.append(Item(f"phantom image {index}", split, radiograph.patient(index), index))
    start += whole
  read = functools.partial(_read, seed=seed, size_px=size_px, small_only=small_only, wrong=wrong)
  return Source("phantom", items, read, tuple(notes))


def _check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
  if not least <= value <= most:
    limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
    raise SourceError(f"{name} is {value}; it must be {limits}")


def _read(item: Item, *, seed: int, size_px: int, small_only: bool, wrong: dict) -> Example:
  wrong = wrong if item.split == "train" else {}
  return radiograph.example(seed, item.row, size_px, small_only=small_only, **wrong)
