"""RadZero (Park et al., NeurIPS 2025; deepnoid-ai/RadZero and its model on Hugging Face, read as
code).

Image: a frozen DINOv2 of chest X-rays at 518 px, then two transformer layers of DINOv2's kind over
its class token and patches. Text: the mean of the tokens of an MPNet. Behind both is the same layer
norm. The score of a pair is the cosine of the text with what it pools of the image: the sum of the
tokens of unit norm, class token and patches, weighted by the softmax of their cosines with the text
over a learned temperature. So no vector of the image alone ranks pairs. The map of a phrase is the
cosine of the patches.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base, tokenization
from plan_jax.baselines.base import Baseline, ImageEmbeddings, TextEmbeddings, whole_texts
from plan_jax.baselines.preprocessing import WholeImage
from plan_jax.models.mpnet import MPNet
from plan_jax.models.vit import VARIANTS, Block, ViT
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.settings import pixel_settings, section

_BICUBIC = 3  # as Pillow numbers it
_EPSILON = 1e-5  # of the last layer norm


class AlignLayers(nn.Module):
  """Transformer layers over the tokens of an image.

  Attributes:
    depth, num_heads, mlp_dim: as in a ViT.
  """

  depth: int
  num_heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
    """Applies the layers."""
    for number in range(1, self.depth + 1):
      sizes = self.num_heads, self.mlp_dim, jnp.float32, VARIANTS["dinov2"]
      x = Block(*sizes, name=f"block{number}")(x)
    return x


class RadZero(nn.Module):
  """Both encoders.

  Attributes:
    image, layers, text: arguments of ViT, AlignLayers and MPNet.
    side_px: of the images.
    mean, std: of pixels in [0, 1], one a channel.
  """

  image: Mapping
  layers: Mapping
  text: Mapping
  side_px: int
  mean: Sequence[float]
  std: Sequence[float]

  def setup(self):  # noqa: D102
    self.image_encoder = ViT(**self.image, variant="dinov2", mean=self.mean, std=self.std)
    self.align = AlignLayers(**self.layers)
    self.text_encoder = MPNet(**self.text)
    self.token_norm = nn.LayerNorm(_EPSILON)
    self.log_scale = self.param("log_scale", nn.initializers.zeros, ())

  def __call__(self, image: jax.Array, batch: dict) -> tuple[ImageEmbeddings, TextEmbeddings]:
    """Runs both."""
    return self.embed_images(image), self.embed_texts(batch)

  def embed_images(self, image: jax.Array) -> ImageEmbeddings:
    """Embeds [B, S, S, 1] float32 in [0, 1]; the embedding is the class token's."""
    grid, first = self.image_encoder(image, class_too=True)
    tokens = jnp.concatenate([first[:, None], grid.reshape(len(grid), -1, grid.shape[-1])], 1)
    tokens = l2_normalize(self.token_norm(self.align(tokens)))
    return ImageEmbeddings(tokens[:, 1:], tokens[:, 0])

  def embed_texts(self, batch: dict) -> TextEmbeddings:
    """Embeds arrays of `BaselineTexts`."""
    real = (batch["sentence_index"] >= 0)[..., None]
    mean = (base.hidden_states(self.text_encoder, batch) * real).sum(1) / real.sum(1)
    return whole_texts(self.token_norm(mean))

  def pair_scores(self, image: ImageEmbeddings, text: TextEmbeddings) -> Float[Array, "I J"]:
    """Computes the score of each image with each text."""
    return pair_scores(image, text, jnp.exp(self.log_scale))


def pair_scores(
  image: ImageEmbeddings, text: TextEmbeddings, scale: Float[Array, ""]
) -> Float[Array, "I J"]:
  """Computes the cosine of each text with what it pools of each image's tokens."""
  tokens = jnp.concatenate([image.embedding[:, None], image.pixels], 1)
  cosine = jnp.einsum("ild,jd->ijl", tokens, text.embedding)
  share = jax.nn.softmax(cosine * scale, -1)
  pooled = l2_normalize(jnp.einsum("ijl,ild->ijd", share, tokens))
  return jnp.einsum("ijd,jd->ij", pooled, text.embedding)


def pixel_arguments(settings: Mapping, patch_px: int, *, cropped: bool) -> dict:
  """Reads `side_px`, `mean` and `std` off a preprocessor_config.json.

  Raises WeightsError where it does not tell them, or tells of another way of resizing; `cropped`:
  to the middle of the shorter side, else the whole image.
  """
  file = Path("preprocessor_config.json")
  given = section(settings, file.stem)
  pixels = pixel_settings(given, file)
  if missing := {"image_px", "image.mean", "image.std"} - pixels.keys():
    raise WeightsError(
      f"{file} beside the weights does not tell {', '.join(sorted(missing))}: put that of the"
      " project's image encoder there"
    )
  side, edge = pixels["image_px"], section(given, "size").get("shortest_edge")
  fits = bool(given.get("do_center_crop")) == cropped and edge == (side if cropped else None)
  if side % patch_px or given.get("resample", _BICUBIC) != _BICUBIC or not fits:
    way = "the middle of the shorter side" if cropped else "the whole of it as a square"
    raise WeightsError(
      f"{file} makes another image of {side} px than ours, which is {way}, resized bicubically, in"
      f" whole patches of {patch_px} px: fetch it again"
    )
  return {"side_px": side, "mean": pixels["image.mean"], "std": pixels["image.std"]}


def _build(shapes: dict, settings: dict) -> RadZero:
  image = base.image_sizes(shapes, "vit", settings)
  layers = base.layer_sizes(shapes, "align", section(settings, "align_transformer_config"))
  pixels = pixel_arguments(settings, image.get("patch_px", 14), cropped=False)
  return RadZero(image, layers, base.bert_sizes(shapes, settings), **pixels)


RADZERO = Baseline(
  "RadZero",
  _build,
  lambda network: WholeImage(network.side_px, antialias=True),
  partial(tokenization.read_plain, clean=str),
  max_tokens=512,
  attend=base.attend_whole,
  vocabulary="the weights",
  special=tokenization.MPNET,
  scores_pairs=True,
)
