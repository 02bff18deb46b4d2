"""Images of examples as arrays, decoded some at a time and not kept."""

from collections.abc import Iterable, Iterator

import numpy as np

from input_pipeline import images
from input_pipeline.example import Example


def decode(example: Example) -> np.ndarray:
  """Decodes the image of an example, uint8 [H, W].

  Raises:
    ValueError: it is unreadable; the message names it.
  """
  try:
    return images.decode(example.image)
  except ValueError as error:
    raise ValueError(f"{example.image_id}: {error}") from error


def decoded_batches(
  examples: Iterable[Example], batch: int
) -> Iterator[tuple[list[Example], list[np.ndarray]]]:
  """Yields at most `batch` examples at a time with their images.

  Raises:
    ValueError: as `decode`.
  """
  waiting: list[Example] = []
  for example in examples:
    waiting.append(example)
    if len(waiting) == batch:
      yield waiting, [decode(each) for each in waiting]
      waiting = []
  if waiting:
    yield waiting, [decode(each) for each in waiting]
