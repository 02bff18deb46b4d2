"""Retrieval in two steps: the global embeddings choose candidates, the local scores order them.

Protocols "reranked-retrieval-v1" and "reranked-class-retrieval-v1" are "retrieval-v1" and
"class-retrieval-v1" (see `retrieval`, `class_retrieval`) with other scores:

- The N candidates of a query that score highest globally (`config.evaluation.rerank_top`) are
  ordered by the sum of the model's global and local logit of the pair, each with its learned
  temperature (ours; equal trust, as both were trained as logits). All others keep their global
  order behind them.
- Only methods with a score of all pairs have it: "plan" in a stage with a local loss, and "gloria".
- Galleries above 20,000 pairs, or of more features than 8 GiB, are left out, and that is logged:
  they are held in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from input_pipeline.images import decode_batches, model_input
from input_pipeline.text import reports
from plan_jax.evaluators import class_retrieval, retrieval
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import DIRECTIONS, Embeddings, Pairs
from plan_jax.evaluators.retrieval import Gallery, PairScores
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics.ranking import rank
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row
from plan_jax.runtime.logging import log

PROTOCOL, CLASS_PROTOCOL = "reranked-retrieval-v1", "reranked-class-retrieval-v1"
TASK, CLASS_TASK = "reranked-retrieval", "reranked-class-retrieval"
BLOCK = 32  # queries at a time
MOST, MOST_BYTES = 20_000, 2**33
_ABOVE = 1e4  # lifts the chosen above the others; logits stay far below


@dataclass(frozen=True)
class Scores:
  """Scores of both protocols; None for what is left out."""

  gallery: Gallery | None = None
  classes: class_retrieval.Scores | None = None


@dataclass(frozen=True, kw_only=True)
class Reranking(Evaluator):
  """Evaluator of both protocols; `top` is how many candidates are ordered anew, 0 for none."""

  needs = "text"
  protocols: tuple[str, ...] = (PROTOCOL, CLASS_PROTOCOL)
  top: int = 32

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Scores:
    """Scores the galleries that the model has local scores for."""
    pairs = embeddings.pairs

    def local_features():
      return features(model, dataset.examples("text", "re-ranking"))

    scores = pair_scores(model, pairs, local_features, top=self.top)
    if scores is None:
      return Scores()
    gallery, classes = None, None
    if PROTOCOL in self.protocols:
      gallery = score_reranked(scores, pairs)
    if CLASS_PROTOCOL in self.protocols:
      classes = class_retrieval.score_classes(pairs, scores, block=BLOCK)
    return Scores(gallery, classes)

  def rows(self, scores: Scores, **common) -> list[Row]:
    """Makes the rows of both protocols."""
    galleries = {"all": scores.gallery} if scores.gallery else {}
    names = {"task": TASK, "protocol": PROTOCOL}
    rows = retrieval.retrieval_rows(galleries, **names, **common)
    names = {"task": CLASS_TASK, "protocol": CLASS_PROTOCOL}
    return rows + class_retrieval.class_rows(scores.classes, **names, **common)

  def example_scores(self, scores: Scores) -> dict[str, ExampleScores]:
    """Picks those of the run."""
    kept = {TASK: scores.gallery.example_scores} if scores.gallery else {}
    return kept | ({CLASS_TASK: scores.classes[0]} if scores.classes else {})

  def facts(self, scores: Scores) -> dict[str, dict]:
    """Collects chance of the gallery."""
    return {TASK: scores.gallery.chance()} if scores.gallery else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores:
    """Makes gallery and classes again."""
    gallery = retrieval.restored_gallery(kept[TASK], facts[TASK]) if TASK in kept else None
    return Scores(gallery, class_retrieval.with_chance(kept.get(CLASS_TASK)))


def features(model: Predictor, examples: Iterable[Example]) -> tuple[np.ndarray, ...]:
  """Makes local features of the examples with text, in their order; images are not kept."""
  wanted = (each for each in examples if reports.normalise(" ".join(each.sentences)))
  parts = [
    model.local_features(images, [example.sentences for example in part])
    for part, images in decode_batches(wanted, 64, model_input)
  ]
  return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def pair_scores(
  model: Predictor,
  pairs: Pairs | None,
  local_features: Callable[[], tuple[np.ndarray, ...]],
  *,
  top: int,
) -> PairScores | None:
  """Makes the scores, float64, of any gallery among the pairs; None where they are left out.

  `local_features` makes `features` of the same examples; `top` candidates are ordered anew.
  """
  if pairs is None or not top or not model.has_local_scores:
    return None
  n = len(pairs.ids)
  most = min(MOST, MOST_BYTES // model.local_bytes)
  if n > most:
    log.info(f"re-ranking: the gallery of {n} pairs is left out, {most} are the most")
    return None
  held, scale = local_features(), model.global_scale()

  def scores(direction: str, places: np.ndarray):
    queries, candidates = pairs.sides(direction, places)
    first = min(top, len(places))

    def block(start: int, stop: int) -> np.ndarray:
      similar = (queries[start:stop] @ candidates.T).astype(np.float64)
      chosen = np.argpartition(-similar, first - 1, axis=1)[:, :first]
      pair = (places[start:stop, None], places[chosen])
      local_logits = model.local_logits(held, *pair[:: 1 if direction == DIRECTIONS[0] else -1])
      logits = scale * np.take_along_axis(similar, chosen, 1) + local_logits.reshape(chosen.shape)
      np.put_along_axis(similar, chosen, _ABOVE + logits, 1)
      return similar

    return block

  return scores


def score_reranked(scores: PairScores, pairs: Pairs, *, block: int = BLOCK) -> Gallery:
  """Ranks the gallery of all pairs under "reranked-retrieval-v1", `block` queries at a time."""
  values, places = {}, np.arange(len(pairs.ids))
  for direction in DIRECTIONS:
    ranks = rank(scores(direction, places), pairs.keys, block=block)
    values |= retrieval.rank_metrics(ranks, direction)
  return retrieval.gallery(values, pairs, places, "all")
