"""The interface of evaluators."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row


@dataclass(frozen=True, kw_only=True)
class Evaluator(abc.ABC):
  """Scores a model on a data set under `protocols`.

  `applies`, `score`, then `rows` and `example_scores` of what `score` gave, which is empty or None
  where there was nothing to score. What is left out is logged. `rows` need no more than `restore`
  gives back of `example_scores` and `facts`: no model, and no image.
  """

  protocols: tuple[str, ...]
  needs: ClassVar[str] = ""  # of a data set: "text" or "regions"
  takes_labelled: ClassVar[bool] = False  # `score` asks for `Embeddings.labelled`

  def applies(self, dataset: EvaluationSet) -> bool:
    """Tells whether the data set has what the protocols need."""
    return not self.needs or dataset.has(self.needs)

  @abc.abstractmethod
  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Any:
    """Scores every example; `embeddings` are those of the data set, shared by all evaluators."""

  @abc.abstractmethod
  def rows(self, scores: Any, *, data: str, resamples: int, seed: int) -> list[Row]:
    """Summarises the scores, the chance baselines beside the run; draws as in `bootstrap`."""

  @abc.abstractmethod
  def example_scores(self, scores: Any) -> dict[str, ExampleScores]:
    """Picks the per-example scores to keep on disk, by task.

    What else `rows` need by example is "TASK@PART": chance baselines, published protocols.
    """

  def facts(self, scores: Any) -> dict[str, Any]:
    """Collects what `rows` need besides, as JSON; nothing by default."""
    return {}

  @abc.abstractmethod
  def restore(self, kept: dict[str, ExampleScores], facts: dict[str, Any]) -> Any:
    """Makes the scores again of what `example_scores` and `facts` gave."""
