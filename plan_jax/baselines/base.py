"""The common parts of the baselines: their features, and how each becomes a ModelSpec."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax.alignment.methods.base import positive_regions
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.baselines import tokenization
from plan_jax.baselines.tokenization import BaselineTexts, Reading, Vocabulary
from plan_jax.inference.spec import ImagePreprocessing, ModelSpec
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.settings import section
from plan_jax.models.weights.sizes import HEAD_DIM, sizes, usual_heads


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


def _embed_texts(network: nn.Module, variables: dict, batch: dict) -> TextEmbeddings:
  return network.apply(variables, batch, method="embed_texts")


class Baseline(NamedTuple):
  """Another project's model before its weights are known.

  Attributes:
    title: of its project.
    build: (shapes, settings) -> the network, see models.weights.load.load_baseline; it has
      `embed_images` of [B, S, S, 1] and `embed_texts` of `BaselineTexts` arrays.
    images: network -> preprocessing.
    reader, max_tokens: of texts, see `BaselineTexts`.
    attend: as of ModelSpec, but without variables; None: the network has an `attend` of image and
      text, whose first region is the map of a phrase too.
    phrase_similarity: signed similarity [P] of an image and a phrase without a batch axis.
    scores_pairs: whether the network has `pair_scores` of images and texts, as of ModelSpec.
    embed_texts: (network, variables, arrays) -> TextEmbeddings.
    global_scale: inverse temperature that the project fixes; that of a network with a parameter
      "log_scale" is learned; None without one.
    separate_text: whether the text encoder is a folder of its own.
    layout: `encoder` of its weights' layouts; empty: the baseline's name.
    vocabulary: whose folder the tokens come from.
    special: first, last and padding token, see `Vocabulary`.
    padded: as of BaselineTexts.
    fields: whatever else of the ModelSpec is the baseline's own.
  """

  title: str
  build: Callable[[dict, dict], nn.Module]
  images: Callable[[nn.Module], ImagePreprocessing]
  reader: Callable[..., Reading]
  max_tokens: int
  attend: Callable | None = None
  phrase_similarity: Callable = lambda image, text: image.pixels @ text.embedding
  scores_pairs: bool = False
  embed_texts: Callable[[nn.Module, dict, dict], TextEmbeddings] = _embed_texts
  global_scale: float | None = None
  separate_text: bool = False
  layout: str = ""
  vocabulary: str = "Bio_ClinicalBERT"
  special: tuple[str, str, str] = tokenization.BERT
  padded: bool = False
  fields: Mapping = {}

  def spec(self, network: nn.Module, variables: dict, vocabulary: Vocabulary) -> ModelSpec:
    """Makes the ModelSpec; `variables` are the weights, or their shapes."""
    max_tokens = min(self.max_tokens, network.text["max_position"])
    embed_images = partial(network.apply, method="embed_images")
    images = self.images(network)
    image = jax.ShapeDtypeStruct((1, *(images.input_px,) * 2, 1), jnp.float32)
    _, pixels, channels = jax.eval_shape(embed_images, variables, image).pixels.shape

    def attend(variables, image, text, stage):
      if self.attend is None:
        return network.apply(variables, image, text, method="attend")
      return self.attend(image, text, stage)

    def ground_phrase(variables, image, text, stage):
      if self.attend is None:
        regions, similarities = attend(variables, image, text, stage)[0]
        return regions[0], similarities[0]
      similarity = self.phrase_similarity(image, text)
      return jax.nn.relu(similarity), similarity

    def scales(variables):
      learned = variables["params"].get("log_scale")
      return self.global_scale if learned is None else jnp.exp(learned), 1.0

    return ModelSpec(
      title=self.title,
      images=images,
      texts=BaselineTexts(vocabulary, max_tokens, self.reader, self.padded),
      grid=(round(pixels**0.5),) * 2,
      embed_images=embed_images,
      embed_texts=partial(self.embed_texts, network),
      attend=attend,
      ground_phrase=ground_phrase,
      local_bytes=2 * channels * (pixels + max_tokens),
      note=f"{{}} texts were longer than the {max_tokens} tokens that {self.title} reads, and were"
      " cut",
      scales=scales,
      pair_scores=partial(network.apply, method="pair_scores") if self.scores_pairs else None,
      has_local_scores=lambda stage: "local_logits" in self.fields,
      # Values of the original are in float32, which accelerators would round by default.
      matmul_precision="float32",
      **self.fields,
    )


def whole_texts(embedding: Float[jax.Array, "B D"]) -> TextEmbeddings:
  """Makes features of texts without words, in whose place is the text before its norm."""
  none = jnp.zeros((len(embedding), 1))
  return TextEmbeddings(embedding[:, None], none > 0, none, l2_normalize(embedding))


def attend_whole(image: ImageEmbeddings, text: TextEmbeddings, stage):
  """One region, for the text as a whole."""
  return positive_regions((image.pixels @ text.embedding)[None]), jnp.ones(1)


def sums(tokens: jax.Array, owner: jax.Array) -> jax.Array:
  """Sums tokens [B, L, C] by word: [B, L, C]; `owner` is [B, L], -1 for none."""
  count = tokens.shape[1]
  return jax.nn.one_hot(owner, count, axis=1, dtype=tokens.dtype) @ tokens


def hidden_states(encoder: nn.Module, batch: dict) -> jax.Array:
  """Runs a BERT on arrays of `BaselineTexts`: [B, L, C] float32."""
  return encoder(batch["tokens"], batch["sentence_index"], batch["position"]).astype(jnp.float32)


def image_sizes(shapes: dict, encoder: str, settings: Mapping = {}) -> dict:
  """Arguments of the encoder, "resnet" or "vit", that `shapes` has under "image_encoder".

  Raises WeightsError as `text_sizes`.
  """
  arguments = sizes(shapes, encoder, "image_encoder")
  return _with_heads(arguments, section(settings, "vision_config"))


def side_px(network: nn.Module) -> int:
  """Side of the images that a network's ViT has learned positions for."""
  return network.image["grid"] * network.image["patch_px"]


