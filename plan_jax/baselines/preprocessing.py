"""Images brought to the square of a baseline, and its grid back to the image.

Images come as they are stored (uint8, short side bounded by `config.data.stored_px`); the steps
from there on are the baselines' own, pixel by pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from plan_jax.models.vit import bicubic


@dataclass(frozen=True)
class PaddedSquare:
  """The square of GLoRIA and MGCA: longer side to `side_px`, black margin, middle cut out.

  Attributes:
    side_px, crop_px: of the square and its middle.
    enlarged_px: the middle is brought to so many pixels, corner pixels on corner pixels (bilinear,
      torch's align_corners=True); 0: it stays.
    cell_px: distance of the grid's cells, in pixels of the middle.
    first_px: where the first one's centre lies (pixel centres are integers).
  """

  side_px: int = 256
  crop_px: int = 224
  enlarged_px: int = 0
  cell_px: float = 16.0
  first_px: float = 7.5

  @property
  def input_px(self) -> int:
    """Side of the network's input."""
    return self.enlarged_px or self.crop_px

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the network's input, in [0, 1]."""
    square = self._square(image)
    edge = self._edge
    middle = square[edge : edge + self.crop_px, edge : edge + self.crop_px].astype(np.float32) / 255
    if not self.enlarged_px:
      return middle
    between = np.linspace(0, self.crop_px - 1, self.enlarged_px)
    return resample(middle, between, between)

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map to an image of that shape; NaN beyond the middle."""
    places = []
    for length, size, start in zip(shape, *self._placed(shape), strict=True):
      places.append((np.arange(length) + 0.5) * size / length - 0.5 + start - self._edge)
    rows, columns = ((place - self.first_px) / self.cell_px for place in places)
    image = resample(np.asarray(grid, np.float32), rows, columns, nearest=nearest)
    for axis, place in enumerate(places):
      image[(slice(None),) * axis + ((place < -0.5) | (place > self.crop_px - 0.5),)] = np.nan
    return image

  def _square(self, image: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "s s"]:
    (rows, columns), (top, left) = self._placed(image.shape)
    square = np.zeros((self.side_px, self.side_px), np.uint8)
    square[top : top + rows, left : left + columns] = self._resized(image, columns, rows)
    return square

  def _resized(self, image: np.ndarray, columns: int, rows: int) -> np.ndarray:
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)

  @property
  def _edge(self) -> int:
    """Width of what is cut off the square on each side."""
    return round((self.side_px - self.crop_px) / 2)

  def _placed(self, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the image in the square, and how far it lies from top and left."""
    sizes = [max(1, int(length * (self.side_px / max(shape)))) for length in shape]
    sizes[int(np.argmax(shape))] = self.side_px
    return tuple(sizes), tuple((self.side_px - size) // 2 for size in sizes)


@dataclass(frozen=True)
class ReducedSquare(PaddedSquare):
  """The square of CheXzero: longer side to 320 (Lanczos), black margin, then `network_px`.

  The last step is torch's bicubic without anti-aliasing, which may leave [0, 1] a little.

  Attributes:
    network_px: side of the network's input.
  """

  side_px: int = 320
  crop_px: int = 320
  network_px: int = 224

  @property
  def input_px(self) -> int:
    """Side of the network's input."""
    return self.network_px

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the network's input."""
    matrix = bicubic(self.side_px, self.network_px)
    return matrix @ (self._square(image).astype(np.float32) / 255) @ matrix.T

  def _resized(self, image: np.ndarray, columns: int, rows: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class MiddleOfShortSide:
  """The middle of the image, its shorter side brought to `short_px`, as BioViL and CLIP have it.

  The way back is BioViL's own: the cells tile the square of the image that the middle was, its side
  and its margin in whole pixels.

  Attributes:
    crop_px: side of the middle, and of the network's input.
    short_px: of the image before.
    resampling: Pillow's name of it.
    spread: whether grey values are spread to 0 to 255 before.
  """

  crop_px: int
  short_px: int = 512
  resampling: str = "BILINEAR"
  spread: bool = True

  @property
  def input_px(self) -> int:
    """Side of the network's input."""
    return self.crop_px

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the network's input, in [0, 1]; where spread, a constant one becomes 0."""
    grey = image
    if self.spread:
      grey = image.astype(np.float64) - image.min()
      grey = (grey / max(grey.max(), 1) * 255).astype(np.uint8)
    height, width = image.shape
    if min(image.shape) != self.short_px:
      height, width = (
        self.short_px
        if length == min(image.shape)
        else int(self.short_px * length / min(image.shape))
        for length in image.shape
      )
      how = Image.Resampling[self.resampling]
      resized = Image.fromarray(grey).resize((width, height), how)
      grey = np.asarray(resized)
    top, left = (round((length - self.crop_px) / 2) for length in (height, width))
    middle = grey[top : top + self.crop_px, left : left + self.crop_px]
    return middle.astype(np.float32) / 255

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map to an image of that shape; NaN beyond the middle."""
    side = int(self.crop_px * min(shape) / self.short_px)
    # torch's nearest takes the cell that a pixel begins in; bilinear goes by the pixel's centre.
    first = 0.0 if nearest else 0.5
    shift = 1e-9 if nearest else 0.0
    places = [(np.arange(side) + first) * count / side - 0.5 + shift for count in grid.shape]
    image = np.full(shape, np.nan, np.float32)
    top, left = ((length - side) // 2 for length in shape)
    image[top : top + side, left : left + side] = resample(
      np.asarray(grid, np.float32), *places, nearest=nearest
    )
    return image


@dataclass(frozen=True)
class WholeImage:
  """The whole image as a square, out of proportion, as SigLIP and MedSigLIP take it.

  Attributes:
    input_px: side of the square.
    antialias: bicubic with anti-aliasing (Pillow's); else bilinear without, rounded down to whole
      grey values (tf.image.resize, as MedSigLIP is evaluated).
  """

  input_px: int
  antialias: bool

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the network's input, in [0, 1]."""
    if self.antialias:
      side = (self.input_px, self.input_px)
      square = np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BICUBIC))
    else:
      places = (_centres(length, self.input_px) for length in image.shape)
      square = np.floor(resample(image.astype(np.float32), *places) + 1e-4)  # of rounding
    return square.astype(np.float32) / 255

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map to an image of that shape."""
    places = (_centres(count, length) for count, length in zip(grid.shape, shape, strict=True))
    return resample(np.asarray(grid, np.float32), *places, nearest=nearest)


def _centres(count: int, length: int) -> np.ndarray:
  """Centres of `length` pixels, counted in `count` cells that tile the same stretch."""
  return (np.arange(length) + 0.5) * count / length - 0.5


def resample(
  grid: Float[np.ndarray, "h w"],
  rows: Float[np.ndarray, " H"],
  columns: Float[np.ndarray, " W"],
  *,
  nearest: bool = False,
) -> Float[np.ndarray, "H W"]:
  """Samples a map at rows and columns, counted in cells.

  Bilinear, or of the nearest cell; beyond the outermost centres their values continue.
  """
  if nearest:
    i, j = (
      np.clip(np.floor(places + 0.5).astype(int), 0, count - 1)
      for places, count in ((rows, grid.shape[0]), (columns, grid.shape[1]))
    )
    return grid[i][:, j]
  return _weights(rows, grid.shape[0]) @ grid @ _weights(columns, grid.shape[1]).T


def _weights(places: np.ndarray, count: int) -> np.ndarray:
  """Shares of the cells in bilinear values, float32 [places, count]."""
  places = np.clip(places, 0, count - 1)
  return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count))).astype(np.float32)
