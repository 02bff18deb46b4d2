"""The ModelSpec of a run: its own encoders, grounding as the stage of training does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from input_pipeline import images
from input_pipeline.text.tokenizer import Encoded, Tokenizer
from plan_jax.alignment import curriculum
from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods.base import Alignment
from plan_jax.alignment.methods.by_name import METHODS, pair_score
from plan_jax.alignment.methods.gloria import GloriaScore
from plan_jax.alignment.methods.plan import smoothed
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.inference.spec import EncodedTexts, ModelSpec, Text
from plan_jax.models.two_towers import ImageFeatures, TwoTowers, image_encoder


@dataclass(frozen=True)
class Letterbox:
  """The whole image in a square, its margin black.

  Attributes:
    input_px: side of the square.
    first_px: place of the first cell's centre in the square, see `images.unfit`.
  """

  input_px: int
  first_px: float | None

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the square, in [0, 1]."""
    return images.fit(image, self.input_px)

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map to an image of that shape."""
    return images.unfit(grid, *shape, self.input_px, first_px=self.first_px, nearest=nearest)


@dataclass(frozen=True)
class RunTexts:
  """Reports in the run's vocabulary; sentences that do not fit into the arrays are left out.

  Attributes:
    tokenizer: of the run.
    max_tokens, max_words: room of the arrays.
    is_general: whether the vocabulary came with a text encoder, and was not made of the reports.
  """

  tokenizer: Tokenizer
  max_tokens: int
  max_words: int
  is_general: bool = False

  def encode(self, texts: Sequence[Text], *, same_length: bool = False) -> EncodedTexts:
    """Arrays of N texts, all of one length; counts the sentences left out.

    Of the whole length, or of a half, a quarter, ... of it, whichever holds the longest text.
    """
    encoded = [self._encode(text) for text in texts]
    halvings = 0 if same_length else min(map(self._halvings, encoded), default=0)
    tokens, words = self.max_tokens >> halvings, self.max_words >> halvings
    arrays = [
      {name: x[: words if name == "word_mask" else tokens] for name, x in text.arrays().items()}
      for text in encoded
    ]
    return EncodedTexts(arrays, sum(text.dropped for text in encoded))

  def knows(self, text: str) -> bool:
    """Tells whether the vocabulary knows a word of a text."""
    return self.tokenizer.knows(text, is_general=self.is_general)

  def words(self, text: Text) -> list[tuple[str, int]]:
    """The words that fit, in order."""
    return [(word, w) for w, word in enumerate(self._encode(text).words)]

  def report_words(self, text: Text) -> list[tuple[str, list[int]]]:
    """The words that fit, each at its one place."""
    return [(word, [w]) for word, w in self.words(text)]

  def _halvings(self, text: Encoded) -> int:
    """Counts how often both lengths can be halved and hold the text, and 16 tokens and 8 words."""
    tokens = int(np.flatnonzero(text.sentence_index >= 0).max(initial=0)) + 1
    lengths = (self.max_tokens, max(16, tokens)), (self.max_words, max(8, len(text.words)))
    return max(0, min((most // length).bit_length() - 1 for most, length in lengths))

  def _encode(self, text: Text) -> Encoded:
    return self.tokenizer.encode(text, max_tokens=self.max_tokens, max_words=self.max_words)


def run_spec(model: TwoTowers, tokenizer: Tokenizer, config: ConfigDict) -> ModelSpec:
  """Describes the model of a run, at every point of its training."""
  evaluation, alignment = config.evaluation, Alignment.read_at("alignment", config.alignment)
  stages = curriculum.stages(config.curriculum)
  encoder = image_encoder(config.model.image)
  side = -(-config.model.image_px // encoder.output_stride)
  local_logits = partial(_local_logits, alignment)
  return ModelSpec(
    title="",
    images=Letterbox(config.model.image_px, encoder.first_px),
    texts=RunTexts(
      tokenizer,
      evaluation.max_tokens,
      evaluation.max_words,
      is_general=bool(config.text.tokenizer or config.model.text.weights),
    ),
    grid=(side, side),
    embed_images=partial(embed_images, model, alignment),
    embed_texts=partial(model.apply, method=model.embed_texts),
    attend=partial(_attend, alignment),
    ground_phrase=partial(_ground_phrase, alignment),
    local_bytes=2 * config.model.embed_dim * (side**2 + evaluation.max_words),
    note=(
      "{} sentences found no room (raise config.evaluation.max_tokens and max_words), or have words"
      " without a token"
    ),
    scales=_scales,
    # A step's weights are those of the stage that made them.
    stage_at=lambda step: curriculum.stage_at(stages, max(0, step - 1), config.train.steps),
    has_local_scores=lambda stage: pair_score(alignment, stage) is not None,
    local_logits=local_logits,
    local_similarity=local_logits,
    # GLoRIA's published score contains its temperature.
    similarity_divisor=GloriaScore.scale if alignment.method == "gloria" else 1.0,
    pair_bytes=12 * spread_pixels(config) ** 2,  # weights of a step, before and after the softmax
    has_significance=True,
  )


def spread_pixels(config: ConfigDict) -> int:
  """Counts the pixels of the grid on which regions spread; 0 where they do not."""
  encoder, model = image_encoder(config.model.image), config.model
  if config.alignment.method != "plan" or not config.alignment.spread_steps:
    return 0
  stage = model.image.get("spread_stage", 0) if model.image.name == "resnet" else 0
  stride = min(2 ** (stage + 1), encoder.output_stride) if stage else encoder.output_stride
  return (-(-model.image_px // stride)) ** 2


def embed_images(model: TwoTowers, alignment: Alignment, variables: dict, image) -> ImageFeatures:
  """Embeds images as `ModelSpec.embed_images`."""
  features = model.apply(variables, image, method=model.embed_images)
  features = features._replace(pixels=smoothed(features, alignment))
  spreads = alignment.method == "plan" and alignment.spread_steps > 0
  return features if spreads else features._replace(features=None)


def _scales(variables: dict) -> tuple[np.float32, np.float32]:
  log_scale = variables["params"]["log_scale"]
  return np.exp(log_scale[0]), np.exp(log_scale[1])


def _attend(alignment: Alignment, variables: dict, image, text, stage: Stage):
  del variables
  # Trained on the global contrast alone, only the global embeddings know anything.
  method = METHODS[alignment.method if stage.local_weight else "none"]
  weights = curriculum.word_weights(stage, text.significance[None], text.mask[None])[0]
  return method.attend(image, text, stage, alignment), weights


def _ground_phrase(alignment: Alignment, variables: dict, image, text, stage: Stage):
  del variables
  attention = METHODS["none"].attend(image, text, stage, alignment)  # alike for all words
  return attention.weight[0], attention.similarity[0]


def _local_logits(
  alignment: Alignment, pixels, words, significance, scale, stage: Stage
) -> jax.Array:
  """Logits [I, J]; GLoRIA has its own temperature."""
  score = pair_score(alignment, stage)
  pixels, words = pixels.astype(jnp.float32), words.astype(jnp.float32)
  if alignment.method == "plan":
    pixels, words = l2_normalize(pixels), l2_normalize(words)
    weights = curriculum.word_weights(stage, significance, significance > 0)
  else:
    weights, scale = (significance > 0).astype(jnp.float32), jnp.float32(1)
  return score.logits(pixels, words, weights, scale)[0]
