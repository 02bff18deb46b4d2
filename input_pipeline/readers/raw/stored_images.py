"""Stored form of images: 8-bit grey JPEG or PNG, short side bounded."""

import io
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageOps

from input_pipeline.example import Example, UnreadableError

FORMATS = ("keep", "jpeg", "png")
# What Pillow may decode. Of the others, EPS hands the file to Ghostscript, whatever its suffix.
CONTAINERS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_JPEG_QUALITY = 95
# Decoded pixels a stored one, each way, at the least. Averages over fewer are so uneven that they
# differ from those over all pixels by more than the stored JPEG from its own (docs/benchmarks.md).
_MARGIN = 2
_MOST_PIXELS = 2**28
_ORIENTATION = 0x0112  # EXIF; 5 to 8 swap the axes

# Pillow warns above 89 million pixels, and refuses twice as many: `open_image` has a bound instead.
Image.MAX_IMAGE_PIXELS = None


def open_image(encoded: bytes) -> Image.Image:
  """Opens an image without decoding it.

  Raises UnreadableError for a size that no image has, and Pillow's errors for bytes of no image
  in one of CONTAINERS.
  """
  image = Image.open(io.BytesIO(encoded), formats=CONTAINERS)
  width, height = image.size
  if min(width, height) < 2 or width * height > _MOST_PIXELS:
    raise UnreadableError(
      f"the image is {width} x {height}; an image has 2 pixels a side or more,"
      f" and no more than {_MOST_PIXELS} in all"
    )
  return image


def image_size(image: bytes) -> tuple[int, int]:
  """Reads width and height of an encoded image as a viewer shows it (EXIF rotation applied).

  Decodes no pixels. Raises UnreadableError where there is no image, or none of a sensible size.
  """
  try:
    with open_image(image) as header:
      return _shown_size(header.size, _orientation(header, image))
  except UnreadableError:
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not an image ({error})") from error


def store_image(example: Example, image_px: int, image_format: str = "keep") -> Example:
  """Brings an example's image to the stored form: 8-bit grey JPEG or PNG, short side bounded.

  Bytes that have this form already stay as they are. Otherwise: EXIF rotation is applied, colour
  becomes luma, more than 8 bits are stretched from their least to their greatest value, and a
  reduction averages areas; a JPEG that is far too large is reduced by 2, 4 or 8 as it is decoded,
  which averages too. Boxes and masks follow.

  Args:
    example: as a reader made it; its image may be in any of CONTAINERS. Pixels that come in
      no file of their own are best handed over as binary PGM (P5): one header line, no compression;
      16-bit ones with 65535 as the greatest value, since Pillow rescales any other, slowly.
    image_px: bound of the short side.
    image_format: one of FORMATS; "keep" stores JPEG as JPEG and all else as PNG.

  Raises UnreadableError where the image cannot be decoded to its end or has no sensible size,
  ValueError where it has another size than the example says.
  """
  decoded = _decode(example.image, image_px)
  width, height = decoded.size
  if (width, height) != (example.width, example.height):
    raise ValueError(
      f"the image is {width} x {height}, the example says {example.width} x {example.height}"
    )
  if image_format == "keep":
    image_format = "jpeg" if decoded.container == "jpeg" else "png"
  scale = min(1.0, image_px / min(width, height))
  if scale == 1.0 and decoded.is_plain and decoded.container == image_format:
    return example
  pixels, size = decoded.pixels, (round(width * scale), round(height * scale))
  if size != (width, height):
    pixels = _reduce(decoded, size)
    factor = np.array([size[0] / width, size[1] / height] * 2)
    regions = []
    for region in example.regions:
      boxes = np.minimum(region.boxes * factor, [*size, *size]).astype(np.float32)
      mask = region.mask and resize_mask(region.mask, size)
      regions.append(replace(region, boxes=boxes, mask=mask))
    example = replace(example, width=size[0], height=size[1], regions=tuple(regions))
  grey = pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)
  quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if image_format == "jpeg" else []
  return replace(example, image=cv2.imencode(f".{image_format}", grey, quality)[1].tobytes())


