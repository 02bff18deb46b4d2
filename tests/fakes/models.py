"""A model that needs no weights: it sees a square of 20 pixels in every image."""

import numpy as np

from input_pipeline.text import reports
from plan_jax.inference import inputs
from plan_jax.inference.grounding import Box


class Squares:
  """A stand-in of a Predictor, whose square lies `offset` pixels further to the right."""

  def __init__(self, offset=0):
    self.offset, self.calls = offset, []

  def ground(self, image, phrase):
    self.calls.append("ground")
    inputs.check_phrases([phrase])
    if phrase == "fail":
      raise RuntimeError("secret")
    return Square(image.shape, 20 + self.offset)

  def attend(self, image, text):
    """Reads four words at most; the region of word i is row i of a grid of 4 x 4."""
    self.calls.append("attend")
    (sentences,) = inputs.check_texts(text)
    words = [s[a:b] for s in sentences for a, b in reports.words(s)][:4]
    regions = np.repeat(np.eye(4, dtype=np.float32)[:, :, None], 4, 2) / 4
    return [[(word, 0.5, region) for word, region in zip(words, regions, strict=False)]]

  def to_image(self, grid, shape):
    rows = np.arange(shape[0]) * grid.shape[0] // shape[0]
    return np.repeat(grid[rows, :1], shape[1], 1)


class Square:
  """A stand-in of a Grounding, whose model crops the first column."""

  score, quantile, warning = 0.75, 0.5, ""

  def __init__(self, shape, left):
    self._left = left
    self.map = np.zeros(shape, np.float32)
    self.map[10:30, left : left + 20] = 1
    self.map[:, 0] = np.nan

  def boxes(self, threshold):
    """Shrinks the square to the threshold's share of its width."""
    if not 0 < threshold <= 1:
      raise inputs.InputError(f"threshold is {threshold}")
    return [Box(self._left, 10, self._left + 40 * (1 - threshold), 30, 1.0)]
