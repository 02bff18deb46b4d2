"""Curriculum: which losses, refinement rounds and term filter hold from which step on."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_PER_ROUND = ("local_weight", "tau", "gamma")


@dataclass(frozen=True)
class Stage:
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
  start_fraction: float
  global_weight: float = 1.0
  local_weight: tuple[float, ...] = ()
  tau: tuple[float, ...] = ()
  gamma: tuple[float, ...] = ()
  term_filter: bool = False
  cut_below: float = 0.0

  def check(self) -> None:
    """Raises ValueError, naming stage and field, where the settings contradict themselves."""
    where = f"curriculum.{self.name}"
    if not len(self.local_weight) == len(self.tau) == len(self.gamma):
      raise ValueError(f"{where}: local_weight, tau and gamma need one value a round each")
    if any(tau <= 0 for tau in self.tau):
      raise ValueError(f"{where}.tau: must be positive, is {self.tau}")
    if any(gamma < 0 for gamma in self.gamma):
      raise ValueError(f"{where}.gamma: must not be negative, is {self.gamma}")
    if min(self.global_weight, *self.local_weight, 0) < 0:
      raise ValueError(f"{where}: loss weights must not be negative")
    if not 0 <= self.start_fraction < 1:
      raise ValueError(f"{where}.start_fraction: must lie in [0, 1), is {self.start_fraction}")
    if not 0 <= self.cut_below < 1:
      raise ValueError(f"{where}.cut_below: must lie in [0, 1), is {self.cut_below}")
    if self.global_weight == 0 and not any(self.local_weight):
      raise ValueError(f"{where}: every loss weight is zero, nothing would be learned")


def stages(config) -> tuple[Stage, ...]:
  """Reads a mapping of names to fields, and orders the stages by their start.

  Raises ValueError, naming stage and field, where they contradict themselves or one another.
  """
  known = [field.name for field in dataclasses.fields(Stage)][1:]
  ordered = []
  for name, fields in config.items():
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
    for key, value in values.items():
      if key not in known:
        raise ValueError(f"curriculum.{name}.{key}: is unknown; a stage has {', '.join(known)}")
      if key in _PER_ROUND and not isinstance(value, tuple):
        raise ValueError(
          f"curriculum.{name}.{key}: is {value!r}; must be one value a round, in a tuple"
        )
    ordered.append(Stage(name=name, **values))
    ordered[-1].check()
  ordered.sort(key=lambda stage: stage.start_fraction)
  starts = [stage.start_fraction for stage in ordered]
  if not ordered or starts[0] != 0:
    raise ValueError("curriculum: one stage must have start_fraction 0")
  if len(set(starts)) < len(starts):
    raise ValueError(f"curriculum: two stages begin at the same start_fraction {starts}")
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
