"""Phrases of images with their true masks: the examples of phrase grounding."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.example import Example, Region
from input_pipeline.images import EncodedImage, model_input
from input_pipeline.regions import region_mask
from input_pipeline.text import reports
from plan_jax.results.example_scores import example_id
from plan_jax.runtime.logging import log


@dataclass(frozen=True)
class Phrase:
  """A phrase of an image."""

  example: Example
  text: str  # as the first of its regions has it
  label: str  # the finding of that region
  regions: tuple[Region, ...]  # those whose phrases agree after normalisation
  mask: np.ndarray  # bool [H, W], their union at the stored resolution

  @property
  def id(self) -> str:
    """Names the phrase in per-example scores."""
    return example_id(self.example.image_id, self.text)

  @property
  def who(self) -> tuple[str, str, str]:
    """Id, finding and patient: what scores keep, for the image and the mask are large."""
    return self.id, self.label, self.example.patient_id


def phrases(example: Example) -> list[Phrase]:
  """Groups the regions of an example by phrase, in their order; phrases without a word are none.

  Raises UserError, naming the image, where a mask is unreadable or not of its size.
  """
  groups: dict[str, list[Region]] = {}
  for region in example.regions:
    if words := reports.normalise(region.phrase):
      groups.setdefault(words, []).append(region)
  return [
    Phrase(
      example,
      regions[0].phrase,
      regions[0].label,
      tuple(regions),
      np.logical_or.reduce([region_mask(region, example) for region in regions]),
    )
    for regions in groups.values()
  ]


def each_phrases(examples: Iterable[Example], what: str) -> Iterator[tuple[Example, list[Phrase]]]:
  """Yields every example and its phrases; logs at the end, after `what`, how many were left out.

  Those are the regions that have a phrase without a word. Raises as `phrases`.
  """
  wordless = 0
  for example in examples:
    kept = phrases(example)
    wordless += len(example.regions) - sum(len(phrase.regions) for phrase in kept)
    yield example, kept
  if wordless:
    log.info(f"{what}: {wordless} regions have a phrase without a word; left out")


def phrase_batches(
  examples: Iterable[Example],
  batch: int = 64,
  keep: Callable[[Phrase], bool] = lambda phrase: True,
) -> Iterator[tuple[list[np.ndarray | EncodedImage], list[Phrase]]]:
  """Yields at most `batch` phrases at a time, and the image of each, as `model_input` has it.

  Phrases that `keep` refuses are left out, and images without others not read. Raises UserError,
  naming it, where an image is unreadable or not as its example says.
  """
  decoded: list[np.ndarray | EncodedImage] = []
  waiting: list[Phrase] = []
  for example, kept in each_phrases(examples, "phrases"):
    kept = [phrase for phrase in kept if keep(phrase)]
    if not kept:
      continue
    image = model_input(example)
    if image.shape != (example.height, example.width):
      raise UserError(
        f"{example.image_id} is {image.shape[1]} x {image.shape[0]},"
        f" its record says {example.width} x {example.height}"
      )
    for phrase in kept:
      decoded.append(image)
      waiting.append(phrase)
      if len(waiting) == batch:
        yield decoded, waiting
        decoded, waiting = [], []
  if waiting:
    yield decoded, waiting


@dataclass
class CroppedCounts:
  """Counts of phrases whose true region lies outside of what a model saw."""

  phrases: int = 0
  partly: int = 0
  wholly: int = 0

  def add(self, cropped: np.ndarray | None, mask: np.ndarray) -> None:
    """Counts a phrase with a mask [H, W] bool; `cropped` alike, None where all was seen."""
    self.phrases += 1
    if cropped is not None and mask.any():
      outside = cropped[mask]
      self.wholly += int(outside.all())
      self.partly += int(outside.any() and not outside.all())

  def log(self, what: str, rule: str) -> None:
    """Logs how many there were, if any."""
    if self.partly or self.wholly:
      log.info(
        f"{what}: of {self.phrases} phrases, {self.partly} have a region partly and {self.wholly}"
        f" wholly outside of what the model saw; {rule}"
      )
