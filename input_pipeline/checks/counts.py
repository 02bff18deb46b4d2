"""A data set in numbers, split by split."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from input_pipeline.checks.facts import Image


class Table(NamedTuple):
  """Counts: one row a name, one column a split."""

  title: str
  columns: tuple[str, ...]
  rows: dict[str, tuple[str, ...]]


def tables(images: Sequence[Image]) -> list[Table]:
  """Counts by split."""
  of: dict[str, list[Image]] = {}
  for image in images:
    of.setdefault(image.place.split, []).append(image)
  splits = tuple(of)

  def count(title: str, values: Callable[[Image], Iterable[str]]) -> Table:
    counts = {split: Counter(v for image in of[split] for v in values(image)) for split in splits}
    total = Counter(v for split in splits for v in counts[split].elements())
    rows = {v or "(none)": tuple(str(counts[s][v]) for s in splits) for v, _ in total.most_common()}
    return Table(title, splits, rows)

  def distinct(key: Callable[[Image], str]) -> tuple[str, ...]:
    return tuple(str(len(set(map(key, of[split])))) for split in splits)

  def number(test: Callable[[Image], object]) -> tuple[str, ...]:
    return tuple(str(sum(map(bool, map(test, of[split])))) for split in splits)

  overview = {
    "images": tuple(str(len(of[split])) for split in splits),
    "studies": distinct(lambda image: image.study_id),
    "patients": distinct(lambda image: image.patient_id),
    "with text": number(lambda image: image.text),
    "with regions": number(lambda image: image.regions),
  }
  labels = {
    split: Counter(label for image in of[split] for label in image.labels) for split in splits
  }
  names = sorted({name for counts in labels.values() for name, _ in counts})
  rows = {
    name: tuple(
      " / ".join(str(labels[split][name, value]) for value in (1, 0, -1)) for split in splits
    )
    for name in names
  }
  out = [
    Table("images", splits, overview),
    count("text kind", lambda image: [image.text_kind] if image.text else ["no text"]),
    count("view", lambda image: [image.view]),
    Table("labels: present / absent / uncertain", splits, rows),
    count("regions", lambda image: image.regions),
  ]
  return [table for table in out if table.rows]
