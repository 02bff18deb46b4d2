"""A segmenter: image encoder and decoder, and the maps it draws."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.training.state import TrainState
from plan_jax.transfer.encoder import pyramid
from plan_jax.transfer.examples import in_batches
from plan_jax.transfer.learner import Learner
from plan_jax.transfer.segmentation import decoder


class Segmenter:
  """A learner of masks."""

  def __init__(
    self,
    encoder: nn.Module,
    weights: dict,
    settings: ConfigDict,
    findings: Sequence[str],
    mesh: Mesh,
  ):
    """Args:
      encoder, weights, mesh: of `Learner`.
      settings: of `Learner`, and channels.
      findings: names.

    Raises UserError where the square or the batch does not divide.
    """
    side, coarse = settings.image_px, decoder.STRIDES[-1]
    if side % coarse:
      raise UserError(f"--image_px={side} is no multiple of {coarse}, the coarse stride")
    self.findings = tuple(findings)

    def loss(raw, batch):
      return decoder.loss(decoder.to_square(raw, side), batch["masks"], batch["known"])

    def tell(raw):
      return (jax.nn.sigmoid(decoder.to_square(raw, side)),)

    self.learner = Learner(
      encoder, weights, decoder.Decoder(len(findings), settings.channels), settings, mesh,
      read=partial(pyramid, strides=decoder.STRIDES), loss=loss, tell=tell,
    )  # fmt: skip

  def maps(
    self, state: TrainState, examples: Iterable[Example]
  ) -> Iterator[tuple[Example, np.ndarray]]:
    """The studies with the maps of the findings, float32 [K, H, W] in [0, 1]."""
    side = self.learner.settings.image_px
    for some in in_batches(examples, self.learner.settings.batch_size):
      told = self.learner.predict(state, [images.decode(example.image) for example in some])
      for example, (square,) in zip(some, told, strict=True):
        heats = [
          images.unfit(square[..., k], example.height, example.width, side)
          for k in range(len(self.findings))
        ]
        yield example, np.clip(np.stack(heats), 0, 1)
