"""The answers of the app: maps, boxes and words for JSON, images as PNG."""

import base64
import functools
import importlib
import logging
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float

from input_pipeline.text import reports
from plan_jax.app.images import Images, UnknownError
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.overlay import COLOURS
from plan_jax.inference.predictor import Predictor
from plan_jax.results.drawing import reduced
from plan_jax.runtime.logging import log

_IMAGE_PX, _MAP_PX, _WORD_PX = 1024, 512, 128  # longest sides of what the page gets
_CROPPED = 255  # level of a pixel that the model does not see; the others are 0 to 254
_PANELS = 2  # of the page, which asks for their boxes at other thresholds


class Answers:
  """Models and what they say about images; for one thread.

  All methods raise UnknownError for a name of no image or model, and InputError for a text without
  a word, or a threshold that is no share of a map's maximum.
  """

  def __init__(self, models: Mapping[str, Predictor], images: Images):
    self.models, self.images = models, images
    self._ground = functools.lru_cache(_PANELS)(self._ground)

  def warm_up(self) -> None:
    """Compiles and imports what requests will call, so that the first does not wait for it."""
    importlib.import_module("input_pipeline.readers.raw.dicom")
    blank = np.zeros((64, 64), np.uint8)
    level = log.level
    log.setLevel(logging.ERROR)  # that a blank image shows nothing is no news
    for model in self.models.values():
      model.ground(blank, "left effusion")
      for sentences in (1, 4, 16, 64):  # texts are read in arrays of some lengths
        model.attend(blank, [("There is a left effusion.",) * sentences])
    log.setLevel(level)

  def about(self) -> dict:
    """Lists names of models and sample images, and the colours of levels, uint8 [256, 3] RGB."""
    colours = _base64(COLOURS[:, ::-1])
    return {"models": list(self.models), "samples": self.images.samples, "colours": colours}

  def upload(self, data: bytes) -> dict:
    """Takes the bytes of an image file; its name, and whether its range was stretched to 8 bits."""
    name, was_stretched = self.images.add(data)
    return {"image": name, "was_stretched": was_stretched}

  def png(self, image: str) -> tuple[bytes, tuple[int, int]]:
    """Encodes an image for the page, reduced where it is large; returns its own [H, W] too."""
    pixels = self.images[image]
    return cv2.imencode(".png", reduced(pixels, _IMAGE_PX))[1].tobytes(), pixels.shape

  def phrase(self, image: str, model: str, text: str, threshold: float) -> dict:
    """Grounds a phrase: its map, score and warning, and its `boxes`."""
    grounding = self._ground(image, model, text)
    return {
      "score": grounding.score,
      "quantile": grounding.quantile,
      "warning": grounding.warning,
      "map": _map(reduced(grounding.map, _MAP_PX)),
      "boxes": grounding.boxes(threshold),
    }

  def boxes(self, image: str, model: str, text: str, threshold: float) -> dict:
    """Lists the boxes of a phrase at a threshold, (x0, y0, x1, y1, score) in image pixels."""
    return {"boxes": self._ground(image, model, text).boxes(threshold)}

  def report(self, image: str, model: str, text: str) -> dict:
    """Grounds all words of a report: text, weight and map of each, and a line on what is left out.

    A report is split as in training.
    """
    pixels, predictor = self.images[image], self._model(model)
    (attended,) = predictor.attend(pixels, text)
    shape = reduced(pixels, _WORD_PX).shape
    words = [
      {
        "text": word,
        "weight": weight,
        "map": _map(predictor.to_image(region / region.max(), shape)),
      }
      for word, weight, region in attended
    ]
    left_out = len(reports.words(text)) - len(words)
    warning = (
      f"{left_out} words are left out, as in training: of headings, of sentences that stand twice,"
      " and of what is too long for the model"
    )
    return {"words": words, "warning": warning if left_out > 0 else ""}

  def _ground(self, image: str, model: str, text: str) -> Grounding:
    return self._model(model).ground(self.images[image], text)

  def _model(self, name: str) -> Predictor:
    if name not in self.models:
      raise UnknownError("there is no such model")
    return self.models[name]


def _map(values: Float[np.ndarray, "h w"]) -> dict:
  """Encodes a map in 0..1 as base64 of uint8 levels; NaN, where the model crops, is _CROPPED."""
  levels = np.rint(254 * np.clip(values, 0, 1))
  levels = np.where(np.isnan(levels), _CROPPED, levels).astype(np.uint8)
  return {"width": levels.shape[1], "height": levels.shape[0], "levels": _base64(levels)}


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()
