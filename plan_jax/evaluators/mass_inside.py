"""Mass inside: how much of the map of a phrase lies in its true region?

All of a map counts and its extent does not, so it can also be read where regions are wider than
findings, as a lung or a third of it.

Protocol "mass-inside-v1":

- Phrases, regions and maps are those of "grounding-v1", the maps from the words.
- "mass inside" is the sum of the map over the region as a share of its sum over the image. Pixels
  that the model did not see hold none, and a map of zeros scores 0.
- A finding scores the mean of its examples, `macro` the plain mean of the findings. Intervals are
  95 % percentile intervals of 1,000 bootstrap draws of patients.
- Chance baseline `chance`: a flat map, so the region's share of the image.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import mass_inside
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row

PROTOCOL, _TASK = "mass-inside-v1", "mass-inside"
METRICS = ("mass inside",)

Scores = dict[str, ExampleScores]  # by model: "run" and "chance"


def score_mass_inside(model: Predictor, examples: Iterable[Example], *, batch: int = 64) -> Scores:
  """Scores every phrase; empty where there is none. Raises UserError as `phrase_batches`."""
  who, values = [], []
  for images, phrases in phrase_batches(examples, batch):
    maps = model.maps(images, [phrase.text for phrase in phrases], "words")
    for phrase, heatmap in zip(phrases, maps, strict=True):
      values.append([mass_inside(heatmap, phrase.mask), phrase.mask.mean()])
    who += [phrase.who for phrase in phrases]
  if not who:
    return {}
  ids, labels, patients = map(list, zip(*who, strict=True))
  columns = np.array(values, np.float64).T[..., None]
  return {
    name: ExampleScores(ids, labels, patients, METRICS, column)
    for name, column in zip((RUN, "chance"), columns, strict=True)
  }


def mass_inside_rows(scores: Scores, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by group ("macro" first) and model; none of no scores."""
  means = {
    name: bootstrap.grouped_means(each.values, each.groups, each.patients, **draws)
    for name, each in scores.items()
  }
  return [
    Row(_TASK, PROTOCOL, data, group, *METRICS, name, s.value, s.low, s.high, s.n)
    for group in means.get(RUN, ())
    for name, by_group in means.items()
    for s in by_group[group]
  ]


@dataclass(frozen=True, kw_only=True)
class MassInside(Evaluator):
  """Evaluator of "mass-inside-v1"."""

  needs = "regions"
  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(mass_inside_rows)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Scores:
    """Scores every phrase."""
    return score_mass_inside(model, dataset.examples("regions", "mass inside"))

  def example_scores(self, scores: Scores) -> dict[str, ExampleScores]:
    """Picks the scores of the run and of chance."""
    return {f"{_TASK}@{name}" if name != RUN else _TASK: each for name, each in scores.items()}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores:
    """Takes the names back."""
    return {name.partition("@")[2] or RUN: each for name, each in kept.items()}
