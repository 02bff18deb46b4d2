"""Reader of the synthetic phantom: it draws its images, so there is no folder to read."""

import functools

from input_pipeline.example import SPLITS, Example
from input_pipeline.phantom import radiograph
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Source


def open_source(
  source: str = "",
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
    source: must stay empty.
    train_images: images of the split, rounded up to whole patients.
    validation_images: likewise.
    test_images: likewise.
    size_px: side of the square images.
    seed: of the whole set.
    small_only: draws small findings only.
    wrong_sentence_fraction: share of *training* reports with a sentence dropped or false.
    swapped_side_fraction: share of *training* reports with left and right swapped. Validation and
      test reports stay true: they measure.

  Raises:
    SourceError: an option is out of its range.
  """
  if source:
    raise SourceError(f"the phantom is drawn, not read: leave out source ({source!r})")
  counts = dict(zip(SPLITS, (train_images, validation_images, test_images), strict=True))
  for split, images in counts.items():
    if images < 0:
      raise SourceError(f"{split}_images is {images}; it must be 0 or more")
  low, high = radiograph.SIZES_PX
  if not low <= size_px <= high:
    raise SourceError(f"size_px is {size_px}; it must be {low} to {high}")
  if seed < 0:
    raise SourceError(f"seed is {seed}; it must be 0 or more")
  wrong = {
    "wrong_sentence_fraction": wrong_sentence_fraction,
    "swapped_side_fraction": swapped_side_fraction,
  }
  for name, fraction in wrong.items():
    if not 0 <= fraction <= 1:
      raise SourceError(f"{name} is {fraction}; it must be 0 to 1")

  items, notes, start = [], [], 0
  for split, images in counts.items():
    whole = -(-images // radiograph.IMAGES_PER_PATIENT) * radiograph.IMAGES_PER_PATIENT
    if whole != images:
      notes.append(f"{split}_images: {images} rounded up to {whole}, whole patients")
    for index in range(start, start + whole):
      items.append(Item(f"phantom image {index}", split, radiograph.patient(index), index))
    start += whole
  read = functools.partial(_read, seed=seed, size_px=size_px, small_only=small_only, wrong=wrong)
  return Source("phantom", items, read, tuple(notes))


def _read(item: Item, *, seed: int, size_px: int, small_only: bool, wrong: dict) -> Example:
  wrong = wrong if item.split == "train" else {}
  return radiograph.example(seed, item.row, size_px, small_only=small_only, **wrong)
