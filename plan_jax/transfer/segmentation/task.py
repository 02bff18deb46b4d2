"""Segmentation: a decoder on a pre-trained image encoder, scored on the test split.

  python -m plan_jax.transfer --task=segmentation --workdir=runs/a --records=FOLDER --out=OUT

The encoder is the run's, frozen with its batch norm in inference mode (--frozen=False: fine-tuned),
or, for comparison, one of the same architecture with fresh weights: "random", which stays frozen,
or "supervised", which learns with the decoder. Regions without a mask count as their boxes. An
image without a region of a finding has none of it; where it may only be that nobody outlined one
(lungs, say), --empty_images=drop leaves such pairs of image and finding out of training and scores.
Into --out go checkpoints, metrics.jsonl, evaluation.json, example_scores/ (`python -m
plan_jax.compare OUT OUT` compares two) and overlays.png. The same command goes on where it stopped.
`evaluators.segmentation` says what is measured.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import jax
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example
from plan_jax.evaluators import segmentation
from plan_jax.evaluators.segmentation import MEAN_MASK, TASK, Overlaps
from plan_jax.results.contact_sheet import spread_over
from plan_jax.results.rows import RUN, scalar_name
from plan_jax.training.state import TrainState
from plan_jax.transfer import drawing
from plan_jax.transfer.encoder import pyramid
from plan_jax.transfer.examples import iterate, regions_in
from plan_jax.transfer.job import Job
from plan_jax.transfer.learner import Learner
from plan_jax.transfer.segmentation import decoder
from plan_jax.transfer.segmentation.data import Encode, training_masks
from plan_jax.transfer.task import HeadTask, Outcome


class Segmentation(HeadTask):
  """A learner of masks."""

  REQUIRED = "region of what is learned"
  OTHERWISE = "the last step is evaluated, nothing stops it early, and the threshold is .5"
  FOLLOWED = scalar_name(TASK, "Dice")

  def __init__(self, job: Job):
    """Reads the training masks and makes the decoder. Raises UserError as `HeadTask` does."""
    self.job, settings = job, job.settings
    self.source, self.findings, self._prior = training_masks(settings)
    self.keep_empty = settings.empty_images == "keep"
    self.encode = Encode(self.findings, settings.image_px, self.keep_empty)
    to_square = partial(decoder.to_square, size_px=settings.image_px)
    self.learner = Learner(
      job,
      decoder.Decoder(len(self.findings), settings.channels),
      read=partial(pyramid, strides=decoder.STRIDES),
      loss=lambda raw, batch: decoder.loss(to_square(raw), batch["masks"], batch["known"]),
      decode=lambda raw: (jax.nn.sigmoid(to_square(raw)),),
    )

  def findings_in(self, split: str) -> set[str]:
    """Returns the findings that a split has a region of."""
    return regions_in(self.job.source(split), self.findings)

  def maps(
    self, state: TrainState, examples: Iterable[Example]
  ) -> Iterator[tuple[Example, np.ndarray]]:
    """Yields the examples with the probabilities of the findings, float32 [K, H, W]."""
    side = self.job.settings.image_px
    for batch, pixels in images.decode_batches(examples, self.job.settings.batch_size):
      for example, (square,) in zip(batch, self.learner.predict(state, pixels), strict=True):
        maps = [
          images.unfit(square[..., k], example.height, example.width, side)
          for k in range(len(self.findings))
        ]
        yield example, np.clip(np.stack(maps), 0, 1)

  def measure(self, state: TrainState) -> float:
    """Returns the macro Dice of the validation split; NaN where no image has a region."""
    return segmentation.best_dice(self._overlaps(state, "validation"))

  def evaluate(self, fitted: TrainState, validate: bool) -> Outcome:
    """Scores the test split by thresholds of the validation split; writes overlays."""
    job = self.job

    def by_model(split: str) -> dict[str, Overlaps | None]:
      chance = segmentation.mean_masks(iterate(job.source(split)), self._prior, self.findings)
      return {RUN: self._overlaps(fitted, split), MEAN_MASK: self._scored(chance)}

    rows, scores = segmentation.segmentation_rows(
      by_model("test"),
      by_model("validation") if validate else None,
      data=job.data("test"),
      keep_empty=self.keep_empty,
      resamples=job.settings.resamples,
      seed=job.settings.seed,
    )
    thresholds = {row.group: row.value for row in rows if row.metric == "threshold"}
    source = job.source("test", where="regions")
    drawn = self.maps(fitted, (source[i] for i in spread_over(len(source))))
    drawing.write_outlines(job.out.path / "overlays.png", drawn, self.findings, thresholds)
    return Outcome(int(fitted.step), rows, scores)

  def _overlaps(self, state: TrainState, split: str) -> Overlaps | None:
    return self._scored(self.maps(state, iterate(self.job.source(split))))

  def _scored(self, maps: Iterable[tuple[Example, np.ndarray]]) -> Overlaps | None:
    return segmentation.score_segmentation(maps, self.findings, keep_empty=self.keep_empty)
