"""CoNNS (MICCAI 2026; DopamineLcy/conns, read as code): RadZero's design with other encoders.

Image: a frozen RAD-DINO of the middle of the image, two transformer layers over class token and
patches, a projection. Text: [CLS] of CXR-BERT, a projection. Score and map are RadZero's.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base, radzero, tokenization
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, whole_texts
from plan_jax.baselines.preprocessing import MiddleOfShortSide
from plan_jax.models.bert import Bert
from plan_jax.models.vit import ViT


class Conns(nn.Module):
  """Both encoders.

  Attributes:
    image, layers, text: arguments of ViT, AlignLayers and Bert.
    embed_dim: D.
    side_px, mean, std: as of RadZero.
  """

  image: Mapping
  layers: Mapping
  text: Mapping
  embed_dim: int
  side_px: int
  mean: Sequence[float]
  std: Sequence[float]

  def setup(self):  # noqa: D102
    self.image_encoder = ViT(**self.image, variant="dinov2", mean=self.mean, std=self.std)
    self.align = radzero.AlignLayers(**self.layers)
    self.text_encoder = Bert(**self.text)
    head = partial(nn.Dense, self.embed_dim, use_bias=False)
    self.image_head, self.text_head = head(), head()
    self.log_scale = self.param("log_scale", nn.initializers.zeros, ())

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]; the embedding is the class token's."""
    grid, first = self.image_encoder(image, class_too=True)
    tokens = jnp.concatenate([first[:, None], grid.reshape(len(grid), -1, grid.shape[-1])], 1)
    tokens = l2_normalize(self.image_head(self.align(tokens)))
    return ImageEmbeddings(tokens[:, 1:], tokens[:, 0])

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    return whole_texts(self.text_head(base.hidden_states(self.text_encoder, batch)[:, 0]))

  def pair_scores(self, image: ImageEmbeddings, text: TextEmbeddings) -> Float[Array, "I J"]:
    """Computes the score of each image with each text."""
    return radzero.pair_scores(image, text, jnp.exp(self.log_scale))


def _build(shapes: dict, settings: dict) -> Conns:
  image, layers = base.image_sizes(shapes, "vit"), base.layer_sizes(shapes, "align", {})
  pixels = radzero.pixel_arguments(settings, image.get("patch_px", 14), cropped=True)
  out = (shapes.get("text_head/kernel") or (768,))[-1]
  return Conns(image, layers, base.bert_sizes(shapes, {}), out, **pixels)


def _middle(network: Conns) -> MiddleOfShortSide:
  return MiddleOfShortSide(network.side_px, network.side_px, resampling="BICUBIC", spread=False)


CONNS = Baseline(
  "CoNNS",
  _build,
  _middle,
  partial(tokenization.read_plain, clean=str),
  max_tokens=128,
  attend=base.attend_whole,
  scores_pairs=True,
  vocabulary="BiomedVLP-CXR-BERT-specialized",
)
