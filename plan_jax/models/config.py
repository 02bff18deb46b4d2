"""The sections of a config about the model."""

from dataclasses import dataclass
from typing import Annotated

from input_pipeline.section import (
  Count,
  PositiveFloat,
  PositiveInt,
  Rule,
  Section,
  ShareBelowOne,
  one_of,
)
from plan_jax.models.layers.remat import REMAT
from plan_jax.models.resnet import BLOCKS, NORMS
from plan_jax.models.two_towers import IMAGE_ENCODERS, TEXT_ENCODERS
from plan_jax.models.vit import VARIANTS


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Section):
  """The keys of a ViT alone."""

  embed_dim: PositiveInt
  depth: PositiveInt
  num_heads: PositiveInt
  mlp_dim: PositiveInt
  patch_px: PositiveInt
  grid: PositiveInt
  variant: Annotated[str, one_of(*VARIANTS)]
  registers: Count
  gated: bool
  layers: tuple[int, ...]
  dark_below_fraction: ShareBelowOne

  def __post_init__(self):
    """Checks that the heads divide the width, and that there are the blocks that are read."""
    super().__post_init__()
    _require_whole_heads(self)
    holds = all(1 <= number <= self.depth for number in self.layers)
    self.require("layers", holds, f"must be numbers of blocks, 1 to {self.depth}")
    self.require("layers", len(set(self.layers)) == len(self.layers), "must name each block once")


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(Section):
  """The image encoder: a ResNet, or a ViT by the keys of `vit`."""

  name: Annotated[str, one_of(*IMAGE_ENCODERS)]
  weights: str
  mean: Annotated[
    tuple[float, ...], Rule(lambda value: len(value) in (1, 3), "must be 1 or 3 values")
  ]
  std: tuple[float, ...]
  depth: Annotated[int, one_of(*BLOCKS)]
  width: PositiveFloat
  stages: Annotated[int, one_of(1, 2, 3, 4)]
  output_stride: Annotated[int, one_of(4, 8, 16, 32)]
  dilated: bool
  norm: Annotated[str, one_of(*NORMS)]
  projector: Count
  adapter: Count
  vit: ViTConfig
  # A run's config may be older than these keys.
  lora_rank: Count = 0
  lora_blocks: Count = 0
  spread_stage: Count = 0

  @property
  def stride(self) -> int:
    """Pixels of the image along a side of a pixel of the grid."""
    return self.vit.patch_px if self.name == "vit" else self.output_stride

  def __post_init__(self):
    """Checks strides against stages, standard deviations against means, and low-rank updates."""
    super().__post_init__()
    channels, reach = len(self.mean), 2 ** (1 + self.stages)
    self.require(
      "std",
      len(self.std) == channels and min(self.std) > 0,
      f"must be {channels} positive values, as mean",
    )
    self.require(
      "output_stride",
      self.output_stride <= reach,
      f"{self.stages} stages reach a stride of {reach} only",
    )
    holds = self.name == "vit" or self.spread_stage <= self.stages
    self.require("spread_stage", holds, f"there are {self.stages} stages")
    for key, other in (("lora_rank", "lora_blocks"), ("lora_blocks", "lora_rank")):
      holds = self.name == "vit" or not getattr(self, key)
      self.require(key, holds, f"must be 0: a {self.name} has no attention (name='vit' has)")
      holds = getattr(self, other) > 0 or not getattr(self, key)
      self.require(key, holds, f"needs {other} above 0 too")
    run = max(self.vit.layers, default=self.vit.depth)
    rule = f"{run} blocks are run (vit.layers, else vit.depth)"
    self.require("lora_blocks", self.lora_blocks <= run, rule)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Section):
  """The text encoder."""

  name: Annotated[str, one_of(*TEXT_ENCODERS)]
  weights: str
  embed_dim: PositiveInt
  depth: PositiveInt
  num_heads: PositiveInt
  mlp_dim: PositiveInt
  max_position: PositiveInt
  across_sentences: bool
  dropout: ShareBelowOne
  last_layers: PositiveInt
  projector: Count

  def __post_init__(self):
    """Checks that the heads divide the width, and that there are as many layers as are read."""
    super().__post_init__()
    _require_whole_heads(self)
    self.require("last_layers", self.last_layers <= self.depth, f"there are {self.depth} layers")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
  """Both encoders and the space that they share."""

  image_px: PositiveInt
  embed_dim: PositiveInt
  scale_init: float
  scale_max: float
  dtype: Annotated[str, one_of("float32", "bfloat16")]
  remat: Annotated[str, one_of(*REMAT)]
  image: ImageEncoderConfig
  text: TextEncoderConfig

  def __post_init__(self):
    """Checks the first scale against the highest, and the image's side against the stride."""
    super().__post_init__()
    self.require(
      "scale_init", 1 <= self.scale_init <= self.scale_max, f"must be 1 to {self.scale_max}"
    )
    stride = self.image.stride
    self.require("image_px", self.image_px % stride == 0, f"must be a multiple of {stride}")


def _require_whole_heads(encoder: ViTConfig | TextEncoderConfig) -> None:
  encoder.require(
    "embed_dim",
    encoder.embed_dim % encoder.num_heads == 0,
    f"must be a multiple of {encoder.num_heads} heads",
  )
