"""Examples to learn from and to score on: shares of the training patients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from input_pipeline import records
from input_pipeline.conversion.selection_builders import subset
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.transfer.settings import Settings


def iterate(source: Sequence[Example]) -> Iterator[Example]:
  """Yields the examples of a source in order."""
  return (source[i] for i in range(len(source)))


def regions_in(source: Sequence[Example], findings: Iterable[str]) -> set[str]:
  """Returns those of the findings that the source has a region of."""
  return {r.label for example in iterate(source) for r in example.regions} & set(findings)


@dataclass(frozen=True)
class Subset:
  """Examples of a source at the given `places`, in order."""

  source: Sequence[Example]
  places: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> Example:
    return self.source[self.places[i]]


@dataclass(frozen=True)
class TrainingShare:
  """The training examples of a share of the patients; a smaller share lies within a larger one.

  Attributes:
    source: of the whole training split.
    findings: to learn.
    places: of the share's examples in the source.
    facts: one of every example of the source.
    patients: how many the share has.
  """

  source: Sequence[Example]
  findings: tuple[str, ...]
  places: tuple[int, ...]
  facts: list
  patients: int


def training_share(
  settings: Settings,
  fact: Callable[[Example], Any],
  available: Callable[[list], set[str]],
  what: str,
) -> TrainingShare:
  """Goes through the training split, chooses the findings and draws the patients; shows a bar.

  Args:
    settings: their records, findings (none: all that can be learned), fraction and seed.
    fact: of an example, what the task needs to know of it before its pixels are decoded.
    available: the findings that can be learned, by the facts of all examples.
    what: a training split has of a finding that can be learned.

  Raises UserError where a finding cannot be learned.
  """
  source = records.RecordSource(settings.records, "train")
  bar = tqdm(iterate(source), total=len(source), desc=what, unit="image", mininterval=1)
  patients, facts = zip(*((example.patient_id, fact(example)) for example in bar), strict=True)
  known = sorted(available(facts))
  if missing := sorted(set(settings.findings) - set(known)):
    raise UserError(
      f"--findings: the training split of {settings.records} has no {what} of"
      f" {', '.join(missing)} (it has {', '.join(known) or 'none'})"
    )
  kept = subset(patients, settings.fraction, settings.seed)
  places = tuple(i for i, patient in enumerate(patients) if patient in kept)
  findings = settings.findings or tuple(known)
  return TrainingShare(source, findings, places, facts, len(kept))
