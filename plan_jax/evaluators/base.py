"""The interface of evaluators, and the sequence of their steps."""

from typing import Any, Protocol

from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row


class Evaluator(Protocol):
  """Scores a model on a data set under the protocols that it is made with.

  `applies`, `score`, then `rows` and `example_scores` of what `score` gave, which is empty or None
  where there was nothing to score. What is left out is logged.
  """

  protocols: tuple[str, ...]

  def applies(self, dataset: EvaluationSet) -> bool:
    """Tells whether the data set has what the protocols need."""

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Any:
    """Scores every example of the data set.

    Args:
      model: the model.
      dataset: the images.
      embeddings: of the model on the data set, shared by all evaluators.
    """

  def rows(self, scores: Any, *, data: str, resamples: int, seed: int) -> list[Row]:
    """Summarises the scores, the chance baselines beside the run.

    Args:
      scores: of `score`.
      data: name of data set and split.
      resamples: of the bootstrap.
      seed: of the bootstrap.
    """

  def example_scores(self, scores: Any) -> dict[str, ExampleScores]:
    """Picks the per-example scores to be kept on disk, by task."""
