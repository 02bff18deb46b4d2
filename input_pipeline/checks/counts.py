"""Counts of a data set, split by split."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from input_pipeline.checks.facts import ImageFacts, group_by, split_of


class Table(NamedTuple):
  """Counts: one row a name, one column a split."""

  title: str
  columns: tuple[str, ...]
  rows: dict[str, tuple[str, ...]]


def tables(images: Sequence[ImageFacts]) -> list[Table]:
  """Counts images, texts, views, labels and regions by split; tables without rows are left out."""
  by_split = group_by(images, split_of)
  splits = tuple(by_split)

  def count(title: str, values: Callable[[ImageFacts], Iterable[str]]) -> Table:
    counts = [Counter(v for image in by_split[split] for v in values(image)) for split in splits]
    total = sum(counts, Counter())
    rows = {v or "(none)": tuple(str(c[v]) for c in counts) for v, _ in total.most_common()}
    return Table(title, splits, rows)

  def distinct(key: Callable[[ImageFacts], str]) -> tuple[str, ...]:
    return tuple(str(len(set(map(key, by_split[split])))) for split in splits)

  def number(test: Callable[[ImageFacts], object]) -> tuple[str, ...]:
    return tuple(str(sum(map(bool, map(test, by_split[split])))) for split in splits)

  overview = {
    "images": tuple(str(len(by_split[split])) for split in splits),
    "studies": distinct(lambda image: image.study_id),
    "patients": distinct(lambda image: image.patient_id),
    "with text": number(lambda image: image.text),
    "with regions": number(lambda image: image.regions),
  }
  labels = [Counter(label for image in by_split[s] for label in image.labels) for s in splits]
  names = sorted({name for counts in labels for name, _ in counts})
  rows = {
    name: tuple(" / ".join(str(c[name, value]) for value in (1, 0, -1)) for c in labels)
    for name in names
  }
  out = [
    Table("split", splits, overview),
    count("text kind", lambda image: [image.text_kind] if image.text else ["no text"]),
    count("view", lambda image: [image.view]),
    Table("labels: present / absent / uncertain", splits, rows),
    count("regions", lambda image: image.regions),
  ]
  return [table for table in out if table.rows]
