"""Images and texts as users give them to a Predictor.

An image is any form of `image_inputs`, and becomes uint8 [H, W]; a text is a whole report, as one
string, or a sequence of sentences; a phrase is a string. One of them stands for a list of one. What
else may mean anything is refused in one line.
"""

from collections.abc import Iterable, Set
from typing import Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline.images import EncodedImage
from input_pipeline.text import reports
from plan_jax.inference.image_inputs import InputError, is_array, is_image, to_grey
from plan_jax.runtime.logging import log

# Any, for `check_images` and its like say more than a type can.
Images = Any  # N images, or one
Texts = Any  # N texts, or a string
Phrases = Any  # N phrases, or one


def check_images(images: Images) -> list[UInt8[np.ndarray, "_ _"]] | list[EncodedImage]:
  """Gives images as uint8 [H, W], or all of them as stored features.

  An array [N, H, W], [N, H, W, 1] or [N, H, W, 3] is N images. What is stretched by its range is
  logged. Raises InputError for what is no image, with its number.
  """
  items = [images] if is_image(images) else _items("images", images, "of images, or one image")
  if items and all(isinstance(image, EncodedImage) for image in items):
    return items
  grey: dict[int, np.ndarray] = {}
  stretched = 0
  for number, image in enumerate(items):
    if id(image) not in grey:  # what is repeated stays one object: a Predictor embeds it once
      grey[id(image)], was_stretched = to_grey(f"images[{number}]", image)
      stretched += was_stretched
  if stretched:
    log.warning(
      f"{stretched} of {len(items)} images have more than 8 bits: each is stretched by its range,"
      " its least value black and its greatest white"
    )
  return [grey[id(image)] for image in items]


def check_texts(texts: Texts) -> list[tuple[str, ...]]:
  """Gives each text as the tuple of its sentences.

  A string is a whole report, and is split into those that training reads, headings left aside.
  Raises InputError, with its number, for one that has no word, or holds anything but strings.
  """
  checked = []
  texts = [texts] if isinstance(texts, str) else texts
  right = "of texts, each a report or a list of sentences"
  for number, text in enumerate(_items("texts", texts, right)):
    name = f"texts[{number}]"
    if isinstance(text, str):
      _require_string(name, text, "a string")
      _require_words(name, text)
      text = reports.report_sentences(reports.sections(text)) or [text]
    sentences = tuple(_items(name, text, "of sentences")) or ("",)
    for sentence in sentences:
      _require_string(name, sentence, "a list of strings")
    _require_words(name, " ".join(sentences))
    checked.append(sentences)
  return checked


def check_phrases(phrases: Phrases, name: str = "phrases") -> list[str]:
  """Gives the phrases as a list; `name` is theirs in errors.

  Raises InputError, with its number, for one without a word.
  """
  phrases = [phrases] if isinstance(phrases, str) else phrases
  checked = _items(name, phrases, "of strings, or a string")
  for number, phrase in enumerate(checked):
    _require_string(f"{name}[{number}]", phrase, "a string")
    _require_words(f"{name}[{number}]", phrase)
  return checked


def check_pairs(images: list, texts: list) -> None:
  """Raises InputError unless there are as many images as texts."""
  if len(images) != len(texts):
    raise InputError(f"{len(images)} images, and {len(texts)} texts for them: give one for each")


def pair(images: Images, phrases: Phrases) -> tuple[list[UInt8[np.ndarray, "_ _"]], list[str]]:
  """Pairs one image with each phrase, each image with one phrase, or each with its own.

  Raises InputError where their numbers differ, and for stored features, which show no pixels.
  """
  images, phrases = check_images(images), check_phrases(phrases)
  if any(isinstance(image, EncodedImage) for image in images):
    raise InputError("images are stored features: give the images themselves")
  if len(images) == 1:
    images *= len(phrases)
  elif len(phrases) == 1:
    phrases *= len(images)
  if len(images) != len(phrases):
    raise InputError(
      f"{len(images)} images and {len(phrases)} phrases: give one image, one phrase, or a phrase"
      " for each image"
    )
  return images, phrases


def _items(name: str, given: Any, right: str) -> list:
  is_scalar = is_array(given) and not given.ndim
  # A set has no order.
  if is_scalar or isinstance(given, (str, bytes, dict, Set)) or not isinstance(given, Iterable):
    raise InputError(f"{name} is of type {type(given).__name__}: give a list {right}")
  return list(given)


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
