"""Readers: one module a data set, each turning a raw folder into a list of items and their studies.

Here stands what they share: items, sources, and the form in which images are stored.

A new reader is a module with `open_source(source, **options) -> Source` and its line in `READERS`.
"""

import hashlib
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from input_pipeline.raw import SourceError
from input_pipeline.study import Study, UnreadableError

FORMATS = ("keep", "jpeg", "png")
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Item:
  """All that is known of one film before its image is read; small and picklable.

  Attributes:
    key: path (and row) by which errors and skipped.jsonl name it.
    split: "train", "validation" or "test".
    patient_id: the converter refuses a patient that sits in two splits.
    row: the reader's own; its repr must say all that decides the study.
    image_id: as in the study; "" where the listing does not know it yet.
    view: likewise.
    labels: (name, 1, 0 or -1) that the listing knows; selections choose by them.
  """

  key: str
  split: str
  patient_id: str
  row: Any
  image_id: str = ""
  view: str = ""
  labels: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Source:
  """A data set before conversion.

  Attributes:
    name: what its shards' names begin with.
    items: its films in a fixed order.
    read: makes the study of an item, picklable. The study's image may be any encoded image that
      Pillow reads; the converter brings it to the stored form. Raises UnreadableError for what
      cannot be read, SourceError where the source contradicts itself.
    notes: what the user should know of the listing: defaults taken, films left aside on purpose.
    left_out: (key, reason) of what the listing found broken: rows, boxes, films. The converter adds
      them to skipped.jsonl, and they count against max_skipped_fraction.
  """

  name: str
  items: list[Item]
  read: Callable[[Item], Study]
  notes: tuple[str, ...] = ()
  left_out: tuple[tuple[str, str], ...] = ()


def draw_split(patient_id: str) -> str:
  """A split, 80/10/10, by the patient's name alone, so that adding films moves nobody."""
  draw = int.from_bytes(hashlib.blake2b(patient_id.encode(), digest_size=4).digest(), "big") / 2**32
  return "train" if draw < 0.8 else "validation" if draw < 0.9 else "test"


def check_patients(items: list[Item]) -> None:
  """Raises SourceError where a patient sits in two splits: evaluation would leak."""
  first: dict[str, Item] = {}
  twice = {}
  for item in items:
    if first.setdefault(item.patient_id, item).split != item.split:
      twice.setdefault(item.patient_id, item)
  if twice:
    patient, item = next(iter(twice.items()))
    raise SourceError(
      f"{len(twice)} patients sit in two splits; the first is {patient!r}:"
      f" {first[patient].split} by {first[patient].key}, {item.split} by {item.key};"
      " give each patient one split"
    )


def image_size(image: bytes) -> tuple[int, int]:
  """Width and height of an encoded image as a viewer shows it (EXIF rotation applied).

  Reads the header alone. Raises UnreadableError where there is none.
  """
  try:
    with Image.open(io.BytesIO(image)) as header:
      turned = header.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the axes
      return header.size[::-1] if turned else header.size
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not an image ({error})") from error


def store_image(study: Study, image_px: int, image_format: str = "keep") -> Study:
  """Brings a study's image to the stored form: 8-bit grey JPEG or PNG, short side bounded.

  Bytes that have this form already stay as they are. Otherwise: EXIF rotation is applied, colour
  becomes luma, more than 8 bits are stretched from their least to their greatest value, and a
  reduction averages areas. Boxes and masks follow.

  Args:
    study: as a reader made it.
    image_px: bound of the short side.
    image_format: one of FORMATS; "keep" stores JPEG as JPEG and all else as PNG.

  Raises UnreadableError where the image cannot be decoded to its end, ValueError where it has
  another size than the study says.
  """
  pixels, container, is_plain = _decode(study.image)
  height, width = pixels.shape
  if (width, height) != (study.width, study.height):
    raise ValueError(
      f"the image is {width} x {height}, the study says {study.width} x {study.height}"
    )
  if image_format == "keep":
    image_format = "jpeg" if container == "jpeg" else "png"
  scale = min(1.0, image_px / min(width, height))
  if scale == 1.0 and is_plain and container == image_format:
    return study
  size = (round(width * scale), round(height * scale))
  if size != (width, height):
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    factor = np.array([size[0] / width, size[1] / height] * 2)
    regions = []
    for region in study.regions:
      boxes = np.minimum(region.boxes * factor, [*size, *size]).astype(np.float32)
      mask = region.mask and _resize_mask(region.mask, size)
      regions.append(replace(region, boxes=boxes, mask=mask))
    study = replace(study, width=size[0], height=size[1], regions=tuple(regions))
  grey = np.rint(pixels).astype(np.uint8)
  quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if image_format == "jpeg" else []
  suffix = ".jpg" if image_format == "jpeg" else ".png"
  return replace(study, image=cv2.imencode(suffix, grey, quality)[1].tobytes())


def _decode(encoded: bytes) -> tuple[np.ndarray, str, bool]:
  """Grey pixels (uint8, or float32 in 0 to 255), the container, and whether it is plain 8-bit grey.

  Pillow, not OpenCV: OpenCV fills what a truncated file lacks with grey and says nothing.
  """
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      image.load()
      if not _has_end(encoded, image.format):
        raise ValueError("image file is truncated: its end marker is missing")
      turned = image.getexif().get(0x0112, 1) != 1
      container, mode = (image.format or "").lower(), image.mode
      image = ImageOps.exif_transpose(image) if turned else image
      deep = mode.startswith("I") or mode == "F"
      pixels = np.asarray(image if deep or mode == "L" else image.convert("L"))
  except MemoryError:
    raise
  except Exception as error:  # Pillow raises many kinds
    raise UnreadableError(f"not a whole image ({error})") from error
  if deep:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
      raise UnreadableError("the image holds values that are not finite")
    pixels = (pixels.astype(np.float32) - low) * (255 / (high - low) if high > low else 0)
  # A PNG says its bits a pixel in byte 24; Pillow shows 2 and 4 bits as "L" too.
  is_plain = mode == "L" and not turned and (container == "jpeg" or encoded[24] == 8)
  return pixels, container, is_plain


def _has_end(encoded: bytes, container: str | None) -> bool:
  """Whether the end marker is there, which Pillow does not insist on."""
  if container == "PNG":
    return b"IEND\xaeB`\x82" in encoded
  if container == "JPEG":  # data between its last scan's start and its end holds no marker
    return encoded.rfind(b"\xff\xd9") > encoded.rfind(b"\xff\xda")
  return True


def _resize_mask(mask: bytes, size: tuple[int, int]) -> bytes:
  """Reduces a mask; what covers less than half a pixel anywhere keeps every pixel it touches."""
  inside = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
  share = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA)
  inside = share >= 0.5 if (share >= 0.5).any() else share > 0
  return cv2.imencode(".png", inside.astype(np.uint8) * 255)[1].tobytes()


# Below the definitions, which the readers import from here.
from input_pipeline.readers import folder, phantom  # noqa: E402

READERS: dict[str, Callable[..., Source]] = {
  "folder": folder.open_source,
  "phantom": phantom.open_source,
}


def default_options(dataset: str) -> dict[str, Any]:
  """The keyword arguments of a reader's open_source and their defaults."""
  parameters = inspect.signature(READERS[dataset]).parameters.values()
  return {p.name: p.default for p in parameters if p.name != "source"}
