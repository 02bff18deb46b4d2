"""Curriculum: which losses, soft regions and term filter hold from which step on."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline.section import (
  PositiveFloat,
  Section,
  SectionError,
  ShareBelowOne,
  Weight,
  require_keys,
)


@dataclass(frozen=True)
class Stage(Section):
  """Settings that hold from a point of training on.

  Attributes:
    name: for the log.
    start_fraction: share of training done when the stage begins.
    global_weight: weight of the global loss.
    local_weight: weight of the local loss; 0: there is none, and words have no regions.
    tau: of `regions.soft_region`.
    term_filter: whether words are weighted by their significance, or all alike.
  """

  name: str
  start_fraction: ShareBelowOne
  global_weight: Weight = 1.0
  local_weight: Weight = 0.0
  tau: PositiveFloat = 0.2
  term_filter: bool = False

  def __post_init__(self):
    """Checks that something is learned."""
    super().__post_init__()
    learns = self.global_weight > 0 or self.local_weight > 0
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
  return jnp.where(mask, significance, 0)
