"""BioViL and BioViL-T (Boecking et al., ECCV 2022; Bannur et al., CVPR 2023; hi-ml-multimodal, read
as code).

Image: ResNet-50 on the middle 480 px (BioViL) or 448 px (BioViL-T) of an image; BioViL-T reduces
its last map to 256 channels and, for an image without an earlier one, puts a learned vector beside
them in every cell. A projector (1x1 convolution, batch norm, ReLU, 1x1 convolution) makes 128
channels; the image is their mean. Text: CXR-BERT, [CLS] through its projection; the mean of several
prompts is taken before the norm. Patch and phrase: the cosine, smoothed on the grid by a Gaussian
of 1.5 cells where the project shows a map. There are no vectors of words: each word stands for the
whole text, and a map by words is that of the phrase.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base
from plan_jax.baselines.base import (
  Baseline,
  ImageEmbeddings,
  TextEmbeddings,
  hidden_states,
  whole_texts,
)
from plan_jax.baselines.preprocessing import MiddleOfShortSide
from plan_jax.baselines.tokenization import read_plain
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet

_PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


class BioVil(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ResNet and Bert; empty for an encoder that is not called.
    embed_dim: D.
    reduced_dim: channels that BioViL-T reduces the image encoder's to; 0: BioViL, which does not.
  """

  image: Mapping
  text: Mapping
  embed_dim: int
  reduced_dim: int = 0

  def setup(self):  # noqa: D102
    self.image_encoder = ResNet(**self.image, **_PLAIN, output_stride=32)
    self.text_encoder = Bert(**self.text, projector=self.embed_dim)
    if self.reduced_dim:
      self.reduced = nn.Dense(self.reduced_dim, use_bias=False)
      self.no_previous = self.param("no_previous", nn.initializers.zeros, (self.reduced_dim,))
    self.projector_in = nn.Dense(self.embed_dim, use_bias=False)
    self.projector_norm = nn.BatchNorm(use_running_average=True)
    self.projector_out = nn.Dense(self.embed_dim)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]."""
    x = self.image_encoder(image)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if self.reduced_dim:
      x = self.reduced(x)
      x = jnp.concatenate([x, jnp.broadcast_to(self.no_previous, x.shape)], -1)
    x = self.projector_out(nn.relu(self.projector_norm(self.projector_in(x))))
    return ImageEmbeddings(l2_normalize(x), l2_normalize(x.mean(1)))

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`; in the place of words is the text before its norm."""
    return whole_texts(hidden_states(self.text_encoder, batch)[:, 0])


def _build(shapes: dict, settings: dict) -> BioVil:
  """Builds one half: that of the image's file, or of the text's folder."""
  out = shapes.get("projector_out/bias") or shapes.get("text_encoder/projector_out/bias") or (128,)
  reduced = shapes.get("no_previous", (0,))
  image, text = base.image_sizes(shapes, "resnet"), base.bert_sizes(shapes, settings)
  return BioVil(image, text, out[0], reduced[0])


BIOVIL, BIOVIL_T = (
  Baseline(
    title,
    _build,
    lambda network, crop_px=crop_px: MiddleOfShortSide(crop_px),
    read_plain,
    max_tokens=512,
    attend=base.attend_whole,
    separate_text=True,
    fields=dict(map_sigma=1.5, map_nearest=True, prompt_embedding=lambda text: text.words[:, 0]),
  )
  for title, crop_px in (("BioViL", 480), ("BioViL-T", 448))
)
