"""Facts of one record that a check keeps, without the image itself.

An image seems inverted (dark bones on bright lungs: MONOCHROME1 shown as it is) where its polarity
is below 0 (ours). Chosen on 1,338 real frontal images, of which one is inverted: it is detected,
without a false alarm. The lowest polarity of the others is 0.66, so they are all detected when they
are inverted. The same holds of 967 real images it was not chosen on, lowest 0.37.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from hashlib import blake2b
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline import example as example_lib
from input_pipeline import images as images_lib
from input_pipeline.checks.duplicates import thumbnail
from input_pipeline.example import Example, Region
from input_pipeline.readers.raw.stored_images import open_image
from input_pipeline.text import reports

PLACEHOLDERS = {  # that de-identification leaves in reports
  "XXXX": re.compile(r"\bX{3,}\b"),
  "___": re.compile(r"_{3,}"),
  "[** **]": re.compile(r"\[\*\*.*?\*\*\]", re.DOTALL),
}
# Problems of a record that can be read.
PROBLEMS = _IMAGE, _IMAGE_KIND, _CONTRADICTION, _MASK, _EMPTY_MASK = (
  "images that cannot be decoded",
  "images that are not as recorded",
  "records that contradict themselves",
  "masks that cannot be decoded or have another size than their image",
  "masks that are empty",
)


class Place(NamedTuple):
  """Position of a record: its folder, split and number."""

  folder: str
  split: str
  number: int


class ImageFacts(NamedTuple):
  """Facts of a record, about 3 KB.

  Attributes:
    place: of the record.
    image_id, study_id, patient_id, view, text_kind: as recorded.
    labels: (finding, value) each.
    regions: their labels.
    text: the text that training reads, normalised (reports.normalise).
    placeholders: how often each of PLACEHOLDERS stands in the texts.
    letterless: how many sentences have no letter.
    short_px: the image's shorter side; 0 where it cannot be decoded, as all that follows is empty.
    pixel_hash: of size and pixels.
    thumbnail: uint8 [SIDE_PX, SIDE_PX] as bytes.
    deviation: standard deviation of the pixels, in grey levels.
    levels: the least, the 1st and the 99th percentile, and the greatest of the pixels.
    polarity: see `polarity`.
    problems: (one of PROBLEMS, details) each.
  """

  place: Place
  image_id: str
  study_id: str
  patient_id: str
  view: str
  text_kind: str
  labels: tuple[tuple[str, int], ...]
  regions: tuple[str, ...]
  text: str
  placeholders: tuple[int, ...]
  letterless: int
  short_px: int
  pixel_hash: bytes
  thumbnail: bytes
  deviation: float
  levels: tuple[int, int, int, int]
  polarity: float
  problems: tuple[tuple[str, str], ...] = ()


def split_of(image: ImageFacts) -> str:
  """Returns the split of a record."""
  return image.place.split


def group_by(
  images: Iterable[ImageFacts], key: Callable[[ImageFacts], Hashable]
) -> dict[Hashable, list[ImageFacts]]:
  """Groups images by key; those whose key is empty are left aside."""
  groups = defaultdict(list)
  for image in images:
    if key(image):
      groups[key(image)].append(image)
  return groups


class UnreadableRecord(NamedTuple):
  """A record that cannot be read, and the reason."""

  place: Place
  reason: str


def examine(place: Place, example: Example) -> ImageFacts:
  """Returns the facts of a record; never raises for what the record holds."""
  problems = []
  try:
    example_lib.check(example)
  except ValueError as error:
    problems.append((_CONTRADICTION, str(error)))
  short_px, pixel_hash, thumb, deviation, levels, upright = 0, b"", b"", 0.0, (0, 0, 0, 0), 0.0
  try:
    # Not OpenCV: it fills what a truncated file lacks with grey, silently.
    with open_image(example.image) as image:
      kind, decoded = f"{image.mode} {image.format}", np.asarray(image)
    images_lib.decode(example.image)  # but training reads by OpenCV
  except MemoryError:
    raise
  except Exception as error:  # Pillow raises many kinds
    problems.append((_IMAGE, str(error)))
  else:
    size = decoded.shape[1::-1]
    if kind not in ("L JPEG", "L PNG"):
      problems.append((_IMAGE_KIND, f"{kind} for Pillow, not 8-bit grey JPEG or PNG"))
    else:
      small = thumbnail(decoded)
      short_px, thumb, upright = min(size), small.tobytes(), polarity(small)
      pixel_hash = blake2b(decoded, digest_size=16, key=repr(size).encode()).digest()
      deviation = float(cv2.meanStdDev(decoded)[1][0, 0])
      levels = _levels(decoded)
    if size != (example.width, example.height):
      recorded = f"recorded as {example.width} x {example.height}"
      problems.append((_IMAGE_KIND, f"{size[0]} x {size[1]}, {recorded}"))
  for region in example.regions:
    problems += _mask_problems(region, (example.height, example.width))
  texts = " ".join([*example.sections.values(), *(() if example.sections else example.sentences)])
  return ImageFacts(
    place=place,
    image_id=example.image_id,
    study_id=example.study_id,
    patient_id=example.patient_id,
    view=example.view,
    text_kind=example.text_kind,
    labels=tuple(example.labels.items()),
    regions=tuple(region.label for region in example.regions),
    text=reports.normalise(" ".join(example.sentences)),
    placeholders=tuple(len(pattern.findall(texts)) for pattern in PLACEHOLDERS.values()),
    letterless=sum(not any(map(str.isalpha, sentence)) for sentence in example.sentences),
    short_px=short_px,
    pixel_hash=pixel_hash,
    thumbnail=thumb,
    deviation=deviation,
    levels=levels,
    polarity=upright,
    problems=tuple(problems),
  )


def _mask_problems(region: Region, shape: tuple[int, int]) -> Iterable[tuple[str, str]]:
  if not region.mask:
    return
  try:
    pixels = images_lib.decode(region.mask)
  except ValueError:
    yield _MASK, f"{region.label!r}: no readable image"
    return
  if pixels.shape != shape:
    size, recorded = (f"{width} x {height}" for height, width in (pixels.shape, shape))
    yield _MASK, f"{region.label!r}: {size}, its image is recorded as {recorded}"
  elif not pixels.any():
    yield _EMPTY_MASK, f"{region.label!r}"


def _levels(pixels: np.ndarray) -> tuple[int, int, int, int]:
  """Finds the least, the 1st and the 99th percentile, and the greatest of uint8 [H, W]."""
  shares = np.cumsum(cv2.calcHist([pixels], [0], None, [256], [0, 256])) / pixels.size
  dark, bright = np.searchsorted(shares, (0.01, 0.99)).tolist()
  return int(pixels.min()), dark, bright, int(pixels.max())


def polarity(thumb: np.ndarray) -> float:
  """Measures how upright the grey levels of a frontal image are, in standard deviations.

  Spine and belly against lungs, and the middle against the upper corners, where air is. Inverting
  the image (its thumbnail, uint8 [SIDE_PX, SIDE_PX]) changes the sign alone: below 0 it seems so.
  """
  grey = thumb.astype(np.float32)
  grey = (grey - grey.mean()) / max(float(grey.std()), 1e-3)
  lungs = (grey[6:18, 6:11].mean() + grey[6:18, 21:26].mean()) / 2
  corners = (grey[:4, :4].mean() + grey[:4, -4:].mean()) / 2
  spine, belly, middle = grey[6:24, 13:19], grey[24:, 8:24], grey[8:24, 8:24]
  return float(spine.mean() + belly.mean() - 2 * lungs + middle.mean() - corners)
