"""Object detection: a YOLOv3 head on a pre-trained image encoder, scored on the test split.

  python -m plan_jax.transfer --task=detection --workdir=runs/a --records=FOLDER --out=OUT

The encoder is the run's, frozen with its batch norm in inference mode (--frozen=False: fine-tuned),
or, for comparison, one of the same architecture with fresh weights: "random", which stays frozen,
or "supervised", which learns with the head. Into --out go checkpoints, metrics.jsonl,
evaluation.json, example_scores/ (`python -m plan_jax.compare OUT OUT` compares two),
predictions.json and truth.json as COCO has them, and overlays.png. The same command goes on where
it stopped. `evaluators.detection` says what is measured.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import boxes, terminal
from input_pipeline.example import Example
from input_pipeline.images import decode_batches
from input_pipeline.regions import example_boxes
from plan_jax.evaluators import detection
from plan_jax.metrics.detection import METRICS, MOST, Image, detection_metrics
from plan_jax.results import boxes as boxes_file
from plan_jax.results.rows import scalar_name
from plan_jax.runtime.logging import log
from plan_jax.training.state import TrainState
from plan_jax.transfer import drawing
from plan_jax.transfer.detection import yolo
from plan_jax.transfer.detection.coco import write_coco
from plan_jax.transfer.detection.data import Encode, training_boxes
from plan_jax.transfer.encoder import pyramid
from plan_jax.transfer.examples import iterate, regions_in
from plan_jax.transfer.job import Job
from plan_jax.transfer.learner import Learner
from plan_jax.transfer.task import HeadTask, Outcome

_METRIC = "mAP .4-.75"
_LEAST = 0.001  # score of a prediction
_CANDIDATES = 400  # highest predictions of an image that enter suppression
_OVERLAP = 0.5  # IoU above which a prediction suppresses another


class Detection(HeadTask):
  """A learner of boxes."""

  REQUIRED = "box of what is learned"
  OTHERWISE = "the last step is evaluated, and nothing stops it early"
  FOLLOWED = scalar_name(detection.TASK, _METRIC)

  def __init__(self, job: Job):
    """Reads the training boxes and makes the head. Raises UserError as `HeadTask` does."""
    self.job, settings = job, job.settings
    self.training = training_boxes(settings)
    self.findings, self.source = self.training.findings, self.training.examples
    self.encode = Encode(self.findings, settings.image_px, self.training.most)
    anchors = yolo.COCO_ANCHORS * (settings.image_px / yolo.COCO_PX)
    if settings.anchors == "boxes":
      anchors = yolo.fit_anchors(self.training.sizes)
    self._slots = yolo.make_slots(settings.image_px, anchors)
    self.learner = Learner(
      job,
      yolo.Head(len(self.findings), settings.channels),
      read=partial(pyramid, strides=yolo.STRIDES),
      loss=self._loss,
      decode=jax.vmap(self._predictions),
    )

  def findings_in(self, split: str) -> set[str]:
    """Returns the findings that a split has a region of."""
    return regions_in(self.job.source(split), self.findings)

  def predict(
    self, state: TrainState, images: Sequence[np.ndarray]
  ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Predicts the boxes of images uint8 [H, W].

    A score is objectness times that of the finding; after suppression the 100 highest are kept.

    Returns:
      Of each image, boxes [D, 4] in its pixels, scores [D], and places of findings [D].
    """
    side, out = self.job.settings.image_px, []
    for image, prediction in zip(images, self.learner.predict(state, images), strict=True):
      corners, scores, labels = prediction
      kept = scores > 0
      out.append((boxes.to_image(corners[kept], *image.shape, side), scores[kept], labels[kept]))
    return out

  def images(self, state: TrainState, examples: Iterable[Example]) -> list[Image]:
    """Returns the true and predicted boxes of the examples."""
    out = []
    for batch, pixels in decode_batches(examples, self.job.settings.batch_size):
      for example, predicted in zip(batch, self.predict(state, pixels), strict=True):
        truth = example_boxes(example, self.findings)
        shape = example.height, example.width
        out.append(Image(example.image_id, example.patient_id, *shape, *truth, *predicted))
    return out

  def measure(self, state: TrainState) -> float:
    """Returns the macro mAP .4-.75 of the validation split; NaN where no image has a box."""
    images = self.images(state, iterate(self.job.source("validation")))
    metrics = detection_metrics(images, len(self.findings), np.ones((1, len(images))))[0]
    values = metrics[:, METRICS.index(_METRIC)]
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

  def evaluate(self, fitted: TrainState, validate: bool) -> Outcome:
    """Scores the test split; writes all boxes, COCO's files and overlays."""
    del validate  # no threshold is chosen
    job, findings, test = self.job, self.findings, self.job.source("test")
    images = self.images(fitted, iterate(test))
    self._log_others(test)
    typical = detection.with_typical_boxes(images, self.training.typical, self.training.frequencies)
    settings = {
      "data": job.data("test"),
      "resamples": job.settings.resamples,
      "seed": job.settings.seed,
    }
    chance = {detection.TYPICAL: typical}
    rows = detection.detection_rows(images, findings, baselines=chance, **settings)
    if job.settings.compatibility:
      rows += detection.compat_rows(images, findings, **settings)
    scores = detection.detection_scores(images, findings)
    path = job.out.example_scores_of(detection.TASK).with_suffix(".npz")
    boxes_file.write(path, images, findings)
    write_coco(job.out.path, images, findings)
    drawing.write_boxes(job.out.path / "overlays.png", images, findings, test)
    return Outcome(int(fitted.step), rows, scores)

  def _log_others(self, test: Sequence[Example]) -> None:
    labels = (region.label for example in iterate(test) for region in example.regions)
    others = Counter(label for label in labels if label not in self.findings)
    if others:
      log.info(
        f"detection: {others.total()} test regions are of other findings: {terminal.join(others)}"
      )

  def _loss(self, raw: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
    loss = jax.vmap(partial(yolo.loss, slots=self._slots))
    total, parts = loss(raw, batch["boxes"], batch["labels"], batch["mask"])
    return total.mean(), jax.tree.map(jnp.mean, parts)

  def _predictions(self, raw: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns boxes, scores (0: none) and findings of one image, of a fixed number."""
    scores = jax.nn.sigmoid(raw[:, 4:5]) * jax.nn.sigmoid(raw[:, 5:])
    scores = jnp.where(scores >= _LEAST, scores, 0).ravel()
    scores, place = jax.lax.top_k(scores, min(_CANDIDATES, scores.size))
    slot, label = place // len(self.findings), place % len(self.findings)
    corners = yolo.decode(raw, self._slots)[slot]
    stays = yolo.suppress(corners, scores, label, _OVERLAP)
    scores, best = jax.lax.top_k(jnp.where(stays, scores, 0), min(MOST, scores.size))
    return corners[best], scores, label[best]
