"""Stored form of images: 8-bit grey JPEG or PNG, short side bounded."""

import contextlib
import io
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline import images
from input_pipeline.example import Example, UnreadableError

FORMATS = ("keep", "jpeg", "png")
# What Pillow may decode. Of the others, EPS hands the file to Ghostscript, whatever its suffix.
CONTAINERS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_JPEG_QUALITY = 95
# Decoded pixels a stored one, each way, at the least. Averages over fewer are so uneven that they
# differ from those over all pixels by more than the stored JPEG from its own (docs/benchmarks.md).
_MARGIN = 2
MAX_DECODED_PX = 64_000_000  # by default; decoding takes 10 bytes a pixel and more
_ORIENTATION = 0x0112  # EXIF
# By orientation: are the axes swapped, then the columns and the rows turned round?
_TURNS = {
  2: (False, True, False),
  3: (False, True, True),
  4: (False, False, True),
  5: (True, False, False),
  6: (True, True, False),
  7: (True, True, True),
  8: (True, False, True),
}
_SIZE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = (256, 257), 258, 262, 339  # tags of a TIFF
_DEEP = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION  # grey of up to 16 bits
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")

# Pillow warns above 89 million pixels, and refuses twice as many: `check_size` has a bound instead.
Image.MAX_IMAGE_PIXELS = None
most_px = ContextVar("max_decoded_px", default=MAX_DECODED_PX)


def suffixes() -> set[str]:
  """Returns the suffixes of files in CONTAINERS, ".png" and others."""
  return {suffix for suffix, kind in Image.registered_extensions().items() if kind in CONTAINERS}


@contextlib.contextmanager
def bounded(max_decoded_px: int) -> Iterator[None]:
  """Bounds the pixels of every image that is decoded within, files and DICOM alike."""
  token = most_px.set(max_decoded_px)
  try:
    yield
  finally:
    most_px.reset(token)


def check_size(width: int, height: int) -> None:
  """Raises UnreadableError for a size that no image has, or of more pixels than the bound."""
  if min(width, height) < 2:
    raise UnreadableError(f"the image is {width} x {height}; an image has 2 pixels a side or more")
  if width * height > most_px.get():
    raise UnreadableError(
      f"the image is {width} x {height}, {width * height} pixels;"
      f" max_decoded_px={most_px.get()} bounds them"
    )


def open_image(encoded: bytes) -> Image.Image:
  """Opens an image without decoding it.

  Raises UnreadableError as `check_size` does, for several images in one file, and for bytes of no
  image in one of CONTAINERS; and Pillow's errors for a damaged header.
  """
  try:
    image = Image.open(io.BytesIO(encoded), formats=CONTAINERS)
  except UnidentifiedImageError:  # its message holds an address, another in each run
    read = ", ".join(CONTAINERS)
    raise UnreadableError(f"not a whole image of {read}; save other formats as PNG") from None
  _check_opened(image)
  return image


def _check_opened(image: Image.Image) -> None:
  check_size(*image.size)
  frames = getattr(image, "n_frames", 1)
  if frames > 1 and image.format != "MPO":  # a JPEG with its preview
    raise UnreadableError(f"it has {frames} frames, not one image")


def image_size(image: bytes) -> tuple[int, int]:
  """Reads width and height of an encoded image in pixels of the file, as boxes and masks are.

  Decodes no pixels, and applies no EXIF rotation: `store_image` does. Raises UnreadableError where
  there is no image, or none of a sensible size.
  """
  try:
    with open_image(image) as header:
      return _file_size(header)
  except UnreadableError:
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not an image ({error})") from error


