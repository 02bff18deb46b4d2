"""What tells one baseline from another."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from plan_jax.alignment.methods.base import WordAttention
from plan_jax.baselines.preprocessing import MiddleOfShortSide, PaddedSquare
from plan_jax.baselines.tokenization import Reader, Vocabulary
from plan_jax.models.weights.sizes import sizes


class Images(NamedTuple):
  """Features of images, float32: pixels [B, P, D] in a square grid, embedding [B, D] of unit norm."""

  pixels: jax.Array
  embedding: jax.Array


class Texts(NamedTuple):
  """Features of texts, float32.

  Attributes:
    words: [B, W, D], where `text.arrays` numbers them; W is 1 where the baseline has none.
    mask: [B, W] bool, which are words.
    significance: [B, W], the say of each; zero where there is no word.
    embedding: [B, D], unit norm.
  """

  words: jax.Array
  mask: jax.Array
  significance: jax.Array
  embedding: jax.Array


class Kind(NamedTuple):
  """A baseline; the functions of an image and a text take Images and Texts without a batch axis.

  Attributes:
    title: of its project.
    build: (shapes, settings) -> the network, see pretrained.load_baseline; it has `embed_images` of
      [B, S, S, 1] and `embed_texts` of `text.arrays`.
    preprocessing: of images.
    reader: (vocabulary, positions that the text encoder has) -> how texts are read.
    phrase: a phrase's signed similarity [P] to the pixels.
    look: what words see in an image, and their say [W]; None: the baseline has no vectors of words.
    embed_texts: (network, variables, arrays) -> Texts, where the network's own is not enough.
    global_scale: the global contrast's inverse temperature.
    logits: pixels [I, P, D], words [J, W, D], their say [J, W] -> local logits [I, J]; None: the
      baseline compares no words with the pixels of other images.
    similar: the same, without a temperature.
    say: of Texts, [N, W] above 0 for the words of `logits`.
    has_significance: whether words have a weight of their own.
    sigma, nearest: of the map that the project itself makes, see evaluators.grounding_compat.
  """

  title: str
  build: Callable[[dict, dict], nn.Module]
  preprocessing: PaddedSquare | MiddleOfShortSide
  reader: Callable[[Vocabulary, int], Reader]
  phrase: Callable[[Images, Texts], jax.Array]
  look: Callable[[Images, Texts], tuple[WordAttention, jax.Array]] | None = None
  embed_texts: Callable[[nn.Module, dict, dict], Texts] | None = None
  global_scale: float | None = None
  logits: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
  similar: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
  say: Callable[[Texts], jax.Array] | None = None
  has_significance: bool = False
  sigma: float = 0.0
  nearest: bool = False


def resnet(shapes: dict) -> dict:
  """Arguments of the ResNet that `shapes` has under "image_encoder"."""
  return sizes(_under(shapes, "image_encoder"), "resnet")


def vit(shapes: dict) -> dict:
  """Arguments of the ViT that `shapes` has under "image_encoder"."""
  return sizes(_under(shapes, "image_encoder"), "vit")


def bert(shapes: dict, settings: dict) -> dict:
  """Arguments of the BERT that `shapes` has under "text_encoder"; `settings` of a config.json."""
  found = {"vocabulary_size": 1} | sizes(_under(shapes, "text_encoder"), "bert")
  if "num_attention_heads" in settings:
    found["num_heads"] = settings["num_attention_heads"]
  return found | {"dropout": 0.0}


def _under(shapes: dict, module: str) -> dict:
  return {
    path.removeprefix(f"{module}/"): shape
    for path, shape in shapes.items()
    if path.startswith(f"{module}/")
  }
