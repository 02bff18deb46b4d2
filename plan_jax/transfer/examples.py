"""Studies one after another, and in lists."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from input_pipeline.example import Example


def iter_of(source: Sequence[Example]) -> Iterator[Example]:
  """The studies of a source in order."""
  return (source[i] for i in range(len(source)))


def in_batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
  """Lists of `size` studies, the last shorter."""
  some: list[Example] = []
  for example in examples:
    some.append(example)
    if len(some) == size:
      yield some
      some = []
  if some:
    yield some


def regions_in(source: Sequence[Example], findings: Iterable[str]) -> set[str]:
  """Which of the findings the source has a region of."""
  return {r.label for example in iter_of(source) for r in example.regions} & set(findings)


@dataclass(frozen=True)
class Chosen:
  """Some studies of a source; `places` in it, in order."""

  source: Sequence[Example]
  places: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> Example:
    return self.source[self.places[i]]