def _orientation(image: Image.Image, encoded: bytes) -> int:
  """Reads the orientation that EXIF or XMP ask for; 1 is as it is."""
  # Pillow decodes a whole PNG to learn whether EXIF follows its pixels.
  if image.format == "PNG" and not any(word in encoded for word in (b"eXIf", b"exif", b"adobe")):
    return 1
  return image.getexif().get(_ORIENTATION, 1)


def _shown_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  return size[::-1] if orientation in (5, 6, 7, 8) else size


@dataclass(frozen=True)
class _Decoded:
  """Image, or a reduced version of it.

  Attributes:
    pixels: grey, uint8 or float32 in 0 to 255.
    size: width and height of the whole image as shown.
    extent: how many of the pixels the whole image covers, across and down; the last of a reduced
      one lie partly outside of it.
    container: "jpeg", "png", ...
    is_plain: the encoded image is 8-bit grey and stands upright.
  """

  pixels: np.ndarray
  size: tuple[int, int]
  extent: tuple[float, float]
  container: str
  is_plain: bool


def _decode(encoded: bytes, image_px: int) -> _Decoded:
  """Decodes to its end; a JPEG at 1/2, 1/4 or 1/8 where that is enough for `image_px`.

  Pillow, not OpenCV: OpenCV fills what a truncated file lacks with grey and says nothing.
  """
  try:
    with open_image(encoded) as image:
      container, mode, orientation = image.format or "", image.mode, _orientation(image, encoded)
      size = _shown_size(image.size, orientation)
      extent: tuple[float, float] = size
      if container == "JPEG" and orientation == 1:
        least = [-(-side * image_px * _MARGIN // min(size)) for side in size]
        drafted = image.draft("L", (least[0], least[1]))
        extent = drafted[1][2:] if drafted else size
      image.load()
      if not _has_end(encoded, container):
        raise ValueError("image file is truncated: its end marker is missing")
      image = ImageOps.exif_transpose(image) if orientation != 1 else image
      deep = mode.startswith("I") or mode == "F"
      pixels = np.asarray(image if deep or image.mode == "L" else image.convert("L"))
  except (MemoryError, UnreadableError):
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a whole image ({error})") from error
  if deep:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
      raise UnreadableError("the image holds values that are not finite")
    pixels = pixels.astype(np.float32)
    pixels -= low
    pixels *= 255 / (high - low) if high > low else 0
  # A PNG says its bits a pixel in byte 24; Pillow shows 2 and 4 bits as "L" too.
  is_plain = mode == "L" and orientation == 1 and (container == "JPEG" or encoded[24] == 8)
  return _Decoded(pixels, size, extent, container.lower(), is_plain)


def _has_end(encoded: bytes, container: str) -> bool:
  """Tells whether the end marker is there, which Pillow does not insist on."""
  if container == "PNG":
    return b"IEND\xaeB`\x82" in encoded
  if container == "JPEG":  # data between its last scan's start and its end holds no marker
    end = encoded.rfind(b"\xff\xd9")
    return end >= 0 and encoded.find(b"\xff\xda", end) < 0
  return True


def _reduce(decoded: _Decoded, size: tuple[int, int]) -> np.ndarray:
  """Averages areas down to `size`; the areas divide the extent evenly, not the pixels."""
  factors = [wanted / covered for wanted, covered in zip(size, decoded.extent, strict=True)]
  pixels = cv2.resize(
    decoded.pixels, None, fx=factors[0], fy=factors[1], interpolation=cv2.INTER_AREA
  )
  return pixels[: size[1], : size[0]]  # what lies outside the extent can make a pixel of its own


def encode_pgm(grey: np.ndarray) -> bytes:
  """Encodes uint8 [H, W] as binary PGM, which Pillow reads and which costs no compression."""
  height, width = grey.shape
  return b"P5\n%d %d\n255\n" % (width, height) + grey.tobytes()


def encode_mask(inside: np.ndarray) -> bytes:
  """Encodes a mask [H, W], not 0 inside, as the PNG of a region."""
  return cv2.imencode(".png", (inside != 0).astype(np.uint8) * 255)[1].tobytes()


def resize_mask(mask: bytes, size: tuple[int, int]) -> bytes:
  """Reduces a mask; what covers less than half a pixel anywhere keeps every pixel it touches."""
  inside = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
  share = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA)
  return encode_mask(share >= 0.5 if (share >= 0.5).any() else share > 0)
