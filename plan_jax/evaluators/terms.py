"""Terms: does the significance of words tell those that name a visible finding from the rest?

Protocol "terms-v1":

- The unit is a word of a sentence of a report; every occurrence counts. The kind of each word is
  given with the data: "finding" for words that name a finding the image shows or may show,
  "attribute" for those that say where it lies or how large it is, "other" for all the rest. The
  phantom knows it of every word; elsewhere it is RadGraph's entities (Jain et al. 2021): words of
  an observation that is present or uncertain are findings, words of anatomy attributes, and all
  others, denied observations too, the rest. Reports without entities are left out.
- The score of a word is its significance in its sentence, read alone.
- A sentence of which the model does not return every word (its limits on tokens or words cut it) is
  left out whole, and counted.
- AUC is the probability that a word of one side has the higher significance, ties counted half (see
  `auc`): finding against rest (attribute and other), finding against other (attributes left out),
  finding or attribute against other. Mean significance is the plain mean over the words of a kind.
- Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients.
- Floors, without intervals: `chance`, an AUC of .5, and `term_list`, the list of diagnostic terms
  (with its rules of denial) as a significance of 0 or 1. A model taught by that list can only
  reproduce it here; what it gains is to know without the list. Mean significances have no floor.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from input_pipeline.example import Example
from input_pipeline.text import reports
from plan_jax.metrics import auc, bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "terms-v1"
METRICS = ("significance", "listed")
KINDS = ("finding", "attribute", "other")
# AUC -> the kinds that should score high, and those that should score low.
CONTRASTS = {
  "AUC finding against rest": (("finding",), ("attribute", "other")),
  "AUC finding against other": (("finding",), ("other",)),
  "AUC finding or attribute against other": (("finding", "attribute"), ("other",)),
}
_ENTITIES = {"finding": ("OBS-DP", "OBS-U"), "attribute": ("ANAT-DP",)}


class Reader(Protocol):
  """What terms needs of a model."""

  def significances(self, texts: list[tuple[str, ...]]) -> list[list[tuple[str, float]]]:
    """The words of each text, a tuple of sentences, in order, with their significance."""


def entity_kinds(example: Example, number: int) -> list[str]:
  """The kind of each word of a sentence by the study's entities, whose labels are RadGraph's."""
  spans = {
    kind: [
      (entity.start, entity.end)
      for entity in example.entities
      if entity.sentence == number and entity.label in labels
    ]
    for kind, labels in _ENTITIES.items()
  }
  return [
    next(
      (kind for kind, found in spans.items() if any(a < end and start < b for a, b in found)),
      "other",
    )
    for start, end in reports.words(example.sentences[number])
  ]


def score_terms(
  reader: Reader,
  examples: Iterable[Example],
  kinds: Callable[[Example, int], list[str]],
  listed: Callable[[str], list[bool]],
  *,
  batch: int = 64,
) -> ExampleScores | None:
  """The words of the reports, grouped by kind, with `METRICS`; None where no sentence is left.

  Args:
    reader: the model.
    studies: the reports.
    kinds: (study, number of a sentence) -> one of `KINDS` for each of its words.
    listed: sentence -> whether the list of terms names each of its words.
    batch: how many sentences the reader is given at a time.

  How many sentences were left out is said.

  Raises:
    ValueError: `kinds` gives something else than `KINDS`, or a significance is no number.
  """
  said = [
    (example, number, sentence, kinds(example, number))
    for example in examples
    for number, sentence in enumerate(example.sentences)
  ]
  # A sentence read alone says the same in every report: it is read once.
  read: dict[str, list[float]] = {}
  distinct = list(dict.fromkeys(sentence for _, _, sentence, _ in said))
  for start in range(0, len(distinct), batch):
    some = distinct[start : start + batch]
    found = reader.significances([(sentence,) for sentence in some])
    for sentence, words in zip(some, found, strict=True):
      read[sentence] = [figure for _, figure in words]

  cut = 0
  ids, kind_of, patients, values = [], [], [], []
  for example, number, sentence, some in said:
    if unknown := set(some) - set(KINDS):
      raise ValueError(f"{sentence!r} has words of kind {', '.join(sorted(unknown))}")
    if len(some) != len(read[sentence]):
      cut += 1
      continue
    ids += [example_id(example.image_id, f"{number}.{word}") for word in range(len(some))]
    kind_of += some
    patients += [example.patient_id] * len(some)
    values += zip(read[sentence], listed(sentence), strict=True)
  if cut:
    log.info(
      f"terms: {cut} of {len(said)} sentences came back without all their words and are left out"
    )
  return (
    ExampleScores(ids, kind_of, patients, METRICS, np.array(values, np.float64)) if ids else None
  )


def contrasts(units: ExampleScores) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[str]]]:
  """AUC of `CONTRASTS`, the places of its units, which are to score high, and their patients."""
  kinds, patients = np.array(units.groups), np.array(units.patients)
  for metric, (high, low) in CONTRASTS.items():
    places = np.flatnonzero(np.isin(kinds, high + low))
    yield metric, places, np.isin(kinds[places], high), patients[places].tolist()


def terms_rows(
  found: ExampleScores | None, *, data: str, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> list[Row]:
  """Rows of `score_terms`, of group "all", by metric and model; none of none.

  An AUC of which one side has no words is NaN.
  """
  if found is None:
    return []
  draws = {"resamples": resamples, "seed": seed}
  figures, on_list = found.values.T
  rows = []
  for metric, places, high, patients in contrasts(found):
    s, floor = (
      auc.grouped(scores[places], high, ["all"] * len(places), patients, **draws)[bootstrap.MACRO]
      for scores in (figures, on_list)  # of one group; it is there without words, too
    )
    head = ("terms", PROTOCOL, data, "all", metric)
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
    rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
    rows.append(Row(*head, "term_list", floor.value, np.nan, np.nan, s.n))
  each = np.where(np.array(found.groups)[:, None] == np.array(KINDS), figures[:, None], np.nan)
  means = bootstrap.grouped_means(each, ["all"] * len(each), found.patients, **draws)["all"]
  for kind, s in zip(KINDS, means, strict=True):
    head = ("terms", PROTOCOL, data, "all", f"mean significance {kind}")
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
  return rows
