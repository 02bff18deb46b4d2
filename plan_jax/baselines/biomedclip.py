"""BiomedCLIP (Zhang et al., NEJM AI 2025; mlfoundations/open_clip, read as code).

Image: the class token of timm's ViT-B/16 on the middle 224 px of an image, through a projection.
Text: PubMedBERT, [CLS] through two dense layers with GELU between. The similarity is the cosine. It
does not ground: here a patch is its token behind the last norm, through the image's projection, and
its map the cosine with the text.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax

from plan_jax.baselines import base, clip, tokenization
from plan_jax.baselines.base import (
  Baseline,
  ImageEmbeddings,
  TextEmbeddings,
  hidden_states,
  whole_texts,
)
from plan_jax.models.bert import Bert
from plan_jax.models.layers.gelu import gelu
from plan_jax.models.vit import ViT


class BiomedClip(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ViT and Bert.
    hidden: width of the text's first dense layer.
    embed_dim: D.
  """

  image: Mapping
  text: Mapping
  hidden: int
  embed_dim: int

  def setup(self):  # noqa: D102
    self.image_encoder = ViT(**self.image, mean=clip.MEAN, std=clip.STD)
    self.text_encoder = Bert(**self.text)
    dense = partial(nn.Dense, use_bias=False)
    self.image_head, self.text_out = dense(self.embed_dim), dense(self.embed_dim)
    self.text_in = dense(self.hidden)
    self.log_scale = self.param("log_scale", nn.initializers.zeros, ())

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]."""
    return clip.embed_images(self.image_encoder, self.image_head, image)

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    first = hidden_states(self.text_encoder, batch)[:, 0]
    return whole_texts(self.text_out(gelu(self.text_in(first))))


def _build(shapes: dict, settings: dict) -> BiomedClip:
  hidden, embed_dim = (
    (shapes.get(f"{name}/kernel") or (width,))[-1]
    for name, width in (("text_in", 640), ("image_head", 512))
  )
  image, text = base.image_sizes(shapes, "vit"), base.bert_sizes(shapes, settings)
  return BiomedClip(image, text, hidden, embed_dim)


BIOMEDCLIP = Baseline(
  "BiomedCLIP",
  _build,
  clip.middle,
  partial(tokenization.read_plain, clean=tokenization.unescaped),
  max_tokens=256,
  attend=base.attend_whole,
  vocabulary="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
)
