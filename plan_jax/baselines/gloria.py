"""GLoRIA (Huang et al., ICCV 2021; marshuang80/gloria, read as code).

Image: ResNet-50 on 224 px enlarged to 299; regions are stage 3 (19 x 19) through a 1x1 convolution
without bias, the image is stage 4, averaged, through a dense layer. Text: Bio_ClinicalBERT, its
last four layers summed; a word is the sum of its tokens, a report the mean over [CLS], words and
[SEP] (in its code over 97 places, pads zero: the same direction). Global similarity: the cosine.
Word and region: the dot product. Local score of training, with [CLS] as a word: S = 10 log sum_w
exp(5 cos(t_w, c_w)), c_w the regions' sum by softmax_r(4 softmax_w(s)). The local similarity of its
zero-shot code is log max_w exp(5 cos), of the words alone; that code also lets in [SEP] and pads,
as many as the text has letters, which are left out here (docs/baselines.md).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.methods.base import positive_regions
from plan_jax.alignment.methods.gloria import GloriaScore
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, hidden_states, sums
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.tokenization import read_cleaned
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet

ENLARGED = PaddedSquare(enlarged_px=299, cell_px=16 * 223 / 298, first_px=0.0)
_WORD_SCALE = 5.0


class Gloria(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ResNet and Bert.
    embed_dim: D, that of the text encoder.
  """

  image: Mapping
  text: Mapping
  embed_dim: int

  def setup(self):  # noqa: D102
    half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    self.image_encoder = ResNet(**self.image, **half, output_stride=32)
    self.text_encoder = Bert(**self.text, last_layers=4)
    self.image_head = nn.Dense(self.embed_dim)
    self.pixel_head = nn.Dense(self.embed_dim, use_bias=False)

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, 299, 299, 1] float32 in [0, 1]."""
    last, third = self.image_encoder(image, tapped=3)
    pixels = third.reshape(third.shape[0], -1, third.shape[-1])
    return ImageEmbeddings(
      self.pixel_head(pixels), l2_normalize(self.image_head(last.mean((1, 2))))
    )

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    words = sums(hidden_states(self.text_encoder, batch), batch["word_index"])
    mask = batch["word_mask"]
    return TextEmbeddings(words, mask, mask.astype(jnp.float32), l2_normalize(words.mean(1)))


def local_logits(pixels, words, significance, scale, stage) -> jax.Array:
  """The local score of training [I, J], [CLS] being a word, of features in any precision."""
  score = GloriaScore()
  pixels, words = pixels.astype(jnp.float32), words.astype(jnp.float32)
  weights = significance + (jnp.arange(significance.shape[-1]) == 0)
  return score.logits(pixels, words, weights, 1.0)[0]


def local_similarity(pixels, words, significance, scale, stage) -> jax.Array:
  """The local similarity of its zero-shot classification [I, J]; 0 for a text without words."""
  score, mask = GloriaScore(), significance > 0
  cosine = score.cosines(pixels, words, mask)
  best = jnp.where(mask, cosine, -1.0).max(-1)
  return jnp.where(mask.any(-1), _WORD_SCALE * best, 0)


def _attend(image: ImageEmbeddings, text: TextEmbeddings, stage):
  return positive_regions(text.words @ image.pixels.T), text.significance


def _build(shapes: dict, settings: dict) -> Gloria:
  text = base.bert_sizes(shapes, settings)
  return Gloria(base.image_sizes(shapes, "resnet"), text, text.get("embed_dim", 768))


GLORIA = Baseline(
  "GLoRIA",
  _build,
  lambda network: ENLARGED,
  read_cleaned,
  max_tokens=97,
  attend=_attend,
  phrase_similarity=lambda image, text: l2_normalize(image.pixels) @ text.embedding,
  global_scale=10.0,
  fields=dict(local_logits=local_logits, local_similarity=local_similarity),
)