def text_sizes(shapes: dict, settings: Mapping) -> dict:
  """Arguments of the text encoder that `shapes` has under "text_encoder".

  `settings` are those of a config.json. Raises WeightsError where the number of heads there does
  not divide the width.
  """
  arguments = {"vocabulary_size": 1} | sizes(shapes, "bert", "text_encoder")
  return _with_heads(arguments, section(settings, "text_config", settings))


def bert_sizes(shapes: dict, settings: Mapping) -> dict:
  """Arguments of the BERT, see `text_sizes`."""
  return text_sizes(shapes, settings) | {"dropout": 0.0}


def layer_sizes(shapes: dict, module: str, settings: Mapping) -> dict:
  """Depth, heads and width of the perceptrons of the ViT blocks that `shapes` has under `module`.

  Raises WeightsError as `text_sizes`.
  """
  known = sizes(shapes, "vit", module)
  width = (shapes.get(f"{module}/block1/mlp_out/bias") or (HEAD_DIM,))[0]
  arguments = _with_heads({"embed_dim": width, "num_heads": usual_heads(width)}, settings)
  return {
    "depth": known.get("depth", 1),
    "num_heads": arguments["num_heads"],
    "mlp_dim": known.get("mlp_dim", 4 * width),
  }


def _with_heads(arguments: dict, settings: Mapping) -> dict:
  if "num_attention_heads" in settings:
    heads, width = settings["num_attention_heads"], arguments.get("embed_dim", 0)
    if not isinstance(heads, int) or heads < 1 or width % heads:
      raise WeightsError(
        f"its config.json has num_attention_heads {heads!r}, which does not divide the width of"
        f" {width}: fetch the folder again"
      )
    arguments["num_heads"] = heads
  return arguments
