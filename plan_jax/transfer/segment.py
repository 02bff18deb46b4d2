"""Segmentation on a pre-trained image encoder: trains a decoder, evaluates it on the test split.

  python -m plan_jax.transfer.segment --workdir=runs/a --records=FOLDER --out=runs/a/segmentation/NAME

The encoder is that of the run, frozen with its batch norm in inference mode (--frozen=False: fine-
tuned), or, for comparison, of the same architecture with fresh weights: "random", which stays as it
is, or "supervised", which learns with the decoder. Regions without a mask are taken for their
boxes. An image without a region of a finding has none of it; where it may only be that nobody
outlined one (lungs, say), --empty_images=drop leaves such pairs of image and finding out of training
and scores.
Into --out go checkpoints, metrics.jsonl, evaluation.json, example_scores/ (`python -m plan_jax.compare OUT
OUT` compares two) and overlays.png. The same command goes on where it stopped. What is measured is
written at the top of plan_jax/evaluators/segmentation.py.
"""

import argparse

from ml_collections import ConfigDict

from input_pipeline import records
from plan_jax.evaluators import segmentation
from plan_jax.evaluators.segmentation import MEAN_MASK, TASK
from plan_jax.results import rows as results
from plan_jax.results.contact_sheet import spread_over
from plan_jax.results.rows import RUN
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import make_mesh
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import command
from plan_jax.transfer.encoder import data_name
from plan_jax.transfer.examples import iter_of, regions_in
from plan_jax.transfer.fitting import fit
from plan_jax.transfer.segmentation import drawing
from plan_jax.transfer.segmentation.data import Encode, training
from plan_jax.transfer.segmentation.segmenter import Segmenter

ENCODERS = ("run", "random", "supervised")
FOLLOWED = results.scalar_name(TASK, "Dice")


def segment(arguments: argparse.Namespace) -> list[results.Row]:
  """Trains, or goes on, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  command.check(arguments)
  config = ConfigDict(Workdir(arguments.workdir).read_config())
  settings = command.training_settings(arguments, config, ("channels", "empty_images"))
  folder, seed, keep_empty = arguments.records, settings.seed, settings.empty_images == "keep"
  encoder = command.encoder_for(arguments, config, settings.image_px)
  out = command.claim(arguments, settings, encoder)
  source = training(
    folder, findings=settings.findings, fraction=settings.fraction, seed=seed, keep_empty=keep_empty
  )
  findings = source.findings
  model = Segmenter(encoder.module, encoder.weights, settings, findings, make_mesh(-1, 1))

  def scores_of(split: str, state) -> segmentation.Overlaps | None:
    examples = iter_of(records.RecordSource(folder, split))
    return segmentation.score_segmentation(
      model.maps(state, examples), findings, keep_empty=keep_empty
    )

  def floor_of(split: str) -> segmentation.Overlaps | None:
    examples = iter_of(records.RecordSource(folder, split))
    return segmentation.score_segmentation(
      segmentation.mean_masks(examples, source.prior, findings), findings, keep_empty=keep_empty
    )

  def findings_in(split: str) -> set[str]:
    return regions_in(records.RecordSource(folder, split), findings)

  measure = None
  if command.has_validation(
    arguments, findings_in, "region of what is learned",
    "the last step is evaluated, nothing stops it early, and the threshold is .5",
  ):  # fmt: skip

    def measure(state):
      return segmentation.best_dice(scores_of("validation", state))

  encode = Encode(findings, settings.image_px, keep_empty)
  state = fit(model.learner, out, source.images, encode, followed=FOLLOWED, measure=measure)
  scores, validation = {RUN: scores_of("test", state), MEAN_MASK: floor_of("test")}, None
  if measure:
    validation = {RUN: scores_of("validation", state), MEAN_MASK: floor_of("validation")}
  rows, units = segmentation.segmentation_rows(
    scores, validation, data=data_name(folder, "test"), keep_empty=keep_empty,
    resamples=arguments.resamples, seed=seed,
  )  # fmt: skip
  thresholds = {row.group: row.value for row in rows if row.metric == "threshold"}
  test = records.RecordSource(folder, "test", where="regions")
  shown = (test[i] for i in spread_over(len(test)))
  path = out.path / "overlays.png"
  drawing.write(path, model.maps(state, shown), findings, thresholds)
  command.finish(out, arguments, int(state.step), rows, units, TASK)
  log.info(f"\nfilms with outlines (true in cyan, found in orange): {path}")
  return rows


def parser() -> argparse.ArgumentParser:
  """The command line."""
  out = command.parser("segment", __doc__, ENCODERS)
  command.add_training(
    out, freezes=True, steps=5000, learning_rate=5e-4, weight_decay=1e-6, validate_every_steps=500
  )
  add = out.add_argument
  add("--channels", type=int, default=64, help="of the decoder")
  add("--empty_images", choices=("keep", "drop"), default="keep",
      help="whether images without a region of a finding count")  # fmt: skip
  return out


if __name__ == "__main__":
  command.main(parser().parse_args(), segment)