def store_image(example: Example, image_px: int, image_format: str = "keep") -> Example:
  """Brings an example's image to the stored form: 8-bit grey JPEG or PNG, short side bounded.

  Bytes that have this form already stay as they are. Otherwise: EXIF rotation is applied, colour
  becomes luma, more than 8 bits are stretched from their least to their greatest value, and a
  reduction averages areas; a JPEG that is far too large is reduced by 2, 4 or 8 as it is decoded,
  which averages too. Boxes and masks, which come in pixels of the file, follow.

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
  example = _turn_regions(example, decoded.orientation)
  width, height = decoded.size
  if (width, height) != (example.width, example.height):
    raise ValueError(
      f"the image is {width} x {height}, the example says {example.width} x {example.height}"
    )
  if image_format == "keep":
    image_format = "jpeg" if decoded.container == "jpeg" else "png"
  scale = min(1.0, image_px / min(width, height))
  if scale == 1.0 and decoded.is_plain and decoded.container == image_format:
    try:
      images.decode(example.image)  # as training does: damage that Pillow passes over may stop it
    except ValueError as error:
      raise UnreadableError(f"not a whole image ({error})") from error
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


def _file_size(image: Image.Image) -> tuple[int, int]:
  """Returns width and height as the file holds them; Pillow turns those of a TIFF."""
  return tuple(map(image.tag_v2.get, _SIZE)) if image.format == "TIFF" else image.size


def _orientation(image: Image.Image, encoded: bytes) -> int:
  """Reads the orientation that EXIF or XMP ask for; 1 is as it is."""
  # Pillow decodes a whole PNG to learn whether EXIF follows its pixels.
  if image.format == "PNG" and not any(word in encoded for word in (b"eXIf", b"exif", b"adobe")):
    return 1
  return image.getexif().get(_ORIENTATION, 1)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Turns pixels [H, W] upright."""
  swapped, columns, rows = _TURNS.get(orientation, (False, False, False))
  pixels = pixels.T if swapped else pixels
  return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def _turn_regions(example: Example, orientation: int) -> Example:
  """Turns the size, the boxes and the masks of an example as `_turn` does its pixels."""
  if orientation not in _TURNS:
    return example
  swapped, columns, rows = _TURNS[orientation]
  size = (example.height, example.width) if swapped else (example.width, example.height)
  regions = []
  for region in example.regions:
    x0, y0, x1, y1 = (region.boxes[:, [1, 0, 3, 2]] if swapped else region.boxes).T
    if columns:
      x0, x1 = size[0] - x1, size[0] - x0
    if rows:
      y0, y1 = size[1] - y1, size[1] - y0
    boxes = np.stack([x0, y0, x1, y1], 1).astype(np.float32)
    mask = region.mask and encode_mask(_turn(images.decode(region.mask), orientation))
    regions.append(replace(region, boxes=boxes, mask=mask))
  return replace(example, width=size[0], height=size[1], regions=tuple(regions))


def decode_grey(encoded: bytes) -> np.ndarray:
  """Decodes an image of one of CONTAINERS whole and upright, as `store_image` does, [H, W].

  uint8, or float32 in 0 to 255 where it has more than 8 bits and so is stretched. Raises
  UnreadableError.
  """
  return _decode(encoded, most_px.get()).pixels  # so large a short side is never reduced to


def pillow_pixels(image: Image.Image) -> np.ndarray:
  """Takes the pixels of an image of Pillow, grey and upright, [H, W].

  Colour becomes luma and transparency is left aside, as in a file: uint8. Those of more than 8 bits
  keep their values and their dtype. Raises UnreadableError.
  """
  try:
    _check_opened(image)
    is_deep = image.mode[0] in "IF"
    pixels = np.asarray(image if is_deep or image.mode == "L" else image.convert("L"))
    is_upright = image.format == "TIFF"  # Pillow has turned it
    return pixels if is_upright else _turn(pixels, image.getexif().get(_ORIENTATION, 1))
  except (MemoryError, UnreadableError):
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a whole image ({error})") from error


@dataclass(frozen=True)
class _Decoded:
  """Image, or a reduced version of it.

  Attributes:
    pixels: grey, uint8 or float32 in 0 to 255.
    size: width and height of the whole image as shown.
    extent: how many of the pixels the whole image covers, across and down; the last of a reduced
      one lie partly outside of it.
    container: "jpeg", "png", ...
    orientation: by which the file's pixels were turned.
    is_plain: the encoded image is 8-bit grey and stands upright.
  """

  pixels: np.ndarray
  size: tuple[int, int]
  extent: tuple[float, float]
  container: str
  orientation: int
  is_plain: bool


