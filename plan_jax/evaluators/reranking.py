"""Retrieval in two steps: the global embeddings choose candidates, the local scores order them.

Protocols "reranked-retrieval-v1" and "reranked-class-retrieval-v1" are "retrieval-v1" and
"class-retrieval-v1" (see `retrieval`, `class_retrieval`) with other scores:

- The N candidates of a query that score highest globally (`config.evaluation.rerank_top`) are
  ordered by the sum of the model's global and local logit of the pair, each with its learned
  temperature (ours; equal trust, as both were trained as logits). All others keep their global
  order behind them.
- Only methods with a score of all pairs have it: "plan" in a stage with a local loss, and "gloria".
- Galleries above 20,000 pairs, or of more features than 8 GiB, are left out, and that is said: they
  are held in memory.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from input_pipeline.text import reports
from plan_jax.evaluators import retrieval
from plan_jax.evaluators.retrieval import DIRECTIONS, Embedded, Gallery, Scores
from plan_jax.runtime.logging import log

PROTOCOL, CLASS_PROTOCOL = "reranked-retrieval-v1", "reranked-class-retrieval-v1"
BLOCK = 32  # queries at a time
MOST, MOST_BYTES = 20_000, 2**33
_ABOVE = 1e4  # lifts the chosen above the others; logits stay far below


class Matcher(Protocol):
  """What re-ranking needs of a model."""

  has_local_scores: bool
  local_bytes: int  # of the features of a pair

  def local_features(self, images: list[np.ndarray], texts: list[tuple[str, ...]]):
    """Features of N pairs, of which `local_logits` makes scores: arrays that lead with N."""

  def local_logits(self, features, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """[Q, I] and [Q, J] places in the features -> float32 [Q, I, J]."""

  def global_scale(self) -> float:
    """The global contrast's inverse temperature."""


def features(model: Matcher, examples: Iterable[Example], *, batch: int = 64):
  """Features of the studies with text, in the order of `retrieval.embed`; images are not kept."""
  parts, some = [], []

  def flush():
    if some:
      decoded = [images.decode(example.image) for example in some]
      parts.append(model.local_features(decoded, [example.sentences for example in some]))
      some.clear()

  for example in examples:
    if reports.normalise(" ".join(example.sentences)):
      some.append(example)
      if len(some) == batch:
        flush()
  flush()
  return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def scorer(model: Matcher, found: Embedded | None, local, *, top: int) -> Scores | None:
  """The scores, float64, of any gallery among the pairs; None where re-ranking is left out.

  Args:
    model: the model.
    found: of `retrieval.embed`.
    local: called without arguments, gives `features` of the same studies.
    top: N; 0 leaves all out.
  """
  if found is None or not top or not model.has_local_scores:
    return None
  n = len(found.ids)
  most = min(MOST, MOST_BYTES // model.local_bytes)
  if n > most:
    log.info(f"re-ranking: the gallery of {n} pairs is left out, {most} are the most")
    return None
  held, scale = local(), model.global_scale()

  def scores(direction: str, pairs: np.ndarray):
    queries, candidates = found.sides(direction, pairs)
    first = min(top, len(pairs))

    def of(start: int, stop: int) -> np.ndarray:
      similar = (queries[start:stop] @ candidates.T).astype(np.float64)
      chosen = np.argpartition(-similar, first - 1, axis=1)[:, :first]
      pair = (pairs[start:stop, None], pairs[chosen])
      local_logits = model.local_logits(held, *pair[:: 1 if direction == DIRECTIONS[0] else -1])
      logits = scale * np.take_along_axis(similar, chosen, 1) + local_logits.reshape(chosen.shape)
      np.put_along_axis(similar, chosen, _ABOVE + logits, 1)
      return similar

    return of

  return scores


def score_reranked(scores: Scores, found: Embedded, *, block: int = BLOCK) -> Gallery:
  """The gallery of all pairs under "reranked-retrieval-v1".

  Args:
    scores: of `scorer`.
    found: of `retrieval.embed`.
    block: queries at a time.
  """
  figures = {}
  for direction in DIRECTIONS:
    near = scores(direction, np.arange(len(found.ids)))
    figures |= retrieval.figures(retrieval.rank(near, found.keys, block=block), direction)
  return retrieval.gallery(figures, found.keys, found.ids, found.patients)
