"""CLIP (Radford et al., ICML 2021; openai/CLIP and transformers, read as code) and CheXzero (Tiu et
al., Nature Biomedical Engineering 2022; rajpurkarlab/CheXzero, read as code), which is CLIP's
ViT-B/32 fine-tuned on chest X-rays.

Image: the class token of a ViT, behind its last norm, through a projection. Text: byte pairs,
causal attention, the end token through a projection. The similarity is the cosine. Neither project
grounds: here a patch is its token behind the last norm, through the image's projection, and its
map the cosine with the text. CLIP takes the middle of an image, its shorter side at the network's
input; CheXzero a black square of 320 px around it, brought to 224.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base, tokenization
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, whole_texts
from plan_jax.baselines.preprocessing import MiddleOfShortSide, ReducedSquare
from plan_jax.models.text_transformer import TextTransformer
from plan_jax.models.vit import ViT

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Clip(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ViT and TextTransformer.
    embed_dim: D.
    mean, std: of pixels in [0, 1], one a channel.
  """

  image: Mapping
  text: Mapping
  embed_dim: int
  mean: Sequence[float]
  std: Sequence[float]

  def setup(self):  # noqa: D102
    self.image_encoder = ViT(**self.image, variant="clip", mean=self.mean, std=self.std)
    self.text_encoder = TextTransformer(**self.text)
    head = partial(nn.Dense, self.embed_dim, use_bias=False)
    self.image_head, self.text_head = head(), head()
    self.log_scale = self.param("log_scale", nn.initializers.zeros, ())

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]."""
    return embed_images(self.image_encoder, self.image_head, image)

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    hidden = self.text_encoder(batch["tokens"])
    end = (batch["sentence_index"] >= 0).sum(1) - 1
    return whole_texts(self.text_head(hidden[jnp.arange(len(end)), end]))


def embed_images(encoder: ViT, head: nn.Module, image: jax.Array) -> ImageEmbeddings:
  """Projects the patches and the class token of [B, S, S, 1]."""
  grid, pooled = encoder(image, class_too=True)
  pixels = head(grid.reshape(grid.shape[0], -1, grid.shape[-1]))
  return ImageEmbeddings(l2_normalize(pixels), l2_normalize(head(pooled)))


def _build(shapes: dict, settings: dict, *, mean: Sequence[float], std: Sequence[float]) -> Clip:
  image, text = base.image_sizes(shapes, "vit", settings), base.text_sizes(shapes, settings)
  projection = shapes.get("image_head/kernel") or (512,)
  return Clip(image, text, projection[-1], mean, std)


def middle(network: nn.Module) -> MiddleOfShortSide:
  """Takes the middle of an image, of the side of the network's ViT."""
  side = base.side_px(network)
  return MiddleOfShortSide(side, side, resampling="BICUBIC", spread=False)


def _square(network: Clip) -> ReducedSquare:
  cell = ReducedSquare.side_px / network.image["grid"]
  side = base.side_px(network)
  return ReducedSquare(network_px=side, cell_px=cell, first_px=(cell - 1) / 2)


CLIP = Baseline(
  "CLIP",
  partial(_build, mean=MEAN, std=STD),
  middle,
  partial(tokenization.read_plain, clean=tokenization.unescaped),
  max_tokens=77,
  attend=base.attend_whole,
  layout="clip",
  vocabulary="openai/clip-vit-base-patch32",
  special=tokenization.CLIP,
)
CHEXZERO = CLIP._replace(
  title="CheXzero",
  build=partial(_build, mean=(101.48761 / 255,) * 3, std=(83.43944 / 255,) * 3),
  images=_square,
)
