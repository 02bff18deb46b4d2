"""Listing of a data set while its tables are read: items, notes, and broken parts left out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from input_pipeline.example import SPLITS, Example
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Source


class Listing:
  """Collects the items of a data set and what its user should know of them.

  Attributes:
    items: by a name that no two images share.
    notes, left_out: as `Source` has them.
    counts: numbers that notes are made from.
  """

  def __init__(self):
    self.items: dict[str, Item] = {}
    self.notes: list[str] = []
    self.left_out: list[tuple[str, str]] = []
    self.counts = Counter()

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

  def shares(self) -> str:
    """Formats how many images each split has: "train 8, validation 1, test 1"."""
    counts = Counter(item.split for item in self.items.values())
    return ", ".join(f"{split} {counts[split]}" for split in SPLITS)

  def source(self, name: str, read: Callable[[Item], Example]) -> Source:
    """Returns the data set that was listed."""
    items = list(self.items.values())
    return Source(name, items, read, tuple(self.notes), tuple(self.left_out))
