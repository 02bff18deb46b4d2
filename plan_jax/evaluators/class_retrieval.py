"""Class retrieval: the share of an image's nearest texts that are of its finding, and the reverse.

The protocol of CheXpert-5x200 (Zhang et al., ConVIRT, 2020; Huang et al., GLoRIA, 2021), whole.
Protocol "class-retrieval-v1":

- The class of an image is the one finding that is labelled 1 ("No Finding" is none). Images with
  none or several are left out and counted, as are those without text, and classes of one image. On
  a 5x200 selection these rules take all 1,000 images, 200 a class.
- Candidates are ranked as in "retrieval-v1" (`retrieval`). P@K is the share of the query's class
  among the first K, the mean over the queries; K is 1, 2, 5, 10; in both directions. Equal scores
  (within 1e-6) share their places evenly, so that a model that gives every candidate the same score
  gets chance.
- "with own": the query's own text (image) is among the candidates and is a hit, as in the
  baselines' code; so P@1 is part retrieval of the pair itself. "without own" leaves it out.
- Groups are the classes of the queries, and `macro` their plain mean. Intervals are 95 % percentile
  intervals of 1,000 bootstrap draws of the queries' patients; the gallery stays whole.
- Chance baseline `chance`: the share of the query's class among the candidates.
"""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import DIRECTIONS, Embeddings, Pairs
from plan_jax.evaluators.retrieval import PairScores
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.ranking import precision_at
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "class-retrieval-v1"
AT = (1, 2, 5, 10)
OWN = ("with own", "without own")

Scores = tuple[ExampleScores, ExampleScores]  # of the run, and of chance on the same queries


def single_finding(labels: dict[str, int]) -> str:
  """Picks the one finding that is labelled 1, or "" where there is none, or several."""
  present = [name for name, value in labels.items() if value == 1 and name != "No Finding"]
  return present[0] if len(present) == 1 else ""


def score_classes(
  pairs: Pairs | None, scores: PairScores | None = None, *, block: int = 512
) -> Scores | None:
  """Computes P@K of every query and that of chance; None where no two classes remain.

  `scores` are those of the pairs by default; with others nothing is logged. `block` queries are
  scored at a time.
  """
  if pairs is None:
    return None
  classes = np.array([single_finding(labels) for labels in pairs.labels])
  names, counts = np.unique(classes[classes != ""], return_counts=True)
  names = names[counts > 1]
  chosen = np.flatnonzero(np.isin(classes, names))
  if len(names) < 2:
    if (classes != "").any() and scores is None:
      log.info(
        "class retrieval is left out: no two findings stand alone in two images or more each"
      )
    return None
  if (left := len(classes) - len(chosen)) and scores is None:
    log.info(
      f"class retrieval: {left} of {len(classes)} images have no single finding and are left out"
    )
  _, query_class = np.unique(classes[chosen], return_inverse=True)
  ks = [k for k in AT if k < len(chosen)]
  values = {}
  for direction in DIRECTIONS:
    near = (scores or pairs.similarities)(direction, chosen)
    parts = _precisions(near, query_class, ks, block)
    for own, part in zip(OWN, parts, strict=True):
      values |= {f"P@{k} {direction} {own}": column for k, column in zip(ks, part.T, strict=True)}
  ids = [example_id(pairs.ids[i]) for i in chosen]
  groups, patients = classes[chosen].tolist(), [pairs.patients[i] for i in chosen]
  columns = np.stack(list(values.values()), axis=1)
  return with_chance(ExampleScores(ids, groups, patients, tuple(values), columns))


def with_chance(run: ExampleScores | None) -> Scores | None:
  """Computes the scores of chance on the queries of the run; None of none."""
  if run is None:
    return None
  _, query_class = np.unique(run.groups, return_inverse=True)
  sizes, n = np.bincount(query_class)[query_class], len(run.ids)
  shares = {OWN[0]: sizes / n, OWN[1]: (sizes - 1) / (n - 1)}
  columns = [shares[own] for metric in run.metrics for own in OWN if metric.endswith(f" {own}")]
  return run, replace(run, values=np.stack(columns, axis=1))


def _precisions(near, query_class: np.ndarray, ks: list[int], block: int) -> list[np.ndarray]:
  """Computes P@K, [N, len(ks)], with the query's own pair and without it."""
  n = len(query_class)
  parts = [[], []]
  starts = tqdm(range(0, n, block), desc="classes", unit="block", delay=1, mininterval=1)
  for start in starts:
    queries = np.arange(start, min(start + block, n))
    scored = near(start, start + len(queries))
    hit = query_class[queries, None] == query_class[None, :]
    parts[0].append(precision_at(scored, hit, ks))
    scored[np.arange(len(queries)), queries] = -np.inf
    parts[1].append(precision_at(scored, hit, ks))
  return [np.concatenate(part) for part in parts]


def class_rows(
  scores: Scores | None,
  *,
  data: str,
  task: str = "class-retrieval",
  protocol: str = PROTOCOL,
  **draws: int,
) -> list[Row]:
  """Makes rows by group ("macro" first) and metric, beside chance; none of none."""
  if scores is None:
    return []
  run, chance = scores
  means = bootstrap.grouped_means(run.values, run.groups, run.patients, **draws)
  expected = bootstrap.grouped_means(chance.values, run.groups, run.patients, resamples=0)
  rows = []
  for group in means:
    for m, metric in enumerate(run.metrics):
      s, gallery = means[group][m], len(run.ids) - ("without" in metric)
      head = (task, protocol, data, group, metric)
      rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n, gallery=gallery))
      value = expected[group][m].value
      rows.append(Row(*head, "chance", value, np.nan, np.nan, s.n, gallery=gallery))
  return rows


@dataclass(frozen=True, kw_only=True)
class ClassRetrieval(Evaluator):
  """Evaluator of "class-retrieval-v1"."""

  needs = "text"
  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(class_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> Scores | None:
    """Scores every query."""
    return score_classes(embeddings.pairs)

  def example_scores(self, scores: Scores | None) -> dict[str, ExampleScores]:
    """Picks the scores of the run."""
    return {"class-retrieval": scores[0]} if scores else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores | None:
    """Computes chance again."""
    return with_chance(kept.get("class-retrieval"))
