"""The pre-trained model: an image encoder and a text encoder into one shared space.

Pixels and words leave with any norm; a method of alignment normalises them if it wants that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.similarity import l2_normalize
from plan_jax.models.adapter import Adapter
from plan_jax.models.bert import Bert
from plan_jax.models.mpnet import MPNet
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT

IMAGE_ENCODERS = {"resnet": ResNet, "vit": ViT}
TEXT_ENCODERS = {"bert": Bert, "mpnet": MPNet}


class ImageFeatures(NamedTuple):
  """Features of images, float32.

  Attributes:
    pixels: rows of the grid one after another.
    embedding: unit norm.
    global_pixels: unit norm: the embedding that each pixel alone would give.
    features: of the image encoder, or of an earlier stage of it on a finer grid, C channels, in its
      dtype; None where nothing needs them.
  """

  pixels: Float[Array, "B P D"]
  embedding: Float[Array, "B D"]
  global_pixels: Float[Array, "B P D"]
  features: Float[Array, "B Q C"] | None


class TextFeatures(NamedTuple):
  """Features of reports, float32.

  Attributes:
    words: zero for padding.
    mask: which words are words.
    significance: in (0, 1), weight of a word in the local score (zero for padding).
    attention: >= 0, sums to one: share of a word in the embedding.
    embedding: unit norm (zero for a report without words).
  """

  words: Float[Array, "B W D"]
  mask: Bool[Array, "B W"]
  significance: Float[Array, "B W"]
  attention: Float[Array, "B W"]
  embedding: Float[Array, "B D"]


class TwoTowers(nn.Module):
  """Image encoder, text encoder and the learned temperatures of the two contrasts.

  Attributes:
    image: keyword arguments of the image encoder.
    text: keyword arguments of the text encoder.
    image_name: a name of IMAGE_ENCODERS.
    text_name: a name of TEXT_ENCODERS.
    adapter: number of transformer layers between the image encoder and its heads.
    spread_stage: of a ResNet, the stage that `ImageFeatures.features` are of; 0: the last.
    embed_dim: D, width of the shared space.
    scale_init, scale_max: inverse temperatures at the start, and their upper bound.
    remat: a name of remat.REMAT.
    dtype: of the encoders' computation; features and parameters are float32.
  """

  image: Mapping[str, Any]
  text: Mapping[str, Any]
  image_name: str = "resnet"
  text_name: str = "bert"
  adapter: int = 0
  spread_stage: int = 0
  embed_dim: int = 128
  scale_init: float = 10.0
  scale_max: float = 100.0
  remat: str = "none"
  dtype: Any = jnp.float32

  def setup(self):  # noqa: D102
    image, text = IMAGE_ENCODERS[self.image_name], TEXT_ENCODERS[self.text_name]
    self.image_encoder = image(**self.image, remat=self.remat, dtype=self.dtype)
    self.text_encoder = text(**self.text, remat=self.remat, dtype=self.dtype)
    self.image_adapter = Adapter(self.adapter, self.remat, self.dtype)
    self.pixel_norm = nn.LayerNorm()
    self.pixel_head = nn.Dense(self.embed_dim)
    self.word_head = nn.Dense(self.embed_dim)
    # Flax draws the first weights by these names: others would change every result on record.
    self.image_head = nn.Dense(self.embed_dim, name="film_head")
    self.text_head = nn.Dense(self.embed_dim, name="report_head")
    # Starts at one half for every word: the contrast decides which gets more.
    self.significance_head = nn.Dense(1, kernel_init=nn.initializers.zeros)
    # Apart from the significance: what a report denies tells it from others, but has no pixels.
    self.attention_head = nn.Dense(1, kernel_init=nn.initializers.zeros)
    # In logarithms, [global, local].
    self.log_scale = self.param(
      "log_scale", nn.initializers.constant(jnp.log(self.scale_init)), (2,)
    )

  def __call__(
    self, batch: dict, *, train: bool = False
  ) -> tuple[ImageFeatures, TextFeatures, jax.Array]:
    """Encodes a batch of the loader; returns the scales too."""
    return (
      self.embed_images(batch["image"], train=train),
      self.embed_texts(batch, train=train),
      self.scales(),
    )

  def embed_images(
    self, image: Float[ArrayLike, "B H W 1"] | Float[ArrayLike, "B P C"], *, train: bool = False
  ) -> ImageFeatures:
    """Embeds images in [0, 1], or stored features of the encoder, which then does nothing."""
    if image.ndim != 4:
      features = x = image.astype(self.dtype)
    elif self.spread_stage:
      x, features = self.image_encoder(image, train=train, tapped=self.spread_stage)
    else:
      features = x = self.image_encoder(image, train=train)
    x, features = (y.reshape(y.shape[0], -1, y.shape[-1]) for y in (x, features))
    x = self.image_adapter(x).astype(jnp.float32)
    if self.adapter and self.image.get("dark_below_fraction"):
      # A patch without features gets none of the whole image's either.
      x = jnp.where(features.any(-1, keepdims=True), x, 0)
    # Over a pixel's own channels: a norm over the image would tell every pixel of the others.
    x = self.pixel_norm(x)
    return ImageFeatures(
      pixels=self.pixel_head(x),
      embedding=l2_normalize(self.image_head(x.mean(1))),
      global_pixels=l2_normalize(self.image_head(x)),
      features=features,
    )

  def embed_texts(self, batch: dict, *, train: bool = False) -> TextFeatures:
    """Embeds texts: tokens, word_index, sentence_index, position [B, L]; word_mask [B, W]."""
    mask = batch["word_mask"]
    x = self.text_encoder(
      batch["tokens"], batch["sentence_index"], batch["position"], train=train
    ).astype(jnp.float32)
    # A word is the mean of its tokens.
    owner = jax.nn.one_hot(batch["word_index"], mask.shape[1], axis=1)
    x = owner @ x / jnp.maximum(owner.sum(-1, keepdims=True), 1)
    significance = jnp.where(mask, nn.sigmoid(self.significance_head(x)[..., 0]), 0)
    attention = jnp.where(mask, nn.sigmoid(self.attention_head(x)[..., 0]), 0)
    attention /= jnp.maximum(attention.sum(-1, keepdims=True), 1e-6)
    pooled = jnp.einsum("bw,bwd->bd", attention, x)
    any_word = mask.any(-1, keepdims=True)
    return TextFeatures(
      words=jnp.where(mask[..., None], self.word_head(x), 0),
      mask=mask,
      significance=significance,
      attention=attention,
      embedding=jnp.where(any_word, l2_normalize(self.text_head(pooled)), 0),
    )

  def scales(self) -> Float[Array, "2"]:
    """Returns the inverse temperatures (global, local); `bounded` keeps them in [1, scale_max]."""
    return jnp.exp(self.log_scale)


def bounded(params: dict, scale_max: float) -> dict:
  """Clips the scales among the parameters to [1, scale_max].

  Applied after each update: a clip inside the model would stop the gradient that leads back.
  """
  return params | {"log_scale": jnp.clip(params["log_scale"], 0, jnp.log(scale_max))}


def image_encoder(image) -> ResNet | ViT:
  """Builds the image encoder from its settings (name, weights, vit, the rest), in float32."""
  return IMAGE_ENCODERS[image.name](**_image_arguments(image))


def text_encoder(text, vocabulary_size: int) -> Bert:
  """Builds the text encoder from its settings (name, weights, the rest), in float32."""
  return TEXT_ENCODERS[text.name](**_text_arguments(text, vocabulary_size))


def build(model, vocabulary_size: int, *, freeze: Sequence[str] = ()) -> TwoTowers:
  """Builds the model from its settings, for a vocabulary; `freeze` as in `freezing`."""
  image = _image_arguments(model.image)
  if model.image.name == "resnet":
    image["freeze"] = tuple(freeze)
  return TwoTowers(
    image=image,
    text=_text_arguments(model.text, vocabulary_size),
    image_name=model.image.name,
    text_name=model.text.name,
    adapter=model.image.adapter,
    # A run's config may be older than the key.
    spread_stage=model.image.get("spread_stage", 0) if model.image.name == "resnet" else 0,
    embed_dim=model.embed_dim,
    scale_init=model.scale_init,
    scale_max=model.scale_max,
    remat=model.remat,
    dtype=jnp.dtype(model.dtype),
  )


def _image_arguments(image) -> dict:
  # A config that is read back from a file has lists.
  arguments = dict(image, mean=tuple(image.mean), std=tuple(image.std))
  name, vit = arguments.pop("name"), arguments.pop("vit")
  del arguments["weights"], arguments["adapter"]
  arguments.pop("spread_stage", 0)
  # A run's config may be older than these keys.
  lora = {key: arguments.pop(key, 0) for key in ("lora_rank", "lora_blocks")}
  if name == "resnet":
    return arguments
  pixels = {key: arguments[key] for key in ("mean", "std")}
  return dict(vit, layers=tuple(vit.layers)) | pixels | lora


def _text_arguments(text, vocabulary_size: int) -> dict:
  arguments = dict(text, vocabulary_size=vocabulary_size)
  del arguments["name"], arguments["weights"]
  return arguments