def _decode(encoded: bytes, image_px: int) -> _Decoded:
  """Decodes to its end; a JPEG at 1/2, 1/4 or 1/8 where that is enough for `image_px`.

  Pillow, not OpenCV: OpenCV fills what a truncated file lacks with grey and says nothing.
  """
  try:
    with open_image(encoded) as image:
      container, mode, orientation = image.format or "", image.mode, _orientation(image, encoded)
      bits = _sample_bits(image, encoded)
      size = extent = image.size
      if container == "JPEG" and orientation == 1:
        least = [-(-side * image_px * _MARGIN // min(size)) for side in size]
        drafted = image.draft("L", (least[0], least[1]))
        extent = drafted[1][2:] if drafted else size
      image.load()
      if not _has_end(encoded, container):
        raise ValueError("image file is truncated: its end marker is missing")
      deep = mode.startswith("I") or mode == "F"
      is_inverted = deep and container == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
      pixels = np.asarray(image if deep or image.mode == "L" else image.convert("L"))
      is_upright = container == "TIFF"  # Pillow has turned it
      samples = image.tag_v2.get(_SAMPLE_FORMAT, (1,)) if container == "TIFF" else ()
      if samples[:1] == (1,) and mode == "I":  # unsigned, which Pillow lets wrap round
        pixels = pixels.view(np.uint32)
      elif samples[:1] == (2,) and mode == "L":  # signed, which Pillow reads as unsigned
        deep, pixels = True, pixels.view(np.int8)
    if bits > 8 and not deep:  # colours, of which Pillow keeps the upper 8 bits
      deep, pixels = True, cv2.imdecode(np.frombuffer(encoded, np.uint8), _DEEP)
      if pixels is None:
        raise ValueError(f"{mode} of {bits} bits")
  except (MemoryError, UnreadableError):
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a whole image ({error})") from error
  if deep:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
      raise UnreadableError("the image holds values that are not finite")
    wide = np.float32 if pixels.dtype.itemsize <= 2 else np.float64  # which hold all values
    pixels = pixels.astype(wide)
    pixels -= low
    pixels = pixels.astype(np.float32, copy=False)
    pixels *= 255 / (high - low) if high > low else 0
    pixels = 255 - pixels if is_inverted else pixels
  if orientation in _TURNS:
    pixels = pixels if is_upright else _turn(pixels, orientation)
    size = extent = pixels.shape[::-1]
  # Pillow shows the 2 and 4 bits of a PNG as "L" too.
  is_plain = mode == "L" and orientation == 1 and bits == 8
  return _Decoded(pixels, size, extent, container.lower(), orientation, is_plain)


def _sample_bits(image: Image.Image, encoded: bytes) -> int:
  """Reads the bits of a sample of a PNG or TIFF; 8 for all else."""
  if image.format == "PNG":
    return encoded[24]
  return max(image.tag_v2.get(_BITS, (1,))) if image.format == "TIFF" else 8


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


def decode_mask(encoded: bytes) -> np.ndarray:
  """Decodes a mask file of any mode: bool [H, W], inside where a viewer shows something.

  That is a colour that is not black, or, where its colours say nothing, what is not transparent.
  Raises UnreadableError where it cannot be decoded, ValueError where it may mean another shape.
  """
  try:
    with open_image(encoded) as image:
      kind, orientation = image.format, _orientation(image, encoded)
      has_alpha = image.has_transparency_data
      is_grey = not has_alpha and image.mode in ("1", "L", "F", "I", "I;16", "I;16B", "I;16L")
      pixels = np.asarray(image if is_grey else image.convert("RGBA" if has_alpha else "RGB"))
  except UnreadableError:
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a readable mask ({error})") from error
  if kind in _LOSSY:
    raise ValueError(f"is a {kind}, which blurs outlines; save it as PNG")
  if orientation in _TURNS:
    raise ValueError("is turned by its EXIF orientation; save it as it lies on its image")
  inside = pixels != 0 if is_grey else pixels[..., :3].any(axis=2)
  if has_alpha and not (opaque := pixels[..., 3] != 0).all():
    if inside.any() and not inside.all() and (inside != opaque).any():
      raise ValueError("shows one shape by its colours, another by its transparency; keep one")
    return opaque
  if inside.all() and (pixels != pixels[0, 0]).any():
    raise ValueError("is black nowhere, so that nothing is outside; save what is outside as 0")
  return inside


def encode_mask(inside: np.ndarray) -> bytes:
  """Encodes a mask [H, W], not 0 inside, as the PNG of a region."""
  return cv2.imencode(".png", (inside != 0).astype(np.uint8) * 255)[1].tobytes()


def resize_mask(mask: bytes, size: tuple[int, int]) -> bytes:
  """Reduces a mask; what covers less than half a pixel anywhere keeps every pixel it touches."""
  inside = images.decode(mask) > 0
  share = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA)
  return encode_mask(share >= 0.5 if (share >= 0.5).any() else share > 0)
