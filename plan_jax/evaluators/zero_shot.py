"""Zero-shot classification: similarity of an image to prompts of a finding's presence and absence.

Protocol "zero-shot-v1" (task "zero-shot-SET", for each set of prompts):

- An example is an image and a finding labelled 1 (present) or 0 (absent) in it. Uncertain pairs
  (-1) are left out, as are images without a label of 1 or 0, findings that all images have or none
  has, and findings that have no prompts; all are counted and logged.
- Image and prompts are compared by the cosine of their global embeddings. "ensemble" of a set makes
  one similarity of several prompts: "embeddings" (the mean of the prompts' embeddings, brought to
  unit norm; BioViL's mean is of the embeddings before their own norm, as in its code: 1e-4),
  "similarities" (their mean) or "highest". With negative prompts the score is
  exp(s+) / (exp(s+) + exp(s-)), without a temperature (Tiu et al., "Expert-level detection of
  pathologies from unannotated chest X-ray images via self-supervised learning", Nature Biomedical
  Engineering 2022); without, it is s+ alone, or a probability that the model was trained to tell by
  it (SigLIP's sigmoid(scale s+ + bias)), which ranks images alike. A model that scores a pair of
  image and prompt otherwise (`ModelSpec.pair_scores`) has that score in the place of the cosine,
  and for "embeddings", which it does not compare, the mean of the scores.
- AUC (see `auc`) and average precision (see `classification`) need no threshold. F1, accuracy, MCC,
  sensitivity and specificity take an image as positive where its score reaches the threshold, that
  of the highest F1 on the validation split (row "threshold"). A finding that is not both present
  and absent there has none of them, and is named. Where the set has no validation split, or is
  itself one, the threshold is .5 of a score from both kinds of prompts, and the metrics are called
  "F1 at .5" and so on; scores of positive prompts alone then have no threshold. A threshold stays
  as it is in the draws of the bootstrap.
- A finding scores by its own examples, `macro` is the plain mean of the findings. "view PA" and so
  on is the macro AUC among the images of that view, where at least two views have 50 images; over
  the findings that are present and absent in each of these views, so that views can be compared.
- Where single radiologists have read the images too, there are rows of each (`radiologists`).
- Chance baselines: `chance` (AUC .5, average precision the share of positives, MCC 0), `constant`
  (the same answer for all images: F1 of "present", accuracy of the commoner answer).

Protocol "zero-shot-classes-v1" (task "zero-shot-classes-SET"): images with one finding, as in
"class-retrieval-v1" (`class_retrieval.single_finding`; classes of one image, and those without
prompts, are left out and counted), so the whole of a CheXpert-5x200 selection. An image is given
the class whose positive prompts are most similar; classes within 1e-6 share it. Accuracy ("all"),
the F1 of each class and their mean. Chance baselines: `chance` (accuracy 1 / classes) and
`constant` (every image is of the commonest class).

With `config.evaluation.compatibility` also two published ways:

- "compat-test-threshold-v2": as "zero-shot-v1", but the threshold is the score, of several the
  least, of the highest F1 on the scored images themselves: metrics are too high by what that gains.
  Accuracy alone takes images above it as positive, not the one at it (as MedKLIP's code does, which
  has F1 and accuracy only).
- "compat-gloria": as "zero-shot-classes-v1", but of five prompts a class, drawn with seed 6, the
  most similar counts, and a class's similarities are brought to mean 0 and deviation 1 over all
  images. The similarity is the mean of the cosine and the model's own local similarity, without the
  temperature of its loss (GLoRIA's code; its prompts are its own). The images are decoded again
  for it, some at a time. A model without a local similarity has "compat-gloria-global", by the
  cosine alone.

Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import terminal
from input_pipeline.example import Example
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.classification import (
  example_places,
  finding_rows,
  finding_scores,
  view_rows,
)
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.labelled_images import Images
from plan_jax.evaluators.radiologists import radiologist_rows, readings
from plan_jax.evaluators.zero_shot_classes import (
  Classes,
  class_names,
  class_rows,
  class_scores,
)
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.prompts import PairVectors, PromptSet, embed, presence_scores
from plan_jax.metrics import classification
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL, CLASSES_PROTOCOL = "zero-shot-v1", "zero-shot-classes-v1"
TEST_THRESHOLD, GLORIA = "compat-test-threshold-v2", "compat-gloria"
PROTOCOLS = (PROTOCOL, CLASSES_PROTOCOL, TEST_THRESHOLD, GLORIA)


@dataclass(frozen=True)
class Scores:
  """Scores of the images of one set by one set of prompts."""

  prompts: PromptSet
  example_scores: ExampleScores | None  # of `finding_scores`
  views: list[str]  # [U], of the examples
  thresholds: dict[str, tuple[float, int]] | None  # by finding, with the images behind it
  classes: Classes | None  # of the images with one finding, or None
  readings: ExampleScores | None = None  # of `radiologists.readings`, or None


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluator):
  """Evaluator of all these protocols, with each set of prompts."""

  takes_labelled = True
  protocols: tuple[str, ...] = PROTOCOLS
  prompts: tuple[PromptSet, ...] = ()

  def applies(self, dataset: EvaluationSet) -> bool:
    """Tells whether there are prompts; any data set may have labels."""
    return bool(self.prompts)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> list[Scores]:
    """Scores the images by every set of prompts; thresholds are of validation images."""
    if model.has_pair_scores:
      return self._score_pairs(model, dataset, embeddings)
    images = embeddings.labelled
    if images is None:
      return []

    def examples() -> Iterable[Example]:
      return dataset.examples(what="zero-shot, local similarity")

    local = examples if GLORIA in self.protocols else None
    validation = embeddings.validation
    options = {"local_examples": local, "radiologists": dataset.radiologists}
    return [
      score_zero_shot(model, images, prompts, validation, **options) for prompts in self.prompts
    ]

  def _score_pairs(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> list[Scores]:
    """Scores the images by a model that scores pairs, once for all sets of prompts."""
    labels = embeddings.labels()
    known = [each for prompts in self.prompts for each in map(prompts.prompts, labels) if each]
    if not known:
      log.info("zero-shot is left out: no set of prompts has any for a label of the images")
      return []
    vectors = PairVectors(model, [text for each in known for side in each for text in side])
    images, validation = embeddings.labelled_by(vectors)
    if images is None:
      return []
    return [
      score_zero_shot(
        vectors, images, prompts.of_pairs(), validation, radiologists=dataset.radiologists
      )
      for prompts in self.prompts
    ]

  def rows(self, scores: list[Scores], **common) -> list[Row]:
    """Makes the rows of every set of prompts."""
    return [row for each in scores for row in zero_shot_rows(each, self.protocols, **common)]

  def example_scores(self, scores: list[Scores]) -> dict[str, ExampleScores]:
    """Picks the scores of findings and of classes, and the similarities behind these."""
    kept = {}
    for each in scores:
      if each.example_scores and {PROTOCOL, TEST_THRESHOLD} & {*self.protocols}:
        kept[f"zero-shot-{each.prompts.name}"] = each.example_scores
      if each.readings and PROTOCOL in self.protocols:
        kept[f"zero-shot-{each.prompts.name}@radiologists"] = each.readings
      task = f"zero-shot-classes-{each.prompts.name}"
      if each.classes and CLASSES_PROTOCOL in self.protocols:
        kept[task] = each.classes.example_scores()
      if each.classes and {CLASSES_PROTOCOL, GLORIA} & {*self.protocols}:
        kept |= {f"{task}@{part}": of_part for part, of_part in each.classes.parts().items()}
    return kept

  def facts(self, scores: list[Scores]) -> dict[str, dict]:
    """Collects prompts, thresholds and views, by the name of the prompts."""
    return {each.prompts.name: _facts(each) for each in scores}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> list[Scores]:
    """Makes the scores by every set of prompts again."""
    return [_restored(name, kept, each) for name, each in facts.items()]


def _facts(scores: Scores) -> dict[str, Any]:
  """Collects, as JSON, what a row needs beside the scores of examples."""
  examples = scores.example_scores
  names = [name.partition("\t")[0] for name in examples.ids] if examples else []
  return {
    "prompts": asdict(scores.prompts),
    "views": dict(zip(names, scores.views, strict=True)),
    "thresholds": scores.thresholds,
    "has_local": bool(scores.classes and scores.classes.has_local),
  }


def _restored(name: str, kept: dict[str, ExampleScores], facts: dict[str, Any]) -> Scores:
  """Makes the scores by one set of prompts of what `_facts` gave."""
  examples, task = kept.get(f"zero-shot-{name}"), f"zero-shot-classes-{name}@"
  views = [facts["views"][each.partition("\t")[0]] for each in examples.ids] if examples else []
  thresholds = facts["thresholds"]
  if thresholds is not None:
    thresholds = {finding: (value, images) for finding, (value, images) in thresholds.items()}
  parts = {key.removeprefix(task): each for key, each in kept.items() if key.startswith(task)}
  classes = Classes.of_parts(parts, facts["has_local"]) if parts else None
  chosen, read = PromptSet.of_json(facts["prompts"]), kept.get(f"zero-shot-{name}@radiologists")
  return Scores(chosen, examples, views, thresholds, classes, read)


def score_zero_shot(
  model: Predictor,
  images: Images,
  prompts: PromptSet,
  validation: Images | None = None,
  *,
  local_examples: Callable[[], Iterable[Example]] | None = None,
  radiologists: Path | None = None,
  notify: Callable[[str], None] = log.info,
) -> Scores:
  """Scores the images by a set of prompts.

  Args:
    model: that embedded the images; each prompt is embedded once.
    images, prompts: to compare.
    validation: images to choose thresholds on, of other patients; None for .5.
    local_examples: gives the examples of the images once more, for local similarities; None does
      without these.
    radiologists: folder of the tables of who read the images too; None without.
    notify: takes what is left out.

  Raises:
    ValueError: an embedding is NaN.
  """
  findings, classes = images.findings()[0], class_names(images)
  texts = {name: prompts.prompts(name) for name in sorted({*findings, *classes})}
  if silent := [name for name, each in texts.items() if each is None]:
    notify(f"zero-shot, prompts {prompts.name}: no prompts for {terminal.join(silent)}; left out")
  texts = {name: each for name, each in texts.items() if each}
  embeddings = embed(model, [t for each in texts.values() for side in each for t in side])
  findings = [name for name in findings if name in texts]
  columns = {
    f: presence_scores(model, images.embeddings, texts[f], embeddings, prompts.ensemble)
    for f in findings
  }
  scores, views = finding_scores(columns, images)
  thresholds = None
  if validation is not None:
    binary, thresholds = validation.findings()[0], {}
    known = [name for name in findings if name in binary]
    for name in known:
      places, present = validation.labelled(name)
      embedded = validation.embeddings
      column = presence_scores(model, embedded, texts[name], embeddings, prompts.ensemble)
      thresholds[name] = classification.best_threshold(column[places], present), len(places)
    if without := [name for name in findings if name not in known]:
      notify(
        f"zero-shot, prompts {prompts.name}: not both present and absent in the validation split,"
        f" so without a threshold: {terminal.join(without)}"
      )
  names = [name for name in classes if name in texts]
  single = None
  if len(names) > 1:
    positive = {name: texts[name].positive for name in names}
    single = class_scores(model, images, positive, embeddings, prompts.ensemble, local_examples)
    if left := len(images.ids) - len(single.ids):
      notify(
        f"zero-shot classes, prompts {prompts.name}: {left} of {len(images.ids)} images have no"
        " single finding with prompts and a second image, and are left out"
      )
  read = readings(scores, images, radiologists) if scores and radiologists else None
  return Scores(prompts, scores, views, thresholds, single, read)


def zero_shot_rows(
  scores: Scores,
  protocols: Sequence[str] = (PROTOCOL, CLASSES_PROTOCOL),
  *,
  data: str,
  **draws: int,
) -> list[Row]:
  """Makes the rows of the protocols."""
  rows = []

  def head(task: str, protocol: str) -> tuple[str, str, str]:
    return f"{task}-{scores.prompts.name}", f"{protocol}, prompts {fingerprint}", data

  fingerprint = scores.prompts.fingerprint
  if scores.example_scores is not None and PROTOCOL in protocols:
    rows += _finding_rows(head("zero-shot", PROTOCOL), scores, draws)
  if scores.example_scores is not None and TEST_THRESHOLD in protocols:
    score, present = scores.example_scores.values.T
    chosen = {
      name: classification.least_best_threshold(score[places], present[places] == 1)
      for name, places in example_places(scores.example_scores).items()
    }
    names = head("zero-shot", TEST_THRESHOLD)
    rows += finding_rows(names, scores.example_scores, chosen, draws, published=True)
  if scores.classes is not None and CLASSES_PROTOCOL in protocols:
    names = head("zero-shot-classes", CLASSES_PROTOCOL)
    rows += class_rows(names, scores.classes, scores.classes.similarities, draws)
  if scores.classes is not None and GLORIA in protocols:
    names = head("zero-shot-classes", GLORIA if scores.classes.has_local else f"{GLORIA}-global")
    rows += class_rows(names, scores.classes, scores.classes.as_gloria, draws)
  return rows


def _finding_rows(head: tuple[str, str, str], scores: Scores, draws: dict[str, int]) -> list[Row]:
  """Makes the rows of "zero-shot-v1"."""
  thresholds, suffix = {}, ""
  if scores.thresholds is not None:
    thresholds = {name: value for name, (value, _) in scores.thresholds.items()}
  elif scores.prompts.has_negatives:
    thresholds, suffix = dict.fromkeys(scores.example_scores.groups, 0.5), " at .5"
  rows = finding_rows(head, scores.example_scores, thresholds, draws, suffix=suffix)
  rows += radiologist_rows(
    head, scores.example_scores, scores.readings, thresholds, draws, suffix=suffix
  )
  rows += [
    Row(*head, name, "threshold", RUN, value, np.nan, np.nan, images)
    for name, (value, images) in (scores.thresholds or {}).items()
  ]
  return rows + view_rows(head, scores.example_scores, scores.views, draws)
