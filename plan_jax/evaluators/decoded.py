"""Decoded images of one data set, shared by all evaluators that look at it."""

import numpy as np

from input_pipeline.example import Example
from input_pipeline.images import decode_example

MOST_BYTES = 1 << 30  # about 3,400 images of 512 x 620 pixels


class DecodedImages:
  """Images by id, each decoded when it is first asked for, and held as long as there is room.

  Evaluators read a data set from its first image to its last, one after the other. So what came
  first stays, and what comes when `most_bytes` are full is decoded each time: were the newest held,
  each would be gone before it is asked for again.
  """

  def __init__(self, most_bytes: int = MOST_BYTES):
    self._room = most_bytes
    self._held: dict[str, np.ndarray] = {}

  def get(self, example: Example) -> np.ndarray:
    """Decodes the image: uint8 [H, W], not to be written to. Raises UserError if unreadable."""
    if (held := self._held.get(example.image_id)) is not None:
      return held
    pixels = decode_example(example)
    if pixels.nbytes <= self._room:
      pixels.setflags(write=False)
      self._room -= pixels.nbytes
      self._held[example.image_id] = pixels
    return pixels
