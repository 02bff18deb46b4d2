"""CARZero (Lai et al., CVPR 2024; laihaoran/CARZero, read as code).

Image: a ViT, class token and patches. Text: GLoRIA's, the sum of a BERT's last four layers, of
which a word is the sum of its tokens; 97 places, the empty ones 0; the text is the mean over all
places. Behind a layer norm a decoder of cross-attention alone lets the text attend to class token
and patches, and the class token to text and words, the empty places too; a perceptron makes a
number of each, and their mean is the score of the pair. The map of a phrase is its attention on the
patches, the mean of all heads and layers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.methods.base import WordAttention
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import base
from plan_jax.baselines.base import Baseline, hidden_states, sums
from plan_jax.baselines.preprocessing import PaddedSquare
from plan_jax.baselines.tokenization import read_cleaned
from plan_jax.models.bert import Bert
from plan_jax.models.vit import ViT

_MEAN, _STD = (0.4978,) * 3, (0.2449,) * 3
_HEADS, _EPSILON = 4, 1e-5  # of the decoder
_WIDTHS = (1024, 512, 256, 1)  # of the perceptron
_MOST = 97  # places of a text


class ImageTokens(NamedTuple):
  """Features of images, float32, behind the decoder's norm.

  Attributes:
    pixels: patches.
    embedding: class token before that norm, brought to unit norm.
    first: class token.
  """

  pixels: Float[Array, "*B P D"]
  embedding: Float[Array, "*B D"]
  first: Float[Array, "*B D"]


class TextTokens(NamedTuple):
  """Features of texts, float32, behind the decoder's norm.

  Attributes:
    words: at the places that `Reading.owner` counts.
    mask: true for words.
    significance: 1 for words, 0 for other places.
    embedding: text before that norm, brought to unit norm.
    first: text.
  """

  words: Float[Array, "*B W D"]
  mask: Bool[Array, "*B W"]
  significance: Float[Array, "*B W"]
  embedding: Float[Array, "*B D"]
  first: Float[Array, "*B D"]


class DecoderLayer(nn.Module):
  """Cross-attention and a two-layer perceptron, each with layer norm before it and a residual.

  Attributes:
    num_heads, mlp_dim: as in a ViT.
  """

  num_heads: int
  mlp_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "I J D"], memory: Float[Array, "I L D"]
  ) -> tuple[Float[Array, "I J D"], Float[Array, "I J L"]]:
    """Lets J queries attend to the L tokens of each I; also returns the mean of the heads."""
    embed_dim = x.shape[-1]

    def heads(y, name):
      y = nn.Dense(embed_dim, name=name)(y)
      return y.reshape(*y.shape[:2], self.num_heads, -1)

    query = heads(nn.LayerNorm(_EPSILON, name="attention_norm")(x), "query")
    key, value = heads(memory, "key"), heads(memory, "value")
    logits = jnp.einsum("ijhd,ilhd->ijhl", query, key) / jnp.sqrt(query.shape[-1])
    share = jax.nn.softmax(logits, -1)
    y = jnp.einsum("ijhl,ilhd->ijhd", share, value).reshape(x.shape)
    x += nn.Dense(embed_dim, name="attention_out")(y)
    y = nn.LayerNorm(_EPSILON, name="mlp_norm")(x)
    y = nn.Dense(embed_dim, name="mlp_out")(nn.relu(nn.Dense(self.mlp_dim, name="mlp_in")(y)))
    return x + y, share.mean(2)


class Decoder(nn.Module):
  """Layers of cross-attention, and a perceptron that makes a number of each query.

  Attributes:
    depth, num_heads, mlp_dim: of the layers.
    widths: of the perceptron.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  widths: Sequence[int]

  @nn.compact
  def __call__(
    self, x: Float[Array, "I J D"], memory: Float[Array, "I L D"], norm: nn.Module
  ) -> tuple[Float[Array, "I J"], Float[Array, "I J L"]]:
    """Lets J queries attend to the L tokens of each I; also returns the mean attention.

    `norm` is behind the layers.
    """
    shares = []
    for number in range(1, self.depth + 1):
      x, share = DecoderLayer(self.num_heads, self.mlp_dim, name=f"block{number}")(x, memory)
      shares.append(share)
    x = norm(x)
    for number, width in enumerate(self.widths, 1):
      x = nn.Dense(width, name=f"head{number}")(x if number == 1 else nn.relu(x))
    return x[..., 0], sum(shares) / self.depth


