"""Settings of the transfer tasks: a frozen dataclass each, which checks itself.

A field is a flag of the command (`__main__`), and what a config may set for a task that it attaches
(`attached`).
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from input_pipeline.errors import UserError
from plan_jax.metrics import bootstrap

LATEST = -1  # the step of the checkpoint that the run's evaluation uses


def flag(text: str, default=dataclasses.MISSING, *, least=None, choices=()):
  """Returns a dataclass field: its help, its default, its least value and its allowed values."""
  rules = {"help": text, "least": least, "choices": choices}
  return dataclasses.field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of every task. Raises UserError, naming the flag, for an impossible value."""

  TASK: ClassVar[str]
  ENCODERS: ClassVar[tuple[str, ...]] = ("run", "random", "supervised")

  workdir: Path = flag("folder of the run whose encoder is used")
  records: Path = flag("folder of records to learn from and to score on")
  out: Path = flag("folder of what is learned")
  step: int = flag("step of the run's checkpoint; -1: the one that is evaluated", LATEST)
  encoder: str = flag(
    "run: the run's; random: fresh and frozen; supervised: fresh, and learns with the head", "run"
  )
  findings: tuple = flag("names with commas between; none: all there are", ())
  fraction: float = flag("share of the training patients, above 0 and 1 at most", 1.0)
  image_px: int = flag("side of the square image; 0: the run's", 0, least=0)
  resamples: int = flag("bootstrap draws", bootstrap.RESAMPLES, least=0)
  seed: int = flag("seed of the share, fresh weights, order and bootstrap draws", 0, least=0)

  def __post_init__(self):
    """Raises UserError at the first flag that has a wrong type or an impossible value."""
    for field in dataclasses.fields(self):
      self._check(field, getattr(self, field.name))
    if self.encoder not in self.ENCODERS:
      raise UserError(f"--encoder={self.encoder}: must be one of {', '.join(self.ENCODERS)}")
    if not 0 < self.fraction <= 1:
      raise UserError(f"--fraction={self.fraction:g} must be above 0, and 1 at most")

  def _check(self, field: dataclasses.Field, value) -> None:
    kind = int | float if field.type is float else field.type
    is_number = field.type in (int, float)
    if not isinstance(value, kind) or (is_number and isinstance(value, bool)):
      name = getattr(field.type, "__name__", field.type)
      raise UserError(f"--{field.name}={value!r} must be of type {name}")
    least, choices = field.metadata["least"], field.metadata["choices"]
    if least is not None and not value >= least:
      raise UserError(f"--{field.name}={value} must be {least} or more")
    if choices and value not in choices:
      raise UserError(f"--{field.name}={value} must be one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
  """Settings of the tasks that train a head by gradient descent."""

  steps: int = flag("updates", 5000, least=1)
  batch_size: int = flag("images of an update", 16, least=1)
  learning_rate: float = flag("peak rate of AdamW", 5e-4)
  weight_decay: float = flag("decay of AdamW", 1e-6, least=0)
  validate_every_steps: int = flag("when it validates and saves", 500, least=1)
  patience: int = flag("validations without a better one before it stops", 10, least=1)

  def __post_init__(self):
    """Raises UserError as `Settings` does."""
    super().__post_init__()
    if not 0 < self.learning_rate < math.inf:
      raise UserError(f"--learning_rate={self.learning_rate} must be above 0")


@dataclass(frozen=True, kw_only=True)
class MapSettings(HeadSettings):
  """Settings of the tasks whose head reads a pyramid of an encoder that may stay frozen."""

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

  image_px: int = flag("side of the square image (the field has 224 and 512)", 224, least=0)
  steps: int = flag("updates", 10_000, least=1)
  anchors: str = flag(
    "boxes: k-means of the training boxes; coco: those of YOLOv3, scaled",
    "boxes",
    choices=("boxes", "coco"),
  )
  channels: int = flag("width of the head on its fine grid", 128, least=1)
  compatibility: bool = flag("also measure as published evaluators do", False)


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings(MapSettings):
  """Settings of segmentation."""

  TASK: ClassVar[str] = "segmentation"

  channels: int = flag("width of the decoder", 64, least=1)
  empty_images: str = flag(
    "whether images without a region of a finding count for it", "keep", choices=("keep", "drop")
  )


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings(HeadSettings):
  """Settings of fine-tuned classification, whose encoder always learns."""

  TASK: ClassVar[str] = "classification"
  ENCODERS: ClassVar[tuple[str, ...]] = ("run", "supervised")
  frozen: ClassVar[bool] = False

  steps: int = flag("updates", 2000, least=1)
  learning_rate: float = flag("peak rate of AdamW", 1e-4)
  weight_decay: float = flag("decay of AdamW", 0.05, least=0)
  validate_every_steps: int = flag("when it validates and saves", 200, least=1)
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
