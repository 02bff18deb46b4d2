"""Studies one after another, and in lists."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from input_pipeline.study import Study


def iter_of(source: Sequence[Study]) -> Iterator[Study]:
  """The studies of a source in order."""
  return (source[i] for i in range(len(source)))


def in_batches(studies: Iterable[Study], size: int) -> Iterator[list[Study]]:
  """Lists of `size` studies, the last shorter."""
  some: list[Study] = []
  for study in studies:
    some.append(study)
    if len(some) == size:
      yield some
      some = []
  if some:
    yield some


def regions_in(source: Sequence[Study], findings: Iterable[str]) -> set[str]:
  """Which of the findings the source has a region of."""
  return {r.label for study in iter_of(source) for r in study.regions} & set(findings)


@dataclass(frozen=True)
class Chosen:
  """Some studies of a source; `places` in it, in order."""

  source: Sequence[Study]
  places: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> Study:
    return self.source[self.places[i]]
