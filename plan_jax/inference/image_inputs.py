"""One image as users hold it, brought to uint8 [H, W], 0 black and 255 white.

- A path, or the bytes of a file: DICOM by its content, else any format of
  `input_pipeline.readers.raw.stored_images.CONTAINERS`, as the readers of records decode them.
- An image of Pillow: those of more than 8 bits by the rule of their array.
- A DICOM dataset: windowed as `input_pipeline.readers.raw.dicom` does.
- An array [H, W], [H, W, 1] or [H, W, 3], of NumPy or JAX: uint8 as it is, bool as black and
  white, floats from 0 for black to 1 for white, uint16 by its range, its least value black and its
  greatest white.

Colours that differ become luma, as in the records. EXIF turns images of files and of Pillow
upright; transparency is left aside there, and refused in an array. Whatever else may mean anything,
and is refused with an InputError.
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.example import UnreadableError
from input_pipeline.files import read_regular
from input_pipeline.images import EncodedImage
from input_pipeline.readers.raw import stored_images

_SCALE = "scale it to 0 for black and 1 for white"
_WINDOW = "window it to 0 for black and 255 for white, as input_pipeline.readers.raw.dicom does"
_PIXEL_BYTES = 8  # of a file, at the most


class InputError(UserError, ValueError):
  """Value that is no image or no text; the message says what it is and what is right."""


def is_array(value: Any) -> bool:
  """Tells whether a value is an array of NumPy or JAX."""
  return isinstance(value, np.ndarray | jax.Array)


def is_image(value: Any) -> bool:
  """Tells whether a value is one image, in any form, and not several."""
  if is_array(value):
    return value.ndim == 2 or (value.ndim == 3 and value.shape[2] <= 4)
  known = (str, os.PathLike, bytes, Image.Image, EncodedImage)
  return isinstance(value, known) or _is_dataset(value)


def to_grey(name: str, image: Any) -> tuple[np.ndarray, bool]:
  """Converts an image, called `name` in errors, as the module says.

  Returns uint8 [H, W], and whether the image was stretched by its range. Raises InputError.
  """
  try:
    pixels = _pixels(name, image)
  except UnreadableError as error:
    raise InputError(f"{name}: {error}") from error
  pixels, was_stretched = _eight_bits(name, pixels)
  if pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size:
    is_grey = (pixels == pixels[..., :1]).all()
    colours = pixels[..., 0] if is_grey else Image.fromarray(pixels).convert("L")
    pixels = np.asarray(colours)
  if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and pixels.size:
    raise InputError(
      f"{name} is {_form(image)}, with transparency; an image is uint8 [H, W]: give it without the"
      " last channel, image[..., :-1]"
    )
  if pixels.ndim != 2 or not pixels.size:
    raise InputError(f"{name} is {_form(image)}; an image is uint8 [H, W], of one pixel at least")
  if pixels.size > (most := stored_images.most_px.get()):
    raise InputError(f"{name} is {_form(pixels)}, too large: reduce it to {most} pixels at most")
  return pixels, was_stretched


def _pixels(name: str, image: Any) -> np.ndarray:
  """Returns the values of an image, not yet of 8 bits. Raises UnreadableError, InputError."""
  if isinstance(image, str | os.PathLike):
    return _read(os.fspath(image))
  if isinstance(image, bytes):
    return _decode(image)
  if isinstance(image, Image.Image):
    return stored_images.pillow_pixels(image)
  if _is_dataset(image):
    from input_pipeline.readers.raw import dicom

    return dicom.to_pixels(image)
  if not is_array(image):
    raise InputError(
      f"{name} is of type {type(image).__name__}: give a path, an image of Pillow, a DICOM dataset,"
      " or an array, uint8 [H, W]"
    )
  if isinstance(image, np.ma.MaskedArray):
    raise InputError(
      f"{name} is a masked array, and an image has no mask: give image.filled(0), or image.data"
    )
  return np.asarray(image)


def _read(path: str | bytes) -> np.ndarray:
  path = Path(os.fsdecode(path))
  try:
    if path.is_file() and path.stat().st_size > _PIXEL_BYTES * stored_images.most_px.get():
      raise InputError(f"{path} has {path.stat().st_size} bytes, too many for an image")
    return _decode(read_regular(path))
  except (OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    reason = getattr(error, "strerror", None) or error
    raise InputError(f"{path} cannot be read ({reason}): name the file of an image") from error
  except UnreadableError as error:
    raise InputError(f"{path}: {error}") from error


def _decode(encoded: bytes) -> np.ndarray:
  from input_pipeline.readers.raw import dicom  # takes its time to import

  if dicom.is_dicom(encoded):
    return dicom.to_pixels(encoded)
  pixels = stored_images.decode_grey(encoded)
  # More bits are stretched already: again, and counted, they are the same.
  return pixels if pixels.dtype == np.uint8 else np.rint(257 * pixels).astype(np.uint16)


def _eight_bits(name: str, pixels: np.ndarray) -> tuple[np.ndarray, bool]:
  if pixels.dtype == np.uint8 or not pixels.size:
    return pixels, False
  if pixels.dtype == bool:
    return np.uint8(255) * pixels, False
  if pixels.dtype.kind == "f" or pixels.dtype == jax.numpy.bfloat16:
    values = pixels.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also of NaN
      raise InputError(
        f"{name} is {_form(pixels)} of values from {low:g} to {high:g}: {_SCALE}, or give uint8"
      )
    return np.rint(255 * values).astype(np.uint8), False
  if pixels.dtype.newbyteorder("=") != np.uint16:
    raise InputError(f"{name} is {_form(pixels)}; an image is uint8 [H, W]: {_WINDOW}")
  values = pixels.astype(np.float32) - pixels.min()
  return np.rint(values * (255 / max(values.max(), 1))).astype(np.uint8), True


def _is_dataset(value: Any) -> bool:
  """Tells whether a value is a DICOM dataset; who holds one has imported pydicom."""
  pydicom = sys.modules.get("pydicom")
  return pydicom is not None and isinstance(value, pydicom.Dataset)


def _form(value: Any) -> str:
  if is_array(value):
    return f"{value.dtype} {list(value.shape)}"
  return f"of type {type(value).__name__}"
