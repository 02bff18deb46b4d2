"""Image-text retrieval as published evaluators measure it, one emulated protocol each.

Both differ from "retrieval-v1" (see `retrieval`) in what a hit is: the query's own pair alone, so
that a report which says the same, or another image of the study, is a wrong answer.

- "compat-instance": the whole gallery, as most papers have it.
- "compat-limitr-v2" (LIMITR's code): the pairs are cut into galleries of 1,000 in their order; a
  last one that is not full counts too, and fewer pairs are one gallery. R@K is the mean over the
  queries (the logger of its test weights galleries by their pairs); MedR, the floor of the median
  of the ranks counted from 0, plus 1, is averaged alike. Rows name the size of the first gallery;
  `chance` takes each at its own.

Ties are shared as in "retrieval-v1", where those codes leave them to the sort. The baseline
`chance` is exact for R@K. Intervals: 1,000 bootstrap draws of patients; LIMITR's MedR has none.
"""

from dataclasses import dataclass

import numpy as np

from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import DIRECTIONS, Embeddings, Pairs
from plan_jax.evaluators.retrieval import AT, rank_metrics
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row

INSTANCE, LIMITR = "compat-instance", "compat-limitr-v2"
CHUNK = 1000


Scores = dict[str, ExampleScores]  # by protocol: `rank_metrics` of the pairs, grouped by gallery


@dataclass(frozen=True, kw_only=True)
class PublishedRetrieval(Evaluator):
  """Evaluator of the emulated protocols."""

  needs = "text"
  protocols: tuple[str, ...] = (INSTANCE, LIMITR)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Scores:
    """Ranks the pairs."""
    return score_compat(embeddings.pairs, self.protocols)

  def rows(self, scores: Scores, **common) -> list[Row]:
    """Makes the rows of both protocols."""
    return compat_rows(scores, **common)

  def example_scores(self, scores: Scores) -> dict[str, ExampleScores]:
    """Names the scores of each protocol."""
    return {f"retrieval@{protocol}": each for protocol, each in scores.items()}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores:
    """Takes the names back."""
    return {name.partition("@")[2]: each for name, each in kept.items()}


def score_compat(
  pairs: Pairs | None, protocols: tuple[str, ...] = (INSTANCE, LIMITR), *, chunk: int = CHUNK
) -> Scores:
  """Ranks the pairs by protocol, those of "compat-limitr-v2" in galleries of `chunk`."""
  if pairs is None:
    return {}
  n = len(pairs.ids)
  sizes = {INSTANCE: n, LIMITR: chunk}
  return {name: _ranked(pairs, size) for name, size in sizes.items() if name in protocols}


def _ranked(pairs: Pairs, size: int) -> ExampleScores:
  """Ranks each pair's own among the pairs of its gallery, which are `size`, but for the last."""
  n, parts, groups = len(pairs.ids), [], []
  for start in range(0, n, size):
    part = np.arange(start, min(start + size, n))
    both = pairs.ranks(part, np.arange(len(part)))
    values = {}
    for direction, ranks in zip(DIRECTIONS, both, strict=True):
      values |= rank_metrics(ranks, direction)
    parts.append(np.stack(list(values.values()), axis=1))
    groups += [f"gallery {start // size + 1}"] * len(part)
  ids = [example_id(image_id) for image_id in pairs.ids]
  return ExampleScores(ids, groups, pairs.patients, tuple(values), np.concatenate(parts))


def compat_rows(scores: Scores, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by protocol, direction and metric; none of nothing."""
  return [
    row
    for protocol, each in scores.items()
    for direction in DIRECTIONS
    for row in _rows(each, ("retrieval", protocol, data, "all"), direction, draws)
  ]


def _rows(
  scores: ExampleScores, head: tuple[str, str, str, str], direction: str, draws: dict[str, int]
) -> list[Row]:
  """Makes the rows of one protocol and direction over its galleries, which follow each other."""
  names = dict(zip(scores.metrics, scores.values.T, strict=True))
  sizes = [scores.groups.count(name) for name in dict.fromkeys(scores.groups)]
  n, patients = len(scores.ids), scores.patients
  recall = np.stack([names[f"R@{k} {direction}"] for k in AT], axis=1)
  means = bootstrap.grouped_means(recall, ["all"] * n, patients, **draws)["all"]
  rows = []
  for k, s in zip(AT, means, strict=True):
    metric = f"R@{k} {direction}"
    chance = float(np.average([min(1, k / size) for size in sizes], weights=sizes))
    rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=sizes[0]))
    rows.append(Row(*head, metric, "chance", chance, np.nan, np.nan, s.n, gallery=sizes[0]))
  ranks = names[f"rank {direction}"]
  if head[1] == INSTANCE:
    s = bootstrap.median(ranks, patients, **draws)
  else:
    parts = np.split(ranks, np.cumsum(sizes)[:-1])
    medians = [np.floor(np.median(part - 1)) + 1 for part in parts]
    median = float(np.average(medians, weights=sizes))
    s = bootstrap.Summary(median, np.nan, np.nan, n)
  metric = f"median rank {direction}"
  rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=sizes[0]))
  return rows
