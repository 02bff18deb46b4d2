"""The description of a model of two encoders, from which `Predictor` makes embeddings and maps.

A run is one `ModelSpec` (inference/run_spec.py), each baseline another (plan_jax/baselines).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, UInt8

from plan_jax.alignment.curriculum import Stage
from plan_jax.alignment.methods.base import WordAttention

Text = Sequence[str]  # its sentences


@runtime_checkable
class ImagePreprocessing(Protocol):
  """The way of an image to the encoder's square, and of a map back to the image.

  Attributes:
    input_px: side of the square.
  """

  input_px: int

  def fit(self, image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Brings an image to the square, in [0, 1]."""

  def to_image(
    self, grid: Float[np.ndarray, "rows columns"], shape: tuple[int, int], *, nearest: bool = False
  ) -> Float[np.ndarray, "H W"]:
    """Brings a map to an image of that shape; NaN where the image was cropped.

    Bilinear, or of the nearest cell.
    """


class EncodedTexts(NamedTuple):
  """Texts as arrays.

  Attributes:
    arrays: of each text, by name; of one shape for all texts of a call.
    left_out: count of what did not fit, or has no token.
  """

  arrays: list[dict[str, np.ndarray]]
  left_out: int


@runtime_checkable
class TextPreprocessing(Protocol):
  """The way of a text to the encoder's arrays."""

  def encode(self, texts: Sequence[Text], *, same_length: bool = False) -> EncodedTexts:
    """Arrays of N texts; with `same_length` they have one shape in all calls."""

  def knows(self, text: str) -> bool:
    """Tells whether the vocabulary knows a word of a text."""

  def words(self, text: Text) -> list[tuple[str, int]]:
    """The words as the model reads them, and the place of each among the encoder's words."""

  def report_words(self, text: Text) -> list[tuple[str, list[int]]]:
    """The words as `input_pipeline.text.reports` reads them, and the places of each."""


@dataclass(frozen=True)
class ModelSpec:
  """A model without its weights.

  The functions of arrays are pure; `Predictor` compiles them. `variables` are {"params",
  "batch_stats"}; `stage` is that of the curriculum, None for a baseline; `image` and `text` are
  features without a batch axis.

  Attributes:
    title: name of the model; empty for a run.
    images, texts: preprocessing on the host.
    grid: rows and columns of the pixels; maps may be finer, see `on_grid`.
    embed_images: (variables, float32 [B, S, S, 1]) -> `pixels` [B, P, D] and `embedding` [B, D], of
      unit norm.
    embed_texts: (variables, arrays [B, ...]) -> `words` [B, W, D], `mask` and `significance`
      [B, W], and `embedding` [B, D], of unit norm.
    prompt_embedding: features of texts -> what the mean of several prompts is taken of [B, D].
    attend: (variables, image, text, stage) -> the regions of the words, and the weight of each [W].
    ground_phrase: (variables, image, text, stage) -> map [P] >= 0 of any scale, and the signed
      similarity [P] of the phrase's own embedding.
    local_bytes: size of `Predictor.local_features` of a pair.
    pair_bytes: what the attention of a pair holds beside its maps.
    note: sentence about `EncodedTexts.left_out`, with "{}" for the count.
    scales: variables -> inverse temperatures of the global and of the local logits.
    stage_at: training step -> stage.
    has_local_scores: stage -> whether all images and texts can be compared by words and pixels.
    local_logits: (pixels [I, P, D], words [J, W, D], significance [J, W], scale, stage) -> [I, J].
    local_similarity: the same with scale 1, in units of `similarity_divisor`.
    similarity_divisor: fixed temperature that `local_similarity` contains.
    has_significance: whether the model weighs its words.
    pair_scores: (variables, features of I images, features of J texts) -> scores [I, J] that rank
      pairs, of a model that attends to an image anew for each text; None: their cosine ranks them.
    probability: (variables, cosine) -> probability that an image and a text belong together, of a
      model that is trained to tell it; None: it tells none.
    map_sigma, map_nearest: Gaussian on the grid (in cells) and interpolation of the model's
      published map, see evaluators.grounding_compat.
    matmul_precision: of products; None for the device's default.
  """

  title: str
  images: ImagePreprocessing
  texts: TextPreprocessing
  grid: tuple[int, int]
  embed_images: Callable
  embed_texts: Callable
  attend: Callable[..., tuple[WordAttention, jax.Array]]
  ground_phrase: Callable[..., tuple[jax.Array, jax.Array]]
  local_bytes: int
  note: str
  scales: Callable[[dict], tuple[float | None, float]]
  stage_at: Callable[[int], Stage | None] = lambda step: None
  has_local_scores: Callable[[Stage | None], bool] = lambda stage: False
  local_logits: Callable[..., jax.Array] | None = None
  local_similarity: Callable[..., jax.Array] | None = None
  similarity_divisor: float = 1.0
  pair_bytes: int = 0
  has_significance: bool = False
  prompt_embedding: Callable = lambda text: text.embedding
  pair_scores: Callable[..., jax.Array] | None = None
  probability: Callable[[dict, jax.Array], jax.Array] | None = None
  map_sigma: float = 0.0
  map_nearest: bool = False
  matmul_precision: str | None = None

  def on_grid(self, maps: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Brings maps [..., Q] to rows and columns, those of `grid` or whole multiples of them."""
    finer = math.isqrt(maps.shape[-1] // math.prod(self.grid))
    return maps.reshape(*maps.shape[:-1], *(finer * length for length in self.grid))
