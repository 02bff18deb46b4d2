"""Image-text retrieval: the rank of an image's own report among many, and of a report's image.

Protocol "retrieval-v1":

- The gallery is every image of the data that has text, with its text, each pair once. Its size is
  in every row, since the metrics fall as it grows. Images without a word of text are left out.
- Candidates are ranked by the dot product of unit-norm global embeddings; by a model that scores
  pairs (`ModelSpec.pair_scores`) by that score, and galleries above 20,000 pairs are then left out
  and logged, for all scores are held. A candidate is a hit where its text equals the query's after
  normalisation (case, punctuation, blanks): duplicate reports, and other images of the study, are
  right answers, not wrong ones.
- A query's rank is that of its best hit, counted from 1. Scores within 1e-6 of that of the best hit
  are ties, broken at random: with a candidates above, m misses and k hits tied, the rank is
  1 + a + m / (k + 1) (the mean over orders; half of the ties for one hit), and the query counts for
  R@K by the probability 1 - C(m, K - a) / C(m + k, K - a) that a hit is among the first K. So a
  model that gives every candidate the same score gets chance, not rank 1.
- R@1, R@5, R@10 and the median rank, image-to-text and text-to-image. Intervals are 95 %
  percentile intervals of 1,000 bootstrap draws of the queries' patients; the gallery stays whole.
- Chance baseline `chance`: random scores on the same gallery. R@K is the exact expectation; the
  median rank is that of the distribution of ranks over all queries and orders. Neither has an
  interval.
- Data with both radiologists' reports and sentences made from labels is also scored by kind of
  text, each kind its own gallery; group "all" holds all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import DIRECTIONS, Embeddings, Pairs
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.ranking import Ranks, chance_ranks
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row

PROTOCOL, _TASK = "retrieval-v1", "retrieval"
AT = (1, 5, 10)
# (direction, pairs that are the gallery) -> (start, stop) -> [stop - start, pairs], of its queries.
PairScores = Callable[[str, np.ndarray], Callable[[int, int], np.ndarray]]


@dataclass(frozen=True)
class Gallery:
  """Scores of the queries of one gallery, and those of chance."""

  example_scores: ExampleScores  # of the pairs, by the image; see `rank_metrics`
  recalls: dict[int, float]  # K -> R@K of chance
  median: float  # the median rank of chance

  def chance(self) -> dict[str, Any]:
    """Writes chance as JSON."""
    return {"recalls": {str(k): value for k, value in self.recalls.items()}, "median": self.median}


def restored_gallery(scores: ExampleScores, chance: dict[str, Any]) -> Gallery:
  """Makes a gallery of its scores and what `Gallery.chance` gave."""
  return Gallery(scores, {int(k): v for k, v in chance["recalls"].items()}, chance["median"])


def score_retrieval(pairs: Pairs | None) -> dict[str, Gallery]:
  """Scores the gallery "all" and, where there are several kinds of text, that of each kind.

  Empty where there are no pairs. Raises ValueError where the embeddings do not fit.
  """
  if pairs is None:
    return {}
  kinds = np.array(pairs.kinds)
  groups = {"all": np.arange(len(kinds))}
  if len(set(pairs.kinds)) > 1:
    groups |= {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(pairs.kinds))}
  return {group: score_gallery(pairs, places, group) for group, places in groups.items()}


def score_gallery(pairs: Pairs, places: np.ndarray, group: str) -> Gallery:
  """Ranks the pairs at these places in both directions."""
  values = {}
  for direction, ranks in zip(DIRECTIONS, pairs.ranks(places, pairs.keys[places]), strict=True):
    values |= rank_metrics(ranks, direction)
  return gallery(values, pairs, places, group)


def rank_metrics(ranks: Ranks, direction: str) -> dict[str, np.ndarray]:
  """Names the metrics of a direction: -> float64 [N], of every query."""
  recalls = {f"R@{k} {direction}": ranks.recall(k) for k in AT}
  return recalls | {f"rank {direction}": ranks.expected()}


def gallery(
  values: dict[str, np.ndarray], pairs: Pairs, places: Sequence[int], group: str
) -> Gallery:
  """Makes a gallery of the `rank_metrics` of both directions."""
  scores = ExampleScores(
    [example_id(pairs.ids[i]) for i in places],
    [group] * len(places),
    [pairs.patients[i] for i in places],
    tuple(values),
    np.stack(list(values.values()), axis=1),
  )
  return Gallery(scores, *chance_ranks(pairs.keys[places], AT))


def retrieval_rows(
  galleries: dict[str, Gallery],
  *,
  data: str,
  task: str = _TASK,
  protocol: str = PROTOCOL,
  **draws: int,
) -> list[Row]:
  """Makes rows by gallery, direction and metric, the run beside chance."""
  rows = []
  for group, each in galleries.items():
    scores, n = each.example_scores, len(each.example_scores.ids)
    by_group = bootstrap.grouped_means(scores.values, scores.groups, scores.patients, **draws)
    means = dict(zip(scores.metrics, by_group[group], strict=True))
    metrics = []
    for direction in DIRECTIONS:
      for k in AT:
        metric = f"R@{k} {direction}"
        metrics.append((metric, means[metric], each.recalls[k]))
      ranks = scores.values[:, scores.metrics.index(f"rank {direction}")]
      middle = bootstrap.median(ranks, scores.patients, **draws)
      metrics.append((f"median rank {direction}", middle, each.median))
    for metric, run, chance in metrics:
      head = (task, protocol, data, group, metric)
      rows.append(Row(*head, RUN, run.value, run.low, run.high, n, gallery=n))
      rows.append(Row(*head, "chance", chance, np.nan, np.nan, n, gallery=n))
  return rows


@dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
  """Evaluator of "retrieval-v1"."""

  needs = "text"
  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(retrieval_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> dict[str, Gallery]:
    """Scores the galleries."""
    return score_retrieval(embeddings.pairs)

  def example_scores(self, scores: dict[str, Gallery]) -> dict[str, ExampleScores]:
    """Picks those of the whole gallery, and of those by kind of text."""
    return {
      _TASK if group == "all" else f"{_TASK}@{group}": each.example_scores
      for group, each in scores.items()
    }

  def facts(self, scores: dict[str, Gallery]) -> dict[str, dict]:
    """Collects chance by gallery."""
    return {group: each.chance() for group, each in scores.items()}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> dict[str, Gallery]:
    """Makes the galleries again."""
    groups = {name.partition("@")[2] or "all": each for name, each in kept.items()}
    return {group: restored_gallery(each, facts[group]) for group, each in groups.items()}
