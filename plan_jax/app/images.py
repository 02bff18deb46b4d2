"""The images that the app holds in memory: test images of a run, and those that were uploaded."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.readers.raw.stored_images import MAX_DECODED_PX
from plan_jax.inference.image_inputs import to_grey
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir

_SAMPLES = 8  # test images of a run
_HELD_PX = 2 * MAX_DECODED_PX  # of all uploaded images; the oldest go first


class UnknownError(UserError):
  """Name of no image that is held, or of no model."""


class Images:
  """Images by name; uploaded ones have a name that nobody guesses.

  Attributes:
    samples: names of the images that stay.
  """

  def __init__(self, samples: Sequence[UInt8[np.ndarray, "_ _"]] = ()):
    """Holds `samples`, uint8 [H, W] each, for good."""
    self._samples = {f"sample-{number}": image for number, image in enumerate(samples, 1)}
    self._uploaded: dict[str, np.ndarray] = {}
    self.samples = list(self._samples)

  def add(self, data: bytes) -> tuple[str, bool]:
    """Decodes the bytes of a file, and gives its name.

    Returns also whether it has more than 8 bits, and so is stretched by its range. Raises
    InputError where it is no image.
    """
    image, was_stretched = to_grey("the file", data)
    name = secrets.token_urlsafe(16)
    self._uploaded[name] = image
    while sum(held.size for held in self._uploaded.values()) > _HELD_PX:
      del self._uploaded[next(iter(self._uploaded))]
    return name, was_stretched

  def __getitem__(self, name: str) -> UInt8[np.ndarray, "H W"]:
    """Raises UnknownError for a name of no image."""
    image = self._samples.get(name, self._uploaded.get(name))
    if image is None:
      raise UnknownError("this image is held no more: choose or drop it again")
    return image


def samples(path: str | Path) -> list[UInt8[np.ndarray, "_ _"]]:
  """Reads some test images of a run, evenly spread over its split; none of an exported folder.

  Records that cannot be read are named in the log, and give none.
  """
  workdir = Workdir(path)
  if workdir.is_exported():
    return []
  try:
    source = records.RecordSource(
      Path(workdir.load_config().data.records or workdir.records), "test"
    )
    places = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLES, len(source))).astype(int))
    return [images.decode_example(source[int(place)]) for place in places]
  except UserError as error:
    log.warning(f"no test images to choose from: {error}")
    return []