class CarZero(nn.Module):
  """Both encoders and the decoder.

  Attributes:
    image, text, layers: arguments of ViT, Bert and Decoder.
    max_tokens: places of a text.
  """

  image: Mapping
  text: Mapping
  layers: Mapping
  max_tokens: int

  def setup(self):  # noqa: D102
    self.image_encoder = ViT(**self.image, mean=_MEAN, std=_STD)
    self.text_encoder = Bert(**self.text, last_layers=4)
    self.decoder_norm = nn.LayerNorm(_EPSILON)
    self.decoder = Decoder(**self.layers)

  def __call__(self, image: jax.Array, batch: dict) -> Float[Array, "B B"]:
    """Runs all."""
    return self.pair_scores(self.embed_images(image), self.embed_texts(batch))

  def embed_images(self, image: jax.Array) -> ImageTokens:
    """Embeds [B, S, S, 1] float32 in [0, 1]."""
    grid, first = self.image_encoder(image, class_too=True)
    pixels = self.decoder_norm(grid.reshape(len(grid), -1, grid.shape[-1]))
    return ImageTokens(pixels, l2_normalize(first), self.decoder_norm(first))

  def embed_texts(self, batch: dict) -> TextTokens:
    """Embeds arrays of `BaselineTexts` of full length."""
    words = sums(hidden_states(self.text_encoder, batch), batch["word_index"])
    text, mask = words.sum(1) / self.max_tokens, batch["word_mask"]
    weight = mask.astype(jnp.float32)
    norm = self.decoder_norm
    return TextTokens(norm(words), mask, weight, l2_normalize(text), norm(text))

  def pair_scores(self, image: ImageTokens, text: TextTokens) -> Float[Array, "I J"]:
    """Computes the score of each image with each text."""
    by_text, _ = self._decode(text.first, image.first, image.pixels)
    by_image, _ = self._decode(image.first, text.first, text.words)
    return (by_text + by_image.T) / 2

  def attend(self, image: ImageTokens, text: TextTokens) -> tuple[WordAttention, jax.Array]:
    """Computes the text's attention on the patches, alike for all words; without a batch axis."""
    queries, first, pixels = text.first[None], image.first[None], image.pixels[None]
    _, share = self._decode(queries, first, pixels)
    regions = jnp.broadcast_to(share[0, 0, 1:], (len(text.words), pixels.shape[1]))
    return WordAttention(regions, regions), text.significance

  def _decode(
    self, queries: Float[Array, "J D"], first: Float[Array, "I D"], others: Float[Array, "I L D"]
  ) -> tuple[Float[Array, "I J"], Float[Array, "I J l"]]:
    """Lets all queries attend to the tokens of each, first and others."""
    memory = jnp.concatenate([first[:, None], others], 1)
    queries = jnp.broadcast_to(queries, (len(memory), *queries.shape))
    return self.decoder(queries, memory, self.decoder_norm)


def _build(shapes: dict, settings: dict) -> CarZero:
  layers = base.layer_sizes(shapes, "decoder", {"num_attention_heads": _HEADS})
  heads = (shapes.get(f"decoder/head{i}/bias") for i in range(1, len(_WIDTHS) + 1))
  widths = [(shape or (width,))[0] for shape, width in zip(heads, _WIDTHS, strict=True)]
  image, text = base.image_sizes(shapes, "vit"), base.bert_sizes(shapes, settings)
  return CarZero(image, text, layers | {"widths": widths}, _MOST)


CARZERO = Baseline(
  "CARZero",
  _build,
  lambda network: PaddedSquare(),
  read_cleaned,
  max_tokens=_MOST,
  scores_pairs=True,
  vocabulary="Laihaoran/BioClinicalMPBERT",
  padded=True,
)
