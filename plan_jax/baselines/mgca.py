"""MGCA (Wang et al., NeurIPS 2022; HKU-MedAI/MGCA, read as code).

Image: ResNet-50 as GLoRIA's (stage 3 for regions, stage 4 averaged for the image), or ViT-B/16 on
224 px (its patches, and its class token). Text: six layers of Bio_ClinicalBERT, in BLIP's form,
which has no token types and is called with every position 0 (the loaded weights have the embedding
of position 0 at all places, see models.weights.projects.BLIP_BERT); a word is the sum of its
tokens, the report [CLS]. Each of the four goes through two dense layers with batch norm and is
brought to unit norm. Similarities are cosines. A word's weight is the attention that [CLS] pays its
tokens in the last layer, the mean over the heads; that code gives each word the attention of the
tokens after it by one, which is put right here, as no similarity depends on it. Words are compared
with the regions of their own image only: there is no local score of pairs.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.methods.base import positive_regions
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, hidden_states, sums
from plan_jax.baselines.gloria import ENLARGED
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.tokenization import read_cleaned
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT

_HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)


class Mlp(nn.Module):
  """Head: two dense layers, each with batch norm, the last without scale and bias.

  Attributes:
    hidden, out: widths.
  """

  hidden: int
  out: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., C] to [..., out]."""
    norm = partial(nn.BatchNorm, use_running_average=True)
    x = nn.Dense(self.hidden, name="hidden")(x)
    x = nn.relu(norm(name="hidden_norm")(x))
    x = nn.Dense(self.out, name="out")(x)
    return norm(use_scale=False, use_bias=False, name="out_norm")(x)


class Mgca(nn.Module):
  """Both encoders.

  Attributes:
    image: arguments of ResNet or ViT.
    text: of Bert.
    is_vit: which.
    hidden, embed_dim: widths of the heads, and of the shared space D.
  """

  image: Mapping
  text: Mapping
  is_vit: bool
  hidden: int
  embed_dim: int

  def setup(self):  # noqa: D102
    self.image_encoder = (
      ViT(**self.image, **_HALF) if self.is_vit else ResNet(**self.image, **_HALF, output_stride=32)
    )
    self.text_encoder = Bert(**self.text)
    head = partial(Mlp, self.hidden, self.embed_dim)
    self.image_head, self.pixel_head = head(), head()
    self.report_head, self.word_head = head(), head()

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1], S 299 for a ResNet and 224 for a ViT."""
    if self.is_vit:
      grid, pooled = self.image_encoder(image, class_too=True)
    else:
      last, grid = self.image_encoder(image, tapped=3)
      pooled = last.mean((1, 2))
    pixels = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    return ImageEmbeddings(
      l2_normalize(self.pixel_head(pixels)), l2_normalize(self.image_head(pooled))
    )

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`; all words weigh alike, see `weighted_texts`."""
    words = sums(hidden_states(self.text_encoder, batch), batch["word_index"])
    mask = batch["word_mask"]
    embedding = l2_normalize(self.report_head(words[:, 0]))
    return TextEmbeddings(
      l2_normalize(self.word_head(words)), mask, mask.astype(jnp.float32), embedding
    )


def weighted_texts(network: Mgca, variables: dict, batch: dict) -> TextEmbeddings:
  """Embeds texts; a word's significance is its share of the attention that [CLS] pays words."""
  texts, state = network.apply(variables, batch, method="embed_texts", mutable=["attention"])
  last = f"layer{network.text['depth']}"
  attention = state["attention"]["text_encoder"][last]["first"][0]
  word_attention = sums(attention[..., None], batch["word_index"])[..., 0]
  word_attention = jnp.where(texts.mask, word_attention, 0)
  total = word_attention.sum(-1, keepdims=True)
  return texts._replace(significance=word_attention / jnp.where(total > 0, total, 1))


def _attend(image: ImageEmbeddings, text: TextEmbeddings, stage):
  similarity = l2_normalize(text.words) @ l2_normalize(image.pixels).T
  return positive_regions(similarity), text.significance


def _build(shapes: dict, settings: dict, *, is_vit: bool) -> Mgca:
  image = base.image_sizes(shapes, "vit" if is_vit else "resnet")
  (hidden,) = shapes.get("image_head/hidden/bias", (2048,))
  (embed_dim,) = shapes.get("image_head/out/bias", (128,))
  return Mgca(image, base.bert_sizes(shapes, settings), is_vit, hidden, embed_dim)


MGCA_RESNET = Baseline(
  "MGCA (ResNet)",
  partial(_build, is_vit=False),
  lambda network: ENLARGED,
  read_cleaned,
  max_tokens=112,
  attend=_attend,
  embed_texts=weighted_texts,
  global_scale=1 / 0.07,
  fields=dict(has_significance=True),
)
MGCA_VIT = MGCA_RESNET._replace(
  title="MGCA (ViT)",
  build=partial(_build, is_vit=True),
  images=lambda network: PaddedSquare(cell_px=16.0, first_px=7.5),
)
