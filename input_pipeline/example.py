"""One chest image with its text and, where known, its true regions."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SPLITS = ("train", "validation", "test")
RESERVED = ("macro", "all")  # no finding's name: metrics over all findings are called so


class UnreadableError(Exception):
  """One item of a source cannot be read; the converter counts and lists it."""


@dataclass(frozen=True)
class Region:
  """A part of the image that a phrase describes.

  Attributes:
    phrase: words for the region, e.g. "small left pleural effusion".
    label: the finding's name, e.g. "effusion"; evaluation groups by it.
    boxes: [N, 4] float32, (x0, y0, x1, y1) in pixels of the stored image; x1, y1 exclusive.
    mask: an 8-bit PNG of the stored image's size, non-zero inside; b"" where only boxes are known.
  """

  phrase: str
  label: str
  boxes: np.ndarray
  mask: bytes = b""


@dataclass(frozen=True)
class Entity:
  """A stretch of a sentence that an annotator marked.

  Attributes:
    sentence: number of the sentence in the example.
    start, end: characters of the sentence, end exclusive.
    label: of the annotation, e.g. RadGraph's "OBS-DP".
  """

  sentence: int
  start: int
  end: int
  label: str


@dataclass(frozen=True)
class Example:
  """One image with its text.

  Attributes:
    image: encoded 8-bit grey JPEG or PNG.
    width, height: size of the stored image in pixels.
    image_id, study_id, patient_id: image ids are unique in a data set; a patient sits in one split.
    view: "PA", "AP", ... or "".
    sections: section name ("findings", "impression", ...) -> its text.
    sentences: the text that training reads, one sentence each; empty where the image has no report.
    labels: finding -> 1 present, 0 absent, -1 uncertain; a finding that is not named is unknown.
    regions: true regions, where known.
    entities: annotated words of the sentences, where known.
    text_kind: "report" for a radiologist's words, "labels" for a sentence made from labels.
    place: shard and number of the record it was read from, for messages; "" before that.
    features: from the number of a view to its stored features, see `features`; None without.
    pixels: gives the decoded image where several readers share it; None: each decodes `image`.
  """

  image: bytes
  width: int
  height: int
  image_id: str
  study_id: str
  patient_id: str
  view: str = ""
  sections: dict[str, str] = field(default_factory=dict)
  sentences: tuple[str, ...] = ()
  labels: dict[str, int] = field(default_factory=dict)
  regions: tuple[Region, ...] = ()
  entities: tuple[Entity, ...] = ()
  text_kind: str = "report"
  place: str = field(default="", compare=False, repr=False)
  features: Callable[[int], np.ndarray] | None = field(default=None, compare=False, repr=False)
  pixels: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

  @property
  def is_lateral(self) -> bool:
    """Returns True where the view is not frontal, as far as it is told."""
    view = self.view.upper()
    # LL, RL: of DICOM; decubitus, LLD and RLD there, is frontal, of a patient who lies on a side.
    return ("LAT" in view and "DECUB" not in view) or view in ("L", "LL", "RL")


def check(example: Example) -> None:
  """Raises ValueError, naming the field, where an example contradicts itself."""
  for name in ("image_id", "study_id", "patient_id"):
    if not getattr(example, name):
      raise ValueError(f"{name} is empty")
  if not example.image:
    raise ValueError("image is empty")
  if example.text_kind not in ("report", "labels"):
    raise ValueError(f"text_kind is {example.text_kind!r}; it must be 'report' or 'labels'")
  for name in (*example.labels, *(region.label for region in example.regions)):
    if name in RESERVED:
      raise ValueError(
        f"a finding is called {name!r}, as the metrics over all findings are: rename it in the"
        " source"
      )
  for name, value in example.labels.items():
    if value not in (1, 0, -1):
      raise ValueError(f"label {name!r} is {value!r}; it must be 1, 0 or -1")
  for entity in example.entities:
    length = -1
    if 0 <= entity.sentence < len(example.sentences):
      length = len(example.sentences[entity.sentence])
    if not 0 <= entity.start < entity.end <= length:
      raise ValueError(f"{entity} lies in none of the {len(example.sentences)} sentences")
  for region in example.regions:
    boxes = region.boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32:
      raise ValueError(
        f"boxes of {region.label!r} are {boxes.dtype}{boxes.shape}, not float32[N, 4]"
      )
    if not len(boxes) and not region.mask:
      raise ValueError(f"region {region.label!r} has neither a box nor a mask")
    for x0, y0, x1, y1 in boxes.tolist():
      if not (0 <= x0 < x1 <= example.width and 0 <= y0 < y1 <= example.height):
        raise ValueError(
          f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {region.label!r} is empty or outside"
          f" its {example.width} x {example.height} image"
        )
