"""Data set before conversion: its images, listed while its tables are read, and their reader."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from input_pipeline.example import SPLITS, Example, Region
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.raw.stored_images import image_size
from input_pipeline.text import reports


@dataclass(frozen=True)
class Item:
  """Image before it is read, with all that the listing knows; small and picklable.

  Attributes:
    key: path (and row) by which errors and skipped.jsonl name it.
    split: "train", "validation" or "test".
    patient_id: the converter refuses a patient that sits in two splits.
    row: the reader's own; its repr must say all that decides the example.
    image_id: as in the example; "" where the listing does not know it yet.
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
  """Data set before conversion.

  Attributes:
    name: prefix of its shards' names.
    items: its images in a fixed order.
    read: makes the example of an item, picklable. The example's image may be any encoded image that
      `stored_images.store_image` takes; the converter brings it to the stored form. Raises
      UnreadableError for what cannot be read, SourceError where the source contradicts itself.
    notes: facts of the listing for the user: defaults taken, images left aside on purpose.
    left_out: (key, reason) of broken rows, boxes and images. The converter adds them to
      skipped.jsonl, and they count against max_skipped_fraction.
    split_note: that of the notes which a selection with splits of its own makes void.
  """

  name: str
  items: list[Item]
  read: Callable[[Item], Example]
  notes: tuple[str, ...] = ()
  left_out: tuple[tuple[str, str], ...] = ()
  split_note: str = ""


class Listing:
  """Collects the items of a data set and what its user should know of them.

  Attributes:
    items: by a name that no two images share.
    notes, left_out, split_note: as `Source` has them.
    counts: numbers that notes are made from.
  """

  def __init__(self):
    self.items: dict[str, Item] = {}
    self.notes: list[str] = []
    self.left_out: list[tuple[str, str]] = []
    self.counts = Counter()
    self.split_note = ""

  def add(self, name: str, item: Item) -> bool:
    """Adds an image; counts it as repeated, and returns False, where its name is taken.

    Raises SourceError where the earlier item of that name says something else.
    """
    first = self.items.setdefault(name, item)
    if first is item:
      return True
    if replace(item, key=first.key) != first:
      raise SourceError(f"{item.key} contradicts {first.key}; remove one of them")
    self.counts["repeated"] += 1
    return False

  def leave_out(self, key: str, reason: str) -> None:
    """Lists a row, a box or an image that is broken."""
    self.left_out.append((key, reason))

  def note(self, text: str, *values: object) -> None:
    """Adds a note. Values fill its {}; where the first, such as a count, is 0, there is no note."""
    if not values or values[0]:
      self.notes.append(text.format(*values) if values else text)

  def note_repeated(self, noun: str = "rows") -> None:
    """Notes how many rows (or other nouns) were dropped as repeated."""
    text = f"{noun} that say the same as an earlier one, dropped: {{}}"
    self.note(text, self.counts["repeated"])

  def note_split(self, text: str) -> None:
    """Notes how splits were drawn, with their sizes: "(train 8, validation 1, test 1)"."""
    counts = Counter(item.split for item in self.items.values())
    sizes = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    self.split_note = f"{text} ({sizes})"
    self.notes.append(self.split_note)

  def source(self, name: str, read: Callable[[Item], Example]) -> Source:
    """Returns the data set that was listed."""
    items = list(self.items.values())
    return Source(name, items, read, tuple(self.notes), tuple(self.left_out), self.split_note)


def build_example(
  item: Item,
  image: bytes,
  *,
  regions: Callable[[int, int], tuple[Region, ...]] | None = None,
  **fields: Any,
) -> Example:
  """Builds the example of an item from its encoded image.

  Args:
    item: gives ids, view and labels; the image is a study of its own if `fields` hold no study_id.
    image: encoded as `Source.read` allows.
    regions: makes the regions, given the width and height of the file in pixels.
    fields: further fields of the example, and those that replace the item's. Sentences are those of
      the sections, unless they are given.

  Raises UnreadableError where the image's size cannot be read.
  """
  width, height = image_size(image)
  if "sections" in fields and "sentences" not in fields:
    fields["sentences"] = tuple(reports.report_sentences(fields["sections"]))
  defaults = {
    "image_id": item.image_id,
    "study_id": item.image_id,
    "patient_id": item.patient_id,
    "view": item.view,
    "labels": dict(item.labels),
    "regions": regions(width, height) if regions else (),
  }
  return Example(image=image, width=width, height=height, **(defaults | fields))


def draw(patient_id: str) -> float:
  """Draws a number in [0, 1) by the patient's name alone, so that adding images moves nobody."""
  return int.from_bytes(hashlib.blake2b(patient_id.encode(), digest_size=4).digest(), "big") / 2**32


def draw_validation(patient_id: str, share: float) -> str:
  """Draws "validation" for a share of the patients, "train" for the others."""
  return "validation" if draw(patient_id) < share else "train"


def draw_split(patient_id: str) -> str:
  """Draws a split, 80/10/10, by the patient's name alone."""
  drawn = draw(patient_id)
  return "train" if drawn < 0.8 else "validation" if drawn < 0.9 else "test"


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
