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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import DIRECTIONS, Embeddings, Pairs
from plan_jax.evaluators.retrieval import AT
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.ranking import Ranks
from plan_jax.results.rows import RUN, Row

INSTANCE, LIMITR = "compat-instance", "compat-limitr-v2"
CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class PublishedRetrieval(Evaluator):
  """Evaluator of the emulated protocols; its scores are the pairs themselves."""

  needs = "text"
  protocols: tuple[str, ...] = (INSTANCE, LIMITR)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Pairs | None:
    """Takes the pairs; ranks are cheap and made with the rows."""
    return embeddings.pairs

  def rows(self, scores: Pairs | None, **common) -> list[Row]:
    """Makes the rows of both protocols."""
    return compat_rows(scores, self.protocols, **common)


def compat_rows(
  pairs: Pairs | None,
  protocols: tuple[str, ...] = (INSTANCE, LIMITR),
  *,
  data: str,
  chunk: int = CHUNK,
  **draws: int,
) -> list[Row]:
  """Makes rows by protocol, direction and metric; none of nothing."""
  if pairs is None:
    return []
  n = len(pairs.ids)
  galleries = {}
  if INSTANCE in protocols:
    galleries[INSTANCE] = [np.arange(n)]
  if LIMITR in protocols:
    galleries[LIMITR] = [np.arange(i, min(i + chunk, n)) for i in range(0, n, chunk)]
  rows = []
  for protocol, parts in galleries.items():
    head = "retrieval", protocol, data, "all"
    both = [pairs.ranks(part, np.arange(len(part))) for part in parts]
    for direction, ranks in zip(DIRECTIONS, zip(*both, strict=True), strict=True):
      rows += _rows(pairs, parts, ranks, head, direction, draws)
  return rows


def _rows(
  pairs: Pairs,
  parts: list[np.ndarray],
  ranks: Sequence[Ranks],
  head: tuple[str, str, str, str],
  direction: str,
  draws: dict[str, int],
) -> list[Row]:
  """Makes the rows of one protocol and direction over its galleries."""
  queries = np.concatenate(parts)
  patients, sizes = [pairs.patients[i] for i in queries], [len(part) for part in parts]
  recall = np.stack([np.concatenate([r.recall(k) for r in ranks]) for k in AT], axis=1)
  means = bootstrap.grouped_means(recall, ["all"] * len(queries), patients, **draws)["all"]
  rows = []
  for k, s in zip(AT, means, strict=True):
    metric = f"R@{k} {direction}"
    chance = float(np.average([min(1, k / size) for size in sizes], weights=sizes))
    rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=sizes[0]))
    rows.append(Row(*head, metric, "chance", chance, np.nan, np.nan, s.n, gallery=sizes[0]))
  if head[1] == INSTANCE:
    s = bootstrap.median(ranks[0].expected(), patients, **draws)
  else:
    medians = [np.floor(np.median(r.expected() - 1)) + 1 for r in ranks]
    median = float(np.average(medians, weights=sizes))
    s = bootstrap.Summary(median, np.nan, np.nan, len(queries))
  metric = f"median rank {direction}"
  rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=sizes[0]))
  return rows
