"""SigLIP (Zhai et al., ICCV 2023) and MedSigLIP (Sellergren et al. 2025, arXiv 2507.05201), as
transformers has them; how MedSigLIP resizes is of its model card.

Image: a ViT without class token, pooled by attention of a learned query. Text: attention both ways
over 64 places, padding too, the last of them through a projection. The score of a pair is
sigmoid(scale cosine + bias), each of its own. Neither project grounds: here a patch is what the
pooling makes of its token alone, and its map the cosine with the text.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base, tokenization
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, whole_texts
from plan_jax.baselines.preprocessing import WholeImage
from plan_jax.models.text_transformer import TextTransformer
from plan_jax.models.vit import VARIANTS, AttentionPooling, ViT
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.settings import section


class Siglip(nn.Module):
  """Both encoders.

  Attributes:
    image, text: arguments of ViT and TextTransformer.
    embed_dim: D.
  """

  image: Mapping
  text: Mapping
  embed_dim: int

  def setup(self):  # noqa: D102
    half, image = (0.5,) * 3, self.image
    self.image_encoder = ViT(**image, variant="siglip", mean=half, std=half)
    sizes = image["num_heads"], image["mlp_dim"]
    self.pooling = AttentionPooling(*sizes, jnp.float32, VARIANTS["siglip"])
    self.text_encoder = TextTransformer(**self.text, variant="siglip", causal=False)
    self.text_head = nn.Dense(self.embed_dim)
    self.log_scale = self.param("log_scale", nn.initializers.zeros, ())
    self.logit_bias = self.param("logit_bias", nn.initializers.zeros, ())

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]."""
    grid = self.image_encoder(image)
    tokens = grid.reshape(grid.shape[0], -1, grid.shape[-1])
    alone = self.pooling(tokens.reshape(-1, 1, tokens.shape[-1])).reshape(tokens.shape)
    return ImageEmbeddings(l2_normalize(alone), l2_normalize(self.pooling(tokens)))

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts` of full length."""
    return whole_texts(self.text_head(self.text_encoder(batch["tokens"])[:, -1]))


def probability(variables: dict, cosine: jax.Array) -> jax.Array:
  """Computes the probability that an image and a text belong together, of their cosine."""
  params = variables["params"]
  return jax.nn.sigmoid(jnp.exp(params["log_scale"]) * cosine + params["logit_bias"])


def _build(shapes: dict, settings: dict) -> Siglip:
  if not settings:
    raise WeightsError("name the folder that it lies in: config.json tells the attention heads")
  names = ("vision_config", "text_config")
  heads = {"num_attention_heads": 12}  # what transformers leaves out
  settings = {name: heads | section(settings, name) for name in names}
  image, text = base.image_sizes(shapes, "vit", settings), base.text_sizes(shapes, settings)
  return Siglip(image, text, (shapes.get("text_head/bias") or (768,))[0])


def _whole(network: Siglip, antialias: bool) -> WholeImage:
  return WholeImage(base.side_px(network), antialias)


SIGLIP = Baseline(
  "SigLIP",
  _build,
  partial(_whole, antialias=True),
  partial(tokenization.read_plain, clean=tokenization.canonical),
  max_tokens=64,
  attend=base.attend_whole,
  layout="siglip",
  vocabulary="the weights",
  special=tokenization.SIGLIP,
  padded=True,
  fields=dict(probability=probability),
)
MEDSIGLIP = SIGLIP._replace(title="MedSigLIP", images=partial(_whole, antialias=False))
