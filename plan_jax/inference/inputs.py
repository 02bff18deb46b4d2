"""Images and texts as users give them to a Predictor.

An image is uint8 [H, W], 0 black and 255 white; a text is a sequence of sentences; a phrase is a
string. Other forms are converted where they have one meaning, else refused in one line: of floats,
of 16 bits and of a DICOM's pixel array nobody knows which value is white.
"""

from collections.abc import Iterable, Set
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from input_pipeline.errors import UserError
from input_pipeline.images import EncodedImage
from input_pipeline.text import reports

# Any, for `check_images` and its like say more than a type can.
Images = Any  # N images
Texts = Any  # N texts
Phrases = Any  # N phrases

_SCALE = "scale it to 0 for black and 255 for white, and round"
_REMEDIES = {"f": _SCALE, "V": _SCALE, "b": "a mask is no image"}  # by kind of dtype; V: bfloat16
_WINDOW = "window it to 0 for black and 255 for white, as input_pipeline.readers.raw.dicom does"


class InputError(UserError, ValueError):
  """Value that is no image or no text; the message says what it is and what is right."""


def check_images(images: Images) -> list[UInt8[np.ndarray, "_ _"]] | list[EncodedImage]:
  """Gives images as uint8 [H, W], or all of them as stored features.

  [H, W, 1] and colours [H, W, 3] that are all grey become [H, W]. An array [N, H, W], [N, H, W, 1]
  or [N, H, W, 3] is N images. Arrays of JAX are read as those of NumPy.

  Raises InputError for anything else, with its number.
  """
  single = _is_array(images) and (images.ndim < 3 or (images.ndim == 3 and images.shape[2] <= 4))
  if single:
    raise InputError(f"images is one array, {_form(images)}: give a list of images, [image]")
  items = _items("images", images, "of arrays, uint8 [H, W]")
  if items and all(isinstance(image, EncodedImage) for image in items):
    return items
  grey: dict[int, np.ndarray] = {}
  for number, image in enumerate(items):
    if id(image) not in grey:  # what is repeated stays one object: a Predictor embeds it once
      grey[id(image)] = _grey(f"images[{number}]", image)
  return [grey[id(image)] for image in items]


def check_texts(texts: Texts) -> list[tuple[str, ...]]:
  """Gives each text as the tuple of its sentences.

  Raises InputError, with its number, for one that is a string (which may be a report or a
  sentence), has no word, or holds anything but strings.
  """
  checked = []
  for number, text in enumerate(_items("texts", texts, "of texts, each a list of sentences")):
    name = f"texts[{number}]"
    if isinstance(text, str):
      raise InputError(
        f"{name} is a string, {text[:40]!r}: give a list of its sentences, as"
        " input_pipeline.text.reports.sentences does"
      )
    sentences = tuple(_items(name, text, "of sentences")) or ("",)
    for sentence in sentences:
      _require_string(name, sentence, "a list of strings")
    _require_words(name, " ".join(sentences))
    checked.append(sentences)
  return checked


def check_phrases(phrases: Phrases) -> list[str]:
  """Gives the phrases as a list. Raises InputError, with its number, for one without a word."""
  checked = _items("phrases", phrases, "of strings")
  for number, phrase in enumerate(checked):
    _require_string(f"phrases[{number}]", phrase, "a string")
    _require_words(f"phrases[{number}]", phrase)
  return checked


def check_pairs(images: list, texts: list) -> None:
  """Raises InputError unless there are as many images as texts."""
  if len(images) != len(texts):
    raise InputError(f"{len(images)} images, and {len(texts)} texts for them: give one for each")


def _items(name: str, given: Any, right: str) -> list:
  is_scalar = _is_array(given) and not given.ndim
  # A set has no order.
  if is_scalar or isinstance(given, (str, bytes, dict, Set)) or not isinstance(given, Iterable):
    raise InputError(f"{name} is of type {type(given).__name__}: give a list {right}")
  return list(given)


def _grey(name: str, image: Any) -> np.ndarray:
  if not _is_array(image):
    raise InputError(
      f"{name} is of type {type(image).__name__}: give an array, uint8 [H, W], as"
      " input_pipeline.images.decode makes it of a file's bytes"
    )
  if isinstance(image, np.ma.MaskedArray):
    raise InputError(
      f"{name} is a masked array, and an image has no mask: give image.filled(0), or image.data"
    )
  if image.dtype != np.uint8:
    remedy = _REMEDIES.get(np.dtype(image.dtype).kind, _WINDOW)
    raise InputError(f"{name} is {_form(image)}; an image is uint8 [H, W]: {remedy}")
  pixels = np.asarray(image)
  if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
    if (pixels != pixels[..., :1]).any():
      raise InputError(f"{name} is {_form(image)} in colours: give a grey image, uint8 [H, W]")
    pixels = pixels[..., 0]
  if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and pixels.size:
    raise InputError(
      f"{name} is {_form(image)}, with transparency; an image is uint8 [H, W]: give it without the"
      " last channel, image[..., :-1]"
    )
  if pixels.ndim != 2 or not pixels.size:
    raise InputError(f"{name} is {_form(image)}; an image is uint8 [H, W], of one pixel at least")
  return pixels


def _is_array(value: Any) -> bool:
  return isinstance(value, np.ndarray | jax.Array)


def _form(array: np.ndarray | jax.Array) -> str:
  return f"{array.dtype} {list(array.shape)}"


def _require_string(name: str, value: Any, right: str) -> None:
  if not isinstance(value, str):
    raise InputError(f"{name} is or holds a value of type {type(value).__name__}: give {right}")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    half = value[error.start]
    raise InputError(
      f"{name} holds half a character, {half!a}: decode the text anew from its bytes"
    ) from None


def _require_words(name: str, text: str) -> None:
  if not reports.words(text):
    raise InputError(f"{name} has no word: {text[:40]!r}")
