"""Curriculum: which losses, refinement rounds and term filter hold from which step on."""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline.section import Rule, Section, SectionError, ShareBelowOne, Weight, require_keys

_POSITIVE = Rule(lambda values: all(value > 0 for value in values), "must be positive")
_NOT_NEGATIVE = Rule(lambda values: all(value >= 0 for value in values), "must not be negative")


@dataclass(frozen=True)
class Stage(Section):
  """Settings that hold from a point of training on.

  Attributes:
    name: for the log.
    start_fraction: share of training done when the stage begins.
    global_weight: weight of the global loss.
    local_weight: weight of the local loss, one a round; its length is the number of rounds.
    tau, gamma: of the soft region, one a round, see `regions`.
    term_filter: whether words are weighted by their significance, or all alike.
    cut_below: with the term filter, words whose significance is below this share of the report's
      highest get no weight at all; 0 cuts none.
  """

  name: str
  start_fraction: ShareBelowOne
  global_weight: Weight = 1.0
  local_weight: Annotated[tuple[float, ...], _NOT_NEGATIVE] = ()
  tau: Annotated[tuple[float, ...], _POSITIVE] = ()
  gamma: Annotated[tuple[float, ...], _NOT_NEGATIVE] = ()
  term_filter: bool = False
  cut_below: ShareBelowOne = 0.0

  def __post_init__(self):
    """Checks that every round has its values, and that something is learned."""
    super().__post_init__()
    holds = len(self.local_weight) == len(self.tau) == len(self.gamma)
    self.require("local_weight", holds, "local_weight, tau and gamma need one value a round each")
    learns = self.global_weight > 0 or any(self.local_weight)
    self.require("global_weight", learns, "every loss weight is zero, nothing would be learned")


def stages(config) -> tuple[Stage, ...]:
  """Reads a mapping of names to fields, and orders the stages by their start.

  Raises SectionError, naming stage and field, where they contradict themselves or one another.
  """
  ordered = []
  for name, fields in config.items():
    require_keys(name, fields)
    if "name" in fields:
      raise SectionError(f"{name}.name: is the key of the stage itself")
    ordered.append(Stage.read_at(name, {**fields, "name": name}))
  ordered.sort(key=lambda stage: stage.start_fraction)
  starts = [stage.start_fraction for stage in ordered]
  if not ordered or starts[0] != 0:
    raise SectionError("one stage must have start_fraction 0")
  if len(set(starts)) < len(starts):
    raise SectionError(f"two stages begin at the same start_fraction {starts}")
  return tuple(ordered)


def stage_at(ordered: tuple[Stage, ...], step: int, steps: int) -> Stage:
  """Returns the stage of step `step` (0-based) of `steps`."""
  return [stage for stage in ordered if stage.start_fraction * steps <= step][-1]


def word_weights(
  stage: Stage, significance: Float[Array, "B W"], mask: Bool[Array, "B W"]
) -> Float[Array, "B W"]:
  """Weighs each word for the local score of a stage; padding gets zero."""
  if not stage.term_filter:
    return mask.astype(jnp.float32)
  if stage.cut_below:
    highest = significance.max(-1, keepdims=True)
    significance = jnp.where(significance >= stage.cut_below * highest, significance, 0)
  return jnp.where(mask, significance, 0)
