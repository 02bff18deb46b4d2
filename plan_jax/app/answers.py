"""The answers of the app: maps, boxes and words as JSON, images as PNG."""

import base64

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from input_pipeline.text import reports
from plan_jax.inference.predictor import Predictor
from plan_jax.results.drawing import COLOURS, reduced

THRESHOLDS = [step / 20 for step in range(1, 20)]  # at which a map has boxes
_IMAGE_PX, _MAP_PX, _WORD_PX = 1024, 512, 128  # longest sides of what the page gets
_CROPPED = 255  # level of a pixel that the model does not see; the others are 0 to 254


def colours() -> str:
  """Encodes the colours of levels 0 to 255 as base64 of uint8 [256, 3], red, green, blue."""
  return _base64(COLOURS[:, ::-1])


def png(image: UInt8[np.ndarray, "H W"]) -> bytes:
  """Encodes an image for the page, reduced where it is large."""
  return cv2.imencode(".png", reduced(image, _IMAGE_PX))[1].tobytes()


def ground(model: Predictor, image: UInt8[np.ndarray, "H W"], phrase: str) -> dict:
  """Grounds a phrase: its map, its score, and its boxes at each of THRESHOLDS.

  Boxes are in the image's own pixels. Raises InputError for a phrase without a word.
  """
  grounding = model.ground(image, phrase)
  return {
    "score": grounding.score,
    "quantile": grounding.quantile,
    "warning": grounding.warning,
    "boxes": [
      [[box.x0, box.y0, box.x1, box.y1, box.score] for box in grounding.boxes(threshold)]
      for threshold in THRESHOLDS
    ],
    "map": _map(reduced(grounding.map, _MAP_PX)),
  }


def report(model: Predictor, image: UInt8[np.ndarray, "H W"], text: str) -> dict:
  """Grounds all words of a report: text, weight and map of each, and what the model leaves out.

  Raises InputError for a report without a word.
  """
  sentences = tuple(reports.sentences(text))
  (attended,) = model.attend([image], [sentences])
  small = reduced(image, _WORD_PX).shape
  words = [
    {"text": word, "weight": weight, "map": _map(model.to_image(region / region.max(), small))}
    for word, weight, region in attended
  ]
  left_out = len(reports.words(text)) - len(words)
  warning = (
    f"{left_out} words are left out: beyond what the model reads, or in no sentence"
    if left_out > 0
    else ""
  )
  return {"words": words, "warning": warning}


def _map(values: Float[np.ndarray, "h w"]) -> dict:
  """Encodes a map in 0..1 as base64 of uint8 levels; NaN, where the model crops, is _CROPPED."""
  levels = np.rint(254 * np.clip(values, 0, 1))
  levels = np.where(np.isnan(levels), _CROPPED, levels).astype(np.uint8)
  return {"width": levels.shape[1], "height": levels.shape[0], "levels": _base64(levels)}


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()
