"""Images as arrays: decoded, fitted to the model's square, augmented, and brought back."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.example import Example

# The loader and the converter parallelise over images: threads inside an image are in their way.
cv2.setNumThreads(1)


def decode(image: bytes) -> np.ndarray:
  """Decodes a JPEG or PNG to grey uint8 [H, W]. Raises ValueError where it is no image."""
  try:
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
  except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
    pixels = None
  if pixels is None:
    raise ValueError("the bytes are no readable JPEG or PNG")
  return pixels


def decode_example(example: Example) -> np.ndarray:
  """Decodes the image of an example, or takes it where it is shared: uint8 [H, W].

  Raises UserError, naming its record, if it is unreadable.
  """
  if example.pixels is not None:
    return example.pixels()
  try:
    return decode(example.image)
  except ValueError as error:
    place = f"{example.place or 'no record'}, image {example.image_id}"
    raise UserError(
      f"{place}: {error}; delete the shard and convert again, which leaves such an image out"
    ) from error


@dataclass(frozen=True, eq=False)
class EncodedImage:
  """An image as its stored features.

  Attributes:
    shape: (H, W) of the image itself, in pixels.
    features: float16 [P, C], see `features`.
  """

  shape: tuple[int, int]
  features: np.ndarray


def model_input(example: Example) -> np.ndarray | EncodedImage:
  """Returns what a model takes of an example: its stored features, else its decoded image.

  Raises UserError as `decode_example` does, and FeaturesError.
  """
  if example.features is None:
    return decode_example(example)
  return EncodedImage((example.height, example.width), example.features(0))


def decode_batches(
  examples: Iterable[Example], batch: int, decode: Callable = decode_example
) -> Iterator[tuple[list[Example], list]]:
  """Yields the examples, `batch` at a time, each list with its decoded images, uint8 [H, W].

  One batch is held at a time. `decode` may be `model_input`. Raises UserError as it does.
  """
  examples = iter(examples)
  while group := list(itertools.islice(examples, batch)):
    yield group, [decode(example) for example in group]


def fit_matrix(height: int, width: int, size_px: int) -> np.ndarray:
  """Returns the [2, 3] affine map from image pixels to the letterboxed square of `size_px`.

  The whole image stays in view, centred: the longer side fills the square, the rest is black. Pixel
  centres lie at integers, as in cv2.warpAffine.
  """
  scale = size_px / max(height, width)
  x, y = ((size_px - 1) / 2 - scale * (side - 1) / 2 for side in (width, height))
  return np.array([[scale, 0, x], [0, scale, y]], np.float64)


def fit(pixels: np.ndarray, size_px: int) -> np.ndarray:
  """Letterboxes uint8 [H, W] to float32 [size_px, size_px] in [0, 1]."""
  return _warp(pixels, fit_matrix(*pixels.shape, size_px), size_px)


def unfit(
  grid: np.ndarray,
  height: int,
  width: int,
  size_px: int,
  *,
  first_px: float | None = None,
  nearest: bool = False,
) -> np.ndarray:
  """Resamples a map over the square (float32 [h, w], any grid) to image pixels, [height, width].

  Bilinear. The letterbox margin is dropped: every image pixel gets a value, and no other does.

  Args:
    first_px: where the centre of the first cell lies in the square; by default cells tile it, so
      half a cell in (less half a pixel, for pixel centres are integers).
    nearest: takes the nearest cell instead.
  """
  to_square = fit_matrix(height, width, size_px)
  cell = np.array([size_px / grid.shape[1], size_px / grid.shape[0]])
  first = (cell - 1) / 2 if first_px is None else first_px
  matrix = np.column_stack([to_square[:, :2] / cell[:, None], (to_square[:, 2] - first) / cell])
  return cv2.warpAffine(
    np.asarray(grid, np.float32),
    matrix,
    (width, height),
    flags=(cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )


@dataclass(frozen=True)
class Augment:
  """Random change of an image that keeps its report true: no flips, for sides matter.

  Attributes:
    rotate_degrees: largest rotation either way.
    scale_fraction: largest zoom in or out, as a share of the size.
    shift_fraction: largest shift along each axis, as a share of the size.
    intensity_fraction: largest change of contrast, and half of it of brightness; also the
      exponent range of the tone curve.
  """

  rotate_degrees: float = 8.0
  scale_fraction: float = 0.08
  shift_fraction: float = 0.05
  intensity_fraction: float = 0.2

  def __call__(self, pixels: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Changes uint8 [H, W] at random, letterboxed: float32 [size_px, size_px] in [0, 1]."""
    turn, zoom, right, down, contrast, brightness, tone = rng.uniform(-1, 1, 7)
    angle = np.deg2rad(self.rotate_degrees * turn)
    scale = 1 + self.scale_fraction * zoom
    centre = (size_px - 1) / 2
    rotate = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = size_px * self.shift_fraction * np.array([right, down])
    matrix = fit_matrix(*pixels.shape, size_px)
    offset = rotate @ (matrix[:, 2] - centre) + centre + shift
    matrix = np.column_stack([rotate @ matrix[:, :2], offset])
    image = _warp(pixels, matrix, size_px)
    image **= 2.0 ** (self.intensity_fraction * tone)
    image = (image - 0.5) * (1 + self.intensity_fraction * contrast) + 0.5
    return np.clip(image + 0.5 * self.intensity_fraction * brightness, 0, 1, dtype=np.float32)


def _warp(pixels: np.ndarray, matrix: np.ndarray, size_px: int) -> np.ndarray:
  scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
  # Plain bilinear sampling skips pixels when it shrinks by much; shrink by whole steps first.
  if (step := int(1 / scale)) > 1:
    height, width = pixels.shape
    size = max(1, width // step), max(1, height // step)
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    ratio = np.array([width, height]) / size
    offset = matrix[:, 2] + matrix[:, :2] @ ((ratio - 1) / 2)
    matrix = np.column_stack([matrix[:, :2] @ np.diag(ratio), offset])
  warped = cv2.warpAffine(
    pixels, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
  )
  return warped.astype(np.float32) / 255
