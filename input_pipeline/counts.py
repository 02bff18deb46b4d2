"""A data set in numbers, split by split."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from input_pipeline.facts import Film


class Table(NamedTuple):
  """Counts: one row a name, one column a split."""

  title: str
  columns: tuple[str, ...]
  rows: dict[str, tuple[str, ...]]


def tables(films: Sequence[Film]) -> list[Table]:
  """Counts by split."""
  of: dict[str, list[Film]] = {}
  for film in films:
    of.setdefault(film.place.split, []).append(film)
  splits = tuple(of)

  def count(title: str, values: Callable[[Film], Iterable[str]]) -> Table:
    counts = {split: Counter(v for film in of[split] for v in values(film)) for split in splits}
    total = Counter(v for split in splits for v in counts[split].elements())
    rows = {v or "(none)": tuple(str(counts[s][v]) for s in splits) for v, _ in total.most_common()}
    return Table(title, splits, rows)

  def distinct(key: Callable[[Film], str]) -> tuple[str, ...]:
    return tuple(str(len(set(map(key, of[split])))) for split in splits)

  def number(test: Callable[[Film], object]) -> tuple[str, ...]:
    return tuple(str(sum(map(bool, map(test, of[split])))) for split in splits)

  overview = {
    "films": tuple(str(len(of[split])) for split in splits),
    "studies": distinct(lambda film: film.study_id),
    "patients": distinct(lambda film: film.patient_id),
    "with text": number(lambda film: film.text),
    "with regions": number(lambda film: film.regions),
  }
  labels = {
    split: Counter(label for film in of[split] for label in film.labels) for split in splits
  }
  names = sorted({name for counts in labels.values() for name, _ in counts})
  rows = {
    name: tuple(
      " / ".join(str(labels[split][name, value]) for value in (1, 0, -1)) for split in splits
    )
    for name in names
  }
  out = [
    Table("films", splits, overview),
    count("text kind", lambda film: [film.text_kind] if film.text else ["no text"]),
    count("view", lambda film: [film.view]),
    Table("labels: present / absent / uncertain", splits, rows),
    count("regions", lambda film: film.regions),
  ]
  return [table for table in out if table.rows]
