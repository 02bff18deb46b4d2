"""Terms: does the significance of words tell those that name a visible finding from the rest?

Protocol "terms-v1":

- The unit is a word of a sentence of a report; every occurrence counts. The kind of each word is
  given with the data: "finding" for words that name a finding the film shows or may show,
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

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from input_pipeline import reports
from input_pipeline.study import Study
from plan_jax.evaluators import auc, bootstrap
from plan_jax.evaluators.results import RUN, Row
from plan_jax.reporting import say

PROTOCOL = "terms-v1"
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


def entity_kinds(study: Study, number: int) -> list[str]:
  """The kind of each word of a sentence by the study's entities, whose labels are RadGraph's."""
  spans = {
    kind: [
      (entity.start, entity.end)
      for entity in study.entities
      if entity.sentence == number and entity.label in labels
    ]
    for kind, labels in _ENTITIES.items()
  }
  return [
    next(
      (kind for kind, found in spans.items() if any(a < end and start < b for a, b in found)),
      "other",
    )
    for start, end in reports.words(study.sentences[number])
  ]


def evaluate_terms(
  reader: Reader,
  studies: Iterable[Study],
  kinds: Callable[[Study, int], list[str]],
  listed: Callable[[str], list[bool]],
  *,
  data: str,
  batch: int = 64,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model under protocol "terms-v1" (see the top of this file).

  Args:
    reader: the model.
    studies: the reports.
    kinds: (study, number of a sentence) -> one of `KINDS` for each of its words.
    listed: sentence -> whether the list of terms names each of its words.
    data: name of data set and split, for the rows.
    batch: how many sentences the reader is given at a time.
    resamples: bootstrap draws.
    seed: of the draws.

  Returns:
    Rows of group "all" by metric and model; none where no sentence is left. An AUC of which one
    side has no words is NaN. How many sentences were left out is said.

  Raises:
    ValueError: `kinds` gives something else than `KINDS`, or a significance is no number.
  """
  said = [
    (study.patient_id, sentence, kinds(study, number))
    for study in studies
    for number, sentence in enumerate(study.sentences)
  ]
  # A sentence read alone says the same in every report: it is read once.
  read: dict[str, list[float]] = {}
  distinct = list(dict.fromkeys(sentence for _, sentence, _ in said))
  for start in range(0, len(distinct), batch):
    some = distinct[start : start + batch]
    found = reader.significances([(sentence,) for sentence in some])
    for sentence, words in zip(some, found, strict=True):
      read[sentence] = [figure for _, figure in words]

  cut = 0
  figures, on_list, kind_of, patients = [], [], [], []
  for patient, sentence, some in said:
    if unknown := set(some) - set(KINDS):
      raise ValueError(f"{sentence!r} has words of kind {', '.join(sorted(unknown))}")
    if len(some) != len(read[sentence]):
      cut += 1
      continue
    figures += read[sentence]
    on_list += listed(sentence)
    kind_of += some
    patients += [patient] * len(some)
  if cut:
    say(f"terms: {cut} of {len(said)} sentences came back without all their words and are left out")
  if not figures:
    return []
  return _rows(
    np.array(figures),
    np.array(on_list, float),
    np.array(kind_of),
    np.array(patients),
    data,
    resamples=resamples,
    seed=seed,
  )


def _rows(
  figures: np.ndarray,
  on_list: np.ndarray,
  kinds: np.ndarray,
  patients: np.ndarray,
  data: str,
  *,
  resamples: int,
  seed: int,
) -> list[Row]:
  draws = {"resamples": resamples, "seed": seed}
  rows = []
  for metric, (high, low) in CONTRASTS.items():
    chosen = np.isin(kinds, high + low)
    s, floor = (
      auc.grouped(
        scores[chosen],
        np.isin(kinds[chosen], high),
        ["all"] * chosen.sum(),
        patients[chosen].tolist(),
        **draws,
      )[bootstrap.MACRO]  # of one group; it is there without words, too
      for scores in (figures, on_list)
    )
    head = ("terms", PROTOCOL, data, "all", metric)
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
    rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
    rows.append(Row(*head, "term_list", floor.value, np.nan, np.nan, s.n))
  each = np.where(kinds[:, None] == np.array(KINDS), figures[:, None], np.nan)
  means = bootstrap.grouped_means(each, ["all"] * len(each), patients.tolist(), **draws)["all"]
  for kind, s in zip(KINDS, means, strict=True):
    head = ("terms", PROTOCOL, data, "all", f"mean significance {kind}")
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
  return rows
