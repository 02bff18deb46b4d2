"""Reader of the synthetic phantom: it draws its films, so there is no folder to read."""

import functools

from input_pipeline import phantom
from input_pipeline.raw import SourceError
from input_pipeline.source import Item, Source
from input_pipeline.study import SPLITS, Study


def open_source(
  source: str = "",
  *,
  train_films: int = 20_000,
  validation_films: int = 500,
  test_films: int = 500,
  size_px: int = 128,
  seed: int = 0,
  small_only: bool = False,
  wrong_sentence_fraction: float = 0.0,
  swapped_side_fraction: float = 0.0,
) -> Source:
  """Lists the films of a phantom data set; splits take consecutive numbers, whole patients each.

  Args:
    source: must stay empty.
    train_films: films of the split, rounded up to whole patients.
    validation_films: likewise.
    test_films: likewise.
    size_px: side of the square films.
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
  counts = dict(zip(SPLITS, (train_films, validation_films, test_films), strict=True))
  for split, films in counts.items():
    if films < 0:
      raise SourceError(f"{split}_films is {films}; it must be 0 or more")
  low, high = phantom.SIZES_PX
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
  for split, films in counts.items():
    whole = -(-films // phantom.FILMS_PER_PATIENT) * phantom.FILMS_PER_PATIENT
    if whole != films:
      notes.append(f"{split}_films: {films} rounded up to {whole}, whole patients")
    for index in range(start, start + whole):
      items.append(Item(f"phantom film {index}", split, phantom.patient(index), index))
    start += whole
  read = functools.partial(_read, seed=seed, size_px=size_px, small_only=small_only, wrong=wrong)
  return Source("phantom", items, read, tuple(notes))


def _read(item: Item, *, seed: int, size_px: int, small_only: bool, wrong: dict) -> Study:
  wrong = wrong if item.split == "train" else {}
  return phantom.study(seed, item.row, size_px, small_only=small_only, **wrong)
