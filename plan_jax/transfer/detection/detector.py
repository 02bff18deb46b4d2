"""A detector: image encoder and YOLO head, and what it predicts."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import boxes, images
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.regions import example_boxes
from plan_jax.evaluators import detection
from plan_jax.metrics.detection import METRICS, MOST, Image, detection_metrics
from plan_jax.results import rows
from plan_jax.transfer.detection import yolo
from plan_jax.transfer.detection.suppression import suppress
from plan_jax.transfer.encoder import pyramid
from plan_jax.transfer.examples import in_batches
from plan_jax.transfer.learner import Learner, LearnerState

FOLLOWED = "mAP .4-.75"
BEST = rows.scalar_name(detection.TASK, FOLLOWED)
_LEAST = 0.001  # score of a prediction
_CANDIDATES = 400  # that suppression looks at, the highest of an image
_OVERLAP = 0.5  # IoU above which it suppresses


class Detector:
  """A learner of boxes."""

  def __init__(
    self,
    encoder: nn.Module,
    weights: dict,
    settings: ConfigDict,
    anchors: np.ndarray,
    findings: Sequence[str],
    mesh: Mesh,
  ):
    """Args:
      encoder, weights, mesh: of `Learner`.
      settings: of `Learner`, and channels.
      anchors: [9, 2], pixels of the square.
      findings: names.

    Raises UserError where the square or the batch does not divide.
    """
    if settings.image_px % yolo.STRIDES[-1]:
      raise UserError(
        f"--image_px={settings.image_px} is no multiple of {yolo.STRIDES[-1]}, the coarse stride"
      )
    self.findings = tuple(findings)
    self._slots = yolo.make_slots(settings.image_px, anchors)
    self.learner = Learner(
      encoder, weights, yolo.Head(len(findings), settings.channels), settings, mesh,
      read=partial(pyramid, strides=yolo.STRIDES), loss=self._loss, tell=jax.vmap(self._tell),
    )  # fmt: skip

  def predict(
    self, state: LearnerState, images: Sequence[np.ndarray]
  ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of images uint8 [H, W]: boxes [D, 4] in image pixels, scores [D], findings' places [D].

    The score is objectness times that of the finding; after suppression the 100 highest are kept.
    """
    side, out = self.learner.settings.image_px, []
    told = self.learner.predict(state, images)
    for image, (corners, scores, labels) in zip(images, told, strict=True):
      kept = scores > 0
      out.append((boxes.to_image(corners[kept], *image.shape, side), scores[kept], labels[kept]))
    return out

  def images(self, state: LearnerState, examples: Iterable[Example]) -> list[Image]:
    """True and predicted boxes of the studies."""
    out = []
    for some in in_batches(examples, self.learner.settings.batch_size):
      found = self.predict(state, [images.decode(example.image) for example in some])
      for example, predicted in zip(some, found, strict=True):
        truth = example_boxes(example, self.findings)
        shape = example.height, example.width
        out.append(Image(example.image_id, example.patient_id, *shape, *truth, *predicted))
    return out

  def _loss(self, raw: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
    one = partial(yolo.loss, slots=self._slots)
    total, parts = jax.vmap(one)(raw, batch["boxes"], batch["labels"], batch["mask"])
    return total.mean(), jax.tree.map(jnp.mean, parts)

  def _tell(self, raw: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one image: boxes, scores (0: none) and findings, of fixed number."""
    scores = jax.nn.sigmoid(raw[:, 4:5]) * jax.nn.sigmoid(raw[:, 5:])
    scores = jnp.where(scores >= _LEAST, scores, 0).ravel()
    scores, place = jax.lax.top_k(scores, min(_CANDIDATES, scores.size))
    slot, label = place // len(self.findings), place % len(self.findings)
    corners = yolo.decode(raw, self._slots)[slot]
    stays = suppress(corners, scores, label, _OVERLAP)
    scores, best = jax.lax.top_k(jnp.where(stays, scores, 0), min(MOST, scores.size))
    return corners[best], scores, label[best]


def measure(detector: Detector, state: LearnerState, examples: Iterable[Example]) -> float:
  """Macro mAP .4-.75, without intervals; NaN where no image has a box."""
  images = detector.images(state, examples)
  figures = detection_metrics(images, len(detector.findings), np.ones((1, len(images))))[0]
  figures = figures[:, METRICS.index(FOLLOWED)]
  known = figures[~np.isnan(figures)]
  return float(known.mean()) if len(known) else math.nan
