"""Stages of training: which losses, rounds and filter hold from when on."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Stage:
  """What holds from a point of training on.

  Attributes:
    name: for the log.
    start_fraction: share of training done when the stage begins.
    global_weight: weight of the global loss.
    local_weight: weight of the local loss, one a round; its length is the number of rounds.
    tau, gamma: of the soft region, one a round.
    term_filter: whether words speak by their significance, or all alike.
    cut_below: with the term filter, words whose significance is below this share of the report's
      highest get no say at all; 0 cuts none.
  """

  name: str
  start_fraction: float
  global_weight: float = 1.0
  local_weight: tuple[float, ...] = ()
  tau: tuple[float, ...] = ()
  gamma: tuple[float, ...] = ()
  term_filter: bool = False
  cut_below: float = 0.0


def stages(config: Mapping[str, Mapping]) -> tuple[Stage, ...]:
  """Stages by start. Raises ValueError, naming the key, where they contradict themselves."""
  found = []
  for name, values in config.items():
    stage = Stage(name=name, **{k: tuple(v) if isinstance(v, (tuple, list)) else v
                                for k, v in values.items()})  # fmt: skip
    where = f"curriculum.{name}"
    if not len(stage.local_weight) == len(stage.tau) == len(stage.gamma):
      raise ValueError(f"{where}: local_weight, tau and gamma need one value a round each")
    if any(tau <= 0 for tau in stage.tau):
      raise ValueError(f"{where}.tau: must be positive, is {stage.tau}")
    if any(gamma < 0 for gamma in stage.gamma):
      raise ValueError(f"{where}.gamma: must not be negative, is {stage.gamma}")
    if min(stage.global_weight, *stage.local_weight, 0) < 0:
      raise ValueError(f"{where}: loss weights must not be negative")
    if not 0 <= stage.start_fraction < 1:
      raise ValueError(f"{where}.start_fraction: must lie in [0, 1), is {stage.start_fraction}")
    if not 0 <= stage.cut_below < 1:
      raise ValueError(f"{where}.cut_below: must lie in [0, 1), is {stage.cut_below}")
    if stage.global_weight == 0 and not any(stage.local_weight):
      raise ValueError(f"{where}: every loss weight is zero, nothing would be learned")
    found.append(stage)
  found.sort(key=lambda stage: stage.start_fraction)
  starts = [stage.start_fraction for stage in found]
  if not found or starts[0] != 0:
    raise ValueError("curriculum: one stage must have start_fraction 0")
  if len(set(starts)) < len(starts):
    raise ValueError(f"curriculum: two stages begin at the same start_fraction {starts}")
  return tuple(found)


def stage_at(found: tuple[Stage, ...], step: int, steps: int) -> Stage:
  """The stage of step `step` (0-based) of `steps`."""
  return [stage for stage in found if stage.start_fraction * steps <= step][-1]


def say(stage: Stage, significance: jax.Array, mask: jax.Array) -> jax.Array:
  """[B, W] weight of each word in the local score of this stage; zero for padding."""
  if not stage.term_filter:
    return mask.astype(jnp.float32)
  if stage.cut_below:
    highest = significance.max(-1, keepdims=True)
    significance = jnp.where(significance >= stage.cut_below * highest, significance, 0)
  return jnp.where(mask, significance, 0)
