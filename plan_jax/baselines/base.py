"""The common parts of the baselines: their features, and how each becomes a ModelSpec."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax.alignment.methods.base import WordAttention
from plan_jax.baselines.tokenization import BaselineTexts, Vocabulary
from plan_jax.inference.spec import ImagePreprocessing, ModelSpec
from plan_jax.models.weights.sizes import sizes


class ImageEmbeddings(NamedTuple):
  """Features of images, float32: pixels in a square grid, and an embedding of unit norm."""

  pixels: Float[jax.Array, "*B P D"]
  embedding: Float[jax.Array, "*B D"]


class TextEmbeddings(NamedTuple):
  """Features of texts, float32.

  Attributes:
    words: at the places that `Reading.owner` counts.
    mask: true for words.
    significance: weight of each word; zero for other places.
    embedding: unit norm.
  """

  words: Float[jax.Array, "*B W D"]
  mask: Bool[jax.Array, "*B W"]
  significance: Float[jax.Array, "*B W"]
  embedding: Float[jax.Array, "*B D"]


class Baseline(NamedTuple):
  """Another project's model before its weights are known.

  Attributes:
    title: of its project.
    build: (shapes, settings) -> the network, see models.weights.load.load_baseline; it has
      `embed_images` of [B, S, S, 1] and `embed_texts` of `BaselineTexts` arrays.
    images: preprocessing.
    spec: (network, variables, vocabulary) -> ModelSpec.
    separate_text: whether the text encoder is a folder of its own.
  """

  title: str
  build: Callable[[dict, dict], nn.Module]
  images: ImagePreprocessing
  spec: Callable[[nn.Module, dict, Vocabulary], ModelSpec]
  separate_text: bool = False


def positive_regions(similarity: Float[jax.Array, "W P"]) -> WordAttention:
  """Regions of the pixels with a positive similarity to each word, by that similarity."""
  return WordAttention(jax.nn.relu(similarity), similarity)


def baseline_spec(
  network: nn.Module,
  variables: dict,
  texts: BaselineTexts,
  phrase_similarity: Callable[[ImageEmbeddings, TextEmbeddings], jax.Array],
  *,
  title: str,
  **fields,
) -> ModelSpec:
  """Makes the ModelSpec of a baseline.

  Args:
    network: its encoders.
    variables: the weights, or their shapes.
    texts: preprocessing.
    phrase_similarity: signed similarity [P] of an image and a phrase without a batch axis.
    title: of its project.
    **fields: `images`, `attend`, and whatever else of the ModelSpec is the baseline's own.
  """

  def ground_phrase(image, text, stage):
    similarity = phrase_similarity(image, text)
    return jax.nn.relu(similarity), similarity

  fields = {
    "embed_images": partial(network.apply, method="embed_images"),
    "embed_texts": partial(network.apply, method="embed_texts"),
    "scales": lambda variables: (None, 1.0),
    **fields,
  }
  side = fields["images"].input_px
  image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  _, pixels, channels = jax.eval_shape(fields["embed_images"], variables, image).pixels.shape
  return ModelSpec(
    title=title,
    texts=texts,
    grid=(round(pixels**0.5),) * 2,
    ground_phrase=ground_phrase,
    local_bytes=2 * channels * (pixels + texts.max_tokens),
    note=f"{{}} texts were longer than the {texts.max_tokens} tokens that {title} reads, and were"
    " cut",
    has_local_scores=lambda stage: "local_logits" in fields,
    # Values of the original are in float32, which accelerators would round by default.
    matmul_precision="float32",
    **fields,
  )


def resnet(shapes: dict) -> dict:
  """Arguments of the ResNet that `shapes` has under "image_encoder"."""
  return sizes(_under(shapes, "image_encoder"), "resnet")


def vit(shapes: dict) -> dict:
  """Arguments of the ViT that `shapes` has under "image_encoder"."""
  return sizes(_under(shapes, "image_encoder"), "vit")


def bert(shapes: dict, settings: dict) -> dict:
  """Arguments of the BERT that `shapes` has under "text_encoder"; `settings` of a config.json."""
  arguments = {"vocabulary_size": 1} | sizes(_under(shapes, "text_encoder"), "bert")
  if "num_attention_heads" in settings:
    arguments["num_heads"] = settings["num_attention_heads"]
  return arguments | {"dropout": 0.0}


def _under(shapes: dict, module: str) -> dict:
  return {
    path.removeprefix(f"{module}/"): shape
    for path, shape in shapes.items()
    if path.startswith(f"{module}/")
  }
