"""The grounding of a phrase in an image: its map, its score, its boxes and its words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from input_pipeline.terminal import escape
from input_pipeline.text import reports
from plan_jax.alignment.curriculum import Stage
from plan_jax.inference.calibration import Calibration
from plan_jax.inference.image_inputs import InputError
from plan_jax.inference.overlay import OPACITY, coloured
from plan_jax.inference.spec import TextPreprocessing

_NEIGHBOURS = np.ones((3, 3))  # pixels that touch at a corner are connected


class Box(NamedTuple):
  """A box in pixels of the image; `x1` and `y1` are exclusive.

  `score` is the highest value of the map in it.
  """

  x0: int
  y0: int
  x1: int
  y1: int
  score: float


class Word(NamedTuple):
  """A word of a phrase.

  Attributes:
    text: as the phrase has it.
    weight: of its region in the map of the phrase, from 0.
    map: float32 [H, W], its region alone, from 0 to 1; NaN where the model crops.
  """

  text: str
  weight: float
  map: np.ndarray


@dataclass(frozen=True, eq=False)
class Grounding:
  """A phrase in an image of [H, W] pixels; all is in the pixels of the image as given.

  Attributes:
    phrase: the phrase.
    image: as the model takes it, before its letterbox.
    map: from 0 to 1, where the phrase finds its like; its maximum is near 1 also where the finding
      is absent. NaN where the model crops the image.
    score: presence, the highest similarity of any pixel to the words. Scores of one model compare.
    quantile: share of the validation phrases which their reports affirm that score no higher; None
      where the model is not calibrated (`plan_jax.inference.calibration`).
    warning: a line that says why the map means little; empty where nothing is known against it.
    regions: the words, their weights, and their maps on the grid.
    to_image: brings a map on the grid to the image.
  """

  phrase: str
  image: UInt8[np.ndarray, "H W"] = field(repr=False)
  map: Float[np.ndarray, "H W"] = field(repr=False)
  score: float
  quantile: float | None
  warning: str
  regions: list[tuple[str, float, np.ndarray]] = field(repr=False)
  to_image: Callable = field(repr=False)

  @property
  def words(self) -> list[Word]:
    """The words in order; their maps are made anew at each call."""
    return [Word(text, weight, self.to_image(_scaled(grid))) for text, weight, grid in self.regions]

  def boxes(self, threshold: float = 0.5) -> list[Box]:
    """Boxes of the parts of the map that reach a share of its maximum, the largest part first.

    Pixels that touch, at a corner too, are of one part. A map that is 0 has none.

        for x0, y0, x1, y1, score in grounding.boxes(0.5):
          crop = grounding.image[y0:y1, x0:x1]

    Raises InputError where `threshold` is not above 0 and at most 1.
    """
    from scipy import ndimage  # takes its time to import

    heatmap = np.nan_to_num(self.map)
    parts, count = ndimage.label(self.region(threshold), _NEIGHBOURS)
    sizes, boxes = np.bincount(parts.ravel(), minlength=count + 1)[1:], []
    for rows, columns in ndimage.find_objects(parts):
      score = float(heatmap[rows, columns].max())
      boxes.append(Box(columns.start, rows.start, columns.stop, rows.stop, score))
    return [boxes[i] for i in np.argsort(-sizes, kind="stable")]

  def region(self, threshold: float = 0.5) -> Bool[np.ndarray, "H W"]:
    """Marks the pixels of `boxes`. Raises InputError as that does."""
    if not (_is_share(threshold) and threshold):
      raise InputError(f"threshold is {threshold!r}: give a share of the maximum, above 0 and to 1")
    heatmap = np.nan_to_num(self.map)
    top = heatmap.max()
    return (heatmap >= threshold * top) & (top > 0)

  def overlay(self, alpha: float = OPACITY) -> Image.Image:
    """Mixes the image with its map in colour, RGB; `alpha` is the colour's share at the most.

    Raises InputError where `alpha` is not from 0 to 1.
    """
    if not _is_share(alpha):
      raise InputError(f"alpha is {alpha!r}: give a share from 0 to 1")
    return Image.fromarray(coloured(self.image, self.map, alpha)[..., ::-1])


def ground_pair(
  attend: Callable, variables: dict, image, text, stage: Stage | None
) -> tuple[jax.Array, jax.Array]:
  """Grounds the words of a phrase: map [P], or finer, of any scale, mean similarity [P].

  Args:
    attend, variables: of a ModelSpec.
    image, text: features without a batch axis.
    stage: of the curriculum.
  """
  attention, weights = attend(variables, image, text, stage)
  similarity = weights @ attention.similarity / jnp.maximum(weights.sum(), 1e-12)
  return weights @ attention.weight, similarity


def ground_words(attend: Callable, variables: dict, image, text, stage: Stage | None):
  """Grounds a phrase as `ground_pair`, and its words as `attend`."""
  pair = variables, image, text, stage
  return ground_pair(attend, *pair), attend(*pair)


def warning(
  phrase: str, score: float, texts: TextPreprocessing, calibration: Calibration | None
) -> str:
  """Writes a line about a phrase that is unknown, or cut, or peaks as a random one; else ""."""
  name = repr(escape(phrase[:60]))
  if not texts.knows(phrase):
    return f"{name} has no word that the model knows: its map says nothing"
  count, read = len(reports.words(phrase)), len(texts.report_words((phrase,)))
  if read < count:
    return f"{name} is too long: the map is of the first {read} of its {count} words"
  if calibration and score <= calibration.chance:
    return f"{name} lights no more than a random phrase: the map does not show that it is there"
  return ""


def _is_share(value: object) -> bool:
  return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 1


def _scaled(grid: np.ndarray) -> np.ndarray:
  top = grid.max()
  return np.asarray(grid / top if top > 0 else grid, np.float32)
