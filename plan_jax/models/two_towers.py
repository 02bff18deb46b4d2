"""The two towers: pixels V and image v; words T, their significance r, and report t.

Pixels and words leave as they are; a method of alignment brings them to unit norm if it wants that.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plan_jax.alignment.l2_normalize import unit
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT

IMAGE_ENCODERS = {"resnet": ResNet, "vit": ViT}


class ImageFeatures(NamedTuple):
  """Features of images, float32.

  Attributes:
    pixels: [B, P, D], rows of the grid one after another.
    image: [B, D], unit norm.
    image_pixels: [B, P, D], unit norm: what each pixel alone would make of the image.
  """

  pixels: jax.Array
  image: jax.Array
  image_pixels: jax.Array


class TextFeatures(NamedTuple):
  """Features of reports, float32.

  Attributes:
    words: [B, W, D], zero where there is no word.
    mask: [B, W] bool.
    significance: [B, W] in (0, 1): the say a word has (zero where there is no word).
    attention: [B, W] >= 0, sums to one: the share of a word in the report's vector.
    report: [B, D], unit norm (zero for a report without words).
  """

  words: jax.Array
  mask: jax.Array
  significance: jax.Array
  attention: jax.Array
  report: jax.Array


class Plan(nn.Module):
  """Image encoder, text encoder and the learned temperatures of the two contrasts.

  Attributes:
    image: keyword arguments of the image encoder.
    text: keyword arguments of Bert.
    image_name: of IMAGE_ENCODERS.
    embed_dim: D, width of the shared space.
    scale_init, scale_max: the temperatures' inverse at the start, and the clip.
    remat: a name of remat.REMAT.
    dtype: of the encoders' computation; features and parameters are float32.
  """

  image: dict
  text: dict
  image_name: str = "resnet"
  embed_dim: int = 128
  scale_init: float = 10.0
  scale_max: float = 100.0
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32

  def setup(self):  # noqa: D102
    encoder = IMAGE_ENCODERS[self.image_name]
    self.image_encoder = encoder(**self.image, remat=self.remat, dtype=self.dtype)
    self.text_encoder = Bert(**self.text, remat=self.remat, dtype=self.dtype)
    self.pixel_norm = nn.LayerNorm()
    self.pixel_head = nn.Dense(self.embed_dim)
    self.image_head = nn.Dense(self.embed_dim)
    self.word_head = nn.Dense(self.embed_dim)
    self.report_head = nn.Dense(self.embed_dim)
    # Starts at one half for every word: the contrast decides who gets more.
    self.significance_head = nn.Dense(1, kernel_init=nn.initializers.zeros)
    # Apart from the significance: what a report denies tells it from others, but lights no pixel.
    self.attention_head = nn.Dense(1, kernel_init=nn.initializers.zeros)
    # In logarithms, [global, local].
    self.log_scale = self.param(
      "log_scale", nn.initializers.constant(jnp.log(self.scale_init)), (2,)
    )

  def __call__(
    self, batch: dict, *, train: bool = False
  ) -> tuple[ImageFeatures, TextFeatures, jax.Array]:
    """Both encoders over a batch of the loader, and the scales."""
    return (
      self.embed_images(batch["image"], train=train),
      self.embed_texts(batch, train=train),
      self.scales(),
    )

  def embed_images(self, image: jax.Array, *, train: bool = False) -> ImageFeatures:
    """[B, H, W, 1] float32 in [0, 1] -> ImageFeatures."""
    x = self.image_encoder(image, train=train).astype(jnp.float32)
    # Over a pixel's own channels: a norm over the image would tell every pixel what the others show.
    x = self.pixel_norm(x.reshape(x.shape[0], -1, x.shape[-1]))
    return ImageFeatures(
      self.pixel_head(x), unit(self.image_head(x.mean(1))), unit(self.image_head(x))
    )

  def embed_texts(self, batch: dict, *, train: bool = False) -> TextFeatures:
    """tokens, word_index, sentence_index, position [B, L]; word_mask [B, W] -> TextFeatures."""
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
    report = jnp.einsum("bw,bwd->bd", attention, x)
    any_word = mask.any(-1, keepdims=True)
    return TextFeatures(
      words=jnp.where(mask[..., None], self.word_head(x), 0),
      mask=mask,
      significance=significance,
      attention=attention,
      report=jnp.where(any_word, unit(self.report_head(report)), 0),
    )

  def scales(self) -> jax.Array:
    """[2] inverse temperatures (global, local); `bounded` keeps them in [1, scale_max]."""
    return jnp.exp(self.log_scale)


def bounded(params: dict, scale_max: float) -> dict:
  """Parameters with the scales brought back to [1, scale_max].

  Applied after each update: a clip inside the model would stop the gradient that leads back.
  """
  return params | {"log_scale": jnp.clip(params["log_scale"], 0, jnp.log(scale_max))}


def image_encoder(image) -> ResNet | ViT:
  """The encoder that `config.model.image` names, in float32."""
  return IMAGE_ENCODERS[image.name](**_image_arguments(image))


def text_encoder(text, vocabulary_size: int) -> Bert:
  """The encoder of `config.model.text`, in float32."""
  return Bert(**_text_arguments(text, vocabulary_size))


def build(model, vocabulary_size: int, *, freeze: tuple[str, ...] = ()) -> Plan:
  """The encoders of `config.model`, for a vocabulary; `freeze` as in train_state.make_step."""
  image = _image_arguments(model.image)
  if model.image.name == "resnet":
    image["freeze"] = tuple(freeze)
  return Plan(
    image=image,
    text=_text_arguments(model.text, vocabulary_size),
    image_name=model.image.name,
    embed_dim=model.embed_dim,
    scale_init=model.scale_init,
    scale_max=model.scale_max,
    remat=model.remat,
    dtype=jnp.dtype(model.dtype),
  )


def _image_arguments(image) -> dict:
  arguments = dict(image)
  name, vit = arguments.pop("name"), arguments.pop("vit")
  del arguments["weights"]
  return dict(vit, mean=image.mean, std=image.std) if name == "vit" else arguments


def _text_arguments(text, vocabulary_size: int) -> dict:
  arguments = dict(text, vocabulary_size=vocabulary_size)
  del arguments["weights"]
  return arguments
