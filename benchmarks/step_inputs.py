"""Sizes and batches of the training step that benchmarks.train_step measures."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Size:
  """Sizes of what is compared.

  Attributes:
    batch: images, and reports.
    image_px: side of an image.
    width: of the ResNet-50.
    tokens: of a report.
    vocabulary: of the BERT.
    embed_dim, depth, num_heads: of the BERT and the ViT.
    dtype: of the computation, "float32" or "bfloat16".
  """

  batch: int
  image_px: int = 224
  width: float = 1.0
  tokens: int = 112
  vocabulary: int = 8192
  embed_dim: int = 768
  depth: int = 12
  num_heads: int = 12
  dtype: str = "float32"

  @property
  def transformer(self) -> dict[str, int]:
    """Arguments of the BERT and the ViT."""
    sizes = {name: getattr(self, name) for name in ("embed_dim", "depth", "num_heads")}
    return sizes | {"mlp_dim": 4 * self.embed_dim}


SMALL = Size(2, 64, 0.125, 16, 100, 16, 2, 2)


def arrays(size: Size) -> dict[str, np.ndarray]:
  """Draws a batch as the loader makes it; every token is a word of one sentence."""
  rng = np.random.default_rng(0)
  position = np.tile(np.arange(size.tokens, dtype=np.int32), (size.batch, 1))
  return {
    "image": rng.random((size.batch, size.image_px, size.image_px, 1), np.float32),
    "tokens": rng.integers(0, size.vocabulary, position.shape, np.int32),
    "word_index": position,
    "sentence_index": np.zeros_like(position),
    "position": position,
    "word_mask": np.ones(position.shape, bool),
    "term": np.zeros(position.shape, bool),
    "half": np.zeros(position.shape, np.int32),
    "report_key": np.arange(1, size.batch + 1, dtype=np.int32),
    "study_key": np.arange(1, size.batch + 1, dtype=np.int32),
    "dropped_sentences": np.zeros(size.batch, np.int32),
  }
