"""Terms: the significance of words that name a visible finding, against that of the rest.

Protocol "terms-v1":

- An example is a word of a sentence of a report; every occurrence counts. The kind of each word is
  given with the data: "finding" for words that name a finding the image shows or may show,
  "attribute" for those that say where it lies or how large it is, "other" for all the rest. A
  synthetic data set knows it of every word; elsewhere it is RadGraph's entities (Jain et al. 2021):
  words of an observation that is present or uncertain are findings, words of anatomy attributes,
  and all others, denied observations too, the rest. Reports without entities are left out.
- The score of a word is its significance in its sentence, read alone.
- A sentence of which the model does not return every word (its limits on tokens or words cut it) is
  left out whole, and counted.
- AUC is the probability that a word of one side has the higher significance, ties counted half (see
  `auc`): finding against rest (attribute and other), finding against other (attributes left out),
  finding or attribute against other. Mean significance is the plain mean over the words of a kind.
- Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients.
- Chance baselines, without intervals: `chance`, an AUC of .5, and `term_list`, the list of
  diagnostic terms (with its rules of denial) as a significance of 0 or 1. A model taught by that
  list can only reproduce it here; what it gains is to know without the list. Mean significances
  have none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from input_pipeline.readers.by_name import FACTS
from input_pipeline.text import reports
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import auc, bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.results.word_contrasts import KINDS, METRICS, contrasts
from plan_jax.runtime.logging import log

PROTOCOL = "terms-v1"
_ENTITIES = {"finding": ("OBS-DP", "OBS-U"), "attribute": ("ANAT-DP",)}

WordKinds = Callable[[Example, int], list[str]]  # of a sentence, by its number


def _annotated(dataset: EvaluationSet) -> int:
  """Counts the reports that have entities, and logs how many have none."""
  has_entities = [bool(example.entities) for example in dataset.examples("text", "entities")]
  count, total = sum(has_entities), len(has_entities)
  log.info(f"terms: {total - count} of {total} reports have no entities and are left out")
  return count


def entity_kinds(example: Example, number: int) -> list[str]:
  """Finds the kind of each word of a sentence by the example's entities, labelled as RadGraph's."""
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
      (kind for kind, ends in spans.items() if any(a < end and start < b for a, b in ends)),
      "other",
    )
    for start, end in reports.words(example.sentences[number])
  ]


def score_terms(
  model: Predictor,
  examples: Iterable[Example],
  kinds: WordKinds,
  listed: Callable[[str], list[bool]],
  *,
  batch: int = 64,
) -> ExampleScores | None:
  """Scores the words of the reports, grouped by kind; None where no sentence is left.

  `kinds` gives one of `KINDS` for each word of a sentence, and `listed` tells of each whether the
  list of terms names it. How many sentences were left out is logged. Raises ValueError where
  `kinds` gives something else than `KINDS`, or a significance is no number.
  """
  sentences = [  # without their images
    (example.image_id, example.patient_id, number, sentence, kinds(example, number))
    for example in examples
    for number, sentence in enumerate(example.sentences)
  ]
  # A sentence read alone has the same words in every report: it is read once.
  significances: dict[str, list[float]] = {}
  distinct = list(dict.fromkeys(sentence for *_, sentence, _ in sentences))
  for start in range(0, len(distinct), batch):
    part = distinct[start : start + batch]
    texts = model.significances([(sentence,) for sentence in part])
    for sentence, words in zip(part, texts, strict=True):
      significances[sentence] = [significance for _, significance in words]

  cut = 0
  ids, groups, patients, values = [], [], [], []
  for image_id, patient_id, number, sentence, word_kinds in sentences:
    if unknown := set(word_kinds) - set(KINDS):
      raise ValueError(f"{sentence!r} has words of kind {', '.join(sorted(unknown))}")
    if len(word_kinds) != len(significances[sentence]):
      cut += 1
      continue
    ids += [example_id(image_id, f"{number}.{word}") for word in range(len(word_kinds))]
    groups += word_kinds
    patients += [patient_id] * len(word_kinds)
    values += zip(significances[sentence], listed(sentence), strict=True)
  if cut:
    log.info(
      f"terms: {cut} of {len(sentences)} sentences came back without all their words and are left"
      " out"
    )
  if not ids:
    return None
  return ExampleScores(ids, groups, patients, METRICS, np.array(values, np.float64))


def terms_rows(scores: ExampleScores | None, *, data: str, **draws: int) -> list[Row]:
  """Makes rows, of group "all", by metric and model; none of none.

  An AUC of which one side has no words is NaN.
  """
  if scores is None:
    return []
  significance, on_list = scores.values.T
  rows = []
  for metric, places, high, patients in contrasts(scores):
    s, term_list = (
      auc.grouped(column[places], high, ["all"] * len(places), patients, **draws)[bootstrap.MACRO]
      for column in (significance, on_list)  # of one group; it exists without words, too
    )
    head = ("terms", PROTOCOL, data, "all", metric)
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
    rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
    rows.append(Row(*head, "term_list", term_list.value, np.nan, np.nan, s.n))
  kinds = np.array(scores.groups)[:, None]
  each = np.where(kinds == np.array(KINDS), significance[:, None], np.nan)
  means = bootstrap.grouped_means(each, ["all"] * len(each), scores.patients, **draws)["all"]
  for kind, s in zip(KINDS, means, strict=True):
    head = ("terms", PROTOCOL, data, "all", f"mean significance {kind}")
    rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
  return rows


@dataclass(frozen=True, kw_only=True)
class Terms(Evaluator):
  """Evaluator of "terms-v1"; `listed` tells which words of a sentence the term list names."""

  needs = "text"
  listed: Callable[[str], list[bool]]
  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(terms_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> ExampleScores | None:
    """Scores every word whose kind is known; None without such, or without significances."""
    of_sentence = FACTS[dataset.dataset].word_kinds
    if not of_sentence and not _annotated(dataset):
      return None
    if not model.has_significance:
      log.info("terms are left out: this model gives its words no weight")
      return None
    examples = dataset.examples("text", "terms")
    if of_sentence:
      return score_terms(
        model, examples, lambda example, i: of_sentence(example.sentences[i]), self.listed
      )
    with_entities = (example for example in examples if example.entities)
    return score_terms(model, with_entities, entity_kinds, self.listed)

  def example_scores(self, scores: ExampleScores | None) -> dict[str, ExampleScores]:
    """Picks the words."""
    return {"terms": scores} if scores else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> ExampleScores | None:
    """Takes the words back."""
    return kept.get("terms")
