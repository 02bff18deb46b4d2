"""A classifier: image encoder and a dense layer on its mean over the grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images, loader
from input_pipeline.example import Example
from plan_jax.training.state import TrainState
from plan_jax.transfer.encoder import pooled
from plan_jax.transfer.learner import Learner

_UNKNOWN = -1


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Study -> one example of the batch: image [S, S, 1], labels [K] int32, 1, 0 or -1 (unknown).

  Attributes:
    findings: K names.
    image_px: S.
    augment: change of the image, None for none.
  """

  findings: tuple[str, ...]
  image_px: int
  augment: images.Augment | None

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images are changed as in pre-training."""
    pixels = images.decode(example.image)
    if self.augment is None:
      image = images.fit(pixels, self.image_px)
    else:
      image = self.augment(pixels, self.image_px, rng)
    labels = [example.labels.get(name, _UNKNOWN) for name in self.findings]
    return {"image": image[..., None], "labels": np.array(labels, np.int32)}


class Classifier:
  """A learner of labels; see `evaluators.retrieval.ImageEmbedder`."""

  def __init__(
    self,
    encoder: nn.Module,
    weights: dict,
    settings: ConfigDict,
    findings: Sequence[str],
    mesh: Mesh,
  ):
    """`encoder`, `weights`, `settings`, `mesh`: of `Learner`, which raises; `findings`: names."""
    self.learner = Learner(
      encoder, weights, Head(len(findings)), settings, mesh,
      read=pooled, loss=loss, tell=lambda raw: (jax.nn.sigmoid(raw),),
    )  # fmt: skip
    self._state: TrainState | None = None

  def take(self, state: TrainState) -> None:
    """Takes the state that `embed_images` is of."""
    self._state = state

  def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
    """Images uint8 [H, W] -> the probability of each finding, float32 [N, K]."""
    return np.stack([scores for (scores,) in self.learner.predict(self._state, images)])


class Head(nn.Module):
  """A dense layer on the features; `findings`: how many there are."""

  findings: int

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, C] -> [B, findings]."""
    del train  # the same in training
    return nn.Dense(self.findings, name="findings")(features)


def loss(raw: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
  """The mean cross entropy over the known labels of a batch, 0 where none is known.

  Args:
    raw: [B, K] float32.
    batch: labels [B, K] int32, 1, 0 or -1.

  Returns:
    The loss, and how many labels are known.
  """
  labels = batch["labels"]
  known = labels != _UNKNOWN
  entropy = optax.sigmoid_binary_cross_entropy(raw, labels.astype(jnp.float32))
  count = known.sum()
  return jnp.where(known, entropy, 0).sum() / jnp.maximum(count, 1), {"known": count}
