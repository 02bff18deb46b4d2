"""The section of a config about evaluation."""

from dataclasses import dataclass
from typing import Annotated, Any

from input_pipeline.example import SPLITS
from input_pipeline.readers.config import EvaluationSetConfig
from input_pipeline.section import Count, PositiveInt, Section, one_of
from plan_jax.training.config import TokenCount


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig(Section):
  """An evaluator, which measures by each of the protocols."""

  protocols: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
  """The evaluation of any model."""

  split: Annotated[str, one_of(*SPLITS)]
  batch_size: PositiveInt
  rerank_top: Count
  prompts: tuple[str, ...]
  compatibility: bool
  evaluators: dict[str, EvaluatorConfig]
  resamples: Count
  report_images: Count
  sets: dict[str, EvaluationSetConfig]


@dataclass(frozen=True, kw_only=True)
class RunEvaluationConfig(EvaluationConfig):
  """The evaluation of a run, which is also followed in training."""

  every_steps: Count
  during_images: int
  max_tokens: TokenCount
  max_words: PositiveInt
  transfer: dict[str, Any]

  def __post_init__(self):
    """Checks that training has images to be followed on."""
    super().__post_init__()
    self.require(
      "during_images", not self.every_steps or self.during_images > 0, "must be positive"
    )
