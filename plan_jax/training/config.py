"""The sections of a config about text, training and checkpoints."""

import math
from dataclasses import dataclass
from typing import Annotated

from input_pipeline.section import (
  Count,
  FiniteFloat,
  PositiveFloat,
  PositiveInt,
  Rule,
  Section,
  Share,
  ShareAboveZero,
  ShareBelowOne,
  Weight,
  one_of,
)

TokenCount = Annotated[
  PositiveInt, Rule(lambda value: value > 2, "must have room for a token and its two marks")
]


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section):
  """The vocabulary, and how long a report in training may be."""

  tokenizer: str
  vocabulary_size: PositiveInt
  terms: str
  places: bool
  max_tokens: TokenCount
  max_words: PositiveInt
  concise_fraction: Share = 0.0  # a run's config may be older than this key


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
  """The optimizer.

  Attributes:
    learning_rate: the highest, at the end of the warm-up.
    weight_decay: of AdamW.
    warmup_fraction: share of the steps in which the rate rises.
    beta2: of AdamW.
    clip_norm: bound on the norm of the gradient; infinity: none.
    freeze: regular expressions, searched for in parameters' paths; what matches does not learn.
    image_rate, text_rate: factors of the rate of each encoder.
    layer_decay: factor for each layer of an encoder from the top down.
  """

  learning_rate: FiniteFloat
  weight_decay: Weight
  warmup_fraction: ShareBelowOne = 0.05
  beta2: ShareBelowOne = 0.999
  clip_norm: PositiveFloat = math.inf
  freeze: tuple[str, ...] = ()
  image_rate: FiniteFloat = 1.0
  text_rate: FiniteFloat = 1.0
  layer_decay: ShareAboveZero = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimizerConfig):
  """Pre-training.

  Attributes:
    steps: length of training.
    batch_size: pairs a step, over all devices.
    micro_batches: into which the encoders take the batch apart, see gradient_cache.
    ema_decay: of the running mean of the parameters; 0 keeps none.
    log_every_steps: steps whose mean is one point of the curves.
  """

  steps: PositiveInt
  batch_size: Annotated[
    PositiveInt, Rule(lambda value: value > 1, "a contrast needs at least two pairs")
  ]
  micro_batches: PositiveInt
  ema_decay: ShareBelowOne
  log_every_steps: PositiveInt


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
  """The checkpoints that are kept.

  Attributes:
    every_steps: how often the state is saved; 0: at the end alone.
    keep_last: how many stay.
    best_metric: the checkpoint with its highest value stays too; empty: none does.
    evaluate: which of them is evaluated.
  """

  every_steps: Count
  keep_last: PositiveInt
  best_metric: str
  evaluate: Annotated[str, one_of("last", "best")]

  def __post_init__(self):
    """Checks that there is a best checkpoint where it is asked for."""
    super().__post_init__()
    holds = self.evaluate != "best" or bool(self.best_metric)
    self.require("evaluate", holds, "needs a best_metric")
