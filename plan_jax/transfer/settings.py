"""Settings of the transfer tasks: a frozen dataclass each, which checks itself.

A field is a flag of the command (`__main__`), and what a config may set for a task that it attaches
(`attached`).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from input_pipeline.errors import UserError
from input_pipeline.section import (
  Count,
  FiniteFloat,
  PositiveInt,
  Section,
  ShareAboveZero,
  Weight,
  one_of,
)
from plan_jax.metrics import bootstrap

LATEST = -1  # the step of the checkpoint that the run's evaluation uses


def flag(text: str, default=dataclasses.MISSING):
  """Returns a dataclass field with its help and its default."""
  return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
  """Settings of every task. Raises UserError, naming the flag, for an impossible value."""

  TASK: ClassVar[str]
  ENCODERS: ClassVar[tuple[str, ...]] = ("run", "random", "supervised")
  STRIDE: ClassVar[int] = 1  # that the image's side is a multiple of, beside the encoder's

  workdir: Path = flag("folder of the run whose encoder is used")
  records: Path = flag("folder of records to learn from and to score on")
  out: Path = flag("folder of what is learned")
  step: int = flag("step of the run's checkpoint; -1: the one that is evaluated", LATEST)
  encoder: str = flag(
    "run: the run's; random: fresh and frozen; supervised: fresh, and learns with the head", "run"
  )
  findings: tuple = flag("names with commas between; none: all there are", ())
  fraction: ShareAboveZero = flag("share of the training patients, above 0 and 1 at most", 1.0)
  image_px: Count = flag("side of the square image; 0: the run's", 0)
  resamples: Count = flag("bootstrap draws", bootstrap.RESAMPLES)
  seed: Count = flag("seed of the share, fresh weights, order and bootstrap draws", 0)

  def __post_init__(self):
    """Raises UserError at the first flag that has a wrong type or an impossible value."""
    super().__post_init__()
    self.require("encoder", self.encoder in self.ENCODERS, one_of(*self.ENCODERS).text)

  def require(self, name: str, holds: bool, rule: str) -> None:
    """Raises UserError, naming the flag, its value and the rule, unless the rule holds."""
    if not holds:
      raise UserError(f"--{name}={getattr(self, name)}: {rule}")


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
  """Settings of the tasks that train a head by gradient descent."""

  steps: PositiveInt = flag("updates", 5000)
  batch_size: PositiveInt = flag("images of an update", 16)
  learning_rate: FiniteFloat = flag("peak rate of AdamW", 5e-4)
  weight_decay: Weight = flag("decay of AdamW", 1e-6)
  validate_every_steps: PositiveInt = flag("when it validates and saves", 500)
  patience: PositiveInt = flag("validations without a better one before it stops", 10)


@dataclass(frozen=True, kw_only=True)
class MapSettings(HeadSettings):
  """Settings of the tasks whose head reads a pyramid of an encoder that may stay frozen."""

  STRIDE: ClassVar[int] = 32

  frozen: bool | None = flag("whether the encoder is frozen (default: unless supervised)", None)

  def __post_init__(self):
    """Settles `frozen`. Raises UserError as `Settings` does, and where it contradicts `encoder`."""
    super().__post_init__()
    if self.frozen is None:
      object.__setattr__(self, "frozen", self.encoder != "supervised")
    elif self.encoder == ("supervised" if self.frozen else "random"):
      raise UserError(
        f"--encoder={self.encoder} --frozen={self.frozen}: a random encoder is frozen, a supervised"
        " one is not"
      )


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(MapSettings):
  """Settings of detection; the defaults are MGCA's but for the number of steps."""

  TASK: ClassVar[str] = "detection"

  image_px: Count = flag("side of the square image (the field has 224 and 512)", 224)
  steps: PositiveInt = flag("updates", 10_000)
  anchors: Annotated[str, one_of("boxes", "coco")] = flag(
    "boxes: k-means of the training boxes; coco: those of YOLOv3, scaled", "boxes"
  )
  channels: PositiveInt = flag("width of the head on its fine grid", 128)
  compatibility: bool = flag("also measure as published evaluators do", False)


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(MapSettings):
  """Settings of segmentation."""

  TASK: ClassVar[str] = "segmentation"

  channels: PositiveInt = flag("width of the decoder", 64)
  empty_images: Annotated[str, one_of("keep", "drop")] = flag(
    "whether images without a region of a finding count for it", "keep"
  )


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(HeadSettings):
  """Settings of fine-tuned classification, whose encoder always learns."""

  TASK: ClassVar[str] = "classification"
  ENCODERS: ClassVar[tuple[str, ...]] = ("run", "supervised")
  frozen: ClassVar[bool] = False

  steps: PositiveInt = flag("updates", 2000)
  learning_rate: FiniteFloat = flag("peak rate of AdamW", 1e-4)
  weight_decay: Weight = flag("decay of AdamW", 0.05)
  validate_every_steps: PositiveInt = flag("when it validates and saves", 200)
  augment: bool = flag("whether training images are augmented", True)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Settings):
  """Settings of the linear probe, whose encoder never learns."""

  TASK: ClassVar[str] = "linear_probe"
  ENCODERS: ClassVar[tuple[str, ...]] = ("run", "random")


SETTINGS: dict[str, type[Settings]] = {
  kind.TASK: kind
  for kind in (DetectionSettings, SegmentationSettings, ClassificationSettings, ProbeSettings)
}
