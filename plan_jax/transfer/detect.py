"""Object detection on a pre-trained image encoder: trains a head, evaluates it on the test split.

  python -m plan_jax.transfer.detect --workdir=runs/a --records=FOLDER --out=runs/a/detection/NAME

The encoder is that of the run, frozen with its batch norm in inference mode (--frozen=False: fine-
tuned), or, for comparison, of the same architecture with fresh weights: "random", which stays as it
is, or "supervised", which learns with the head. Into --out go checkpoints, metrics.jsonl,
evaluation.json, example_scores/ (`python -m plan_jax.compare OUT OUT` compares two), predictions.json and
truth.json as COCO has them, and overlays.png. The same command goes on where it stopped.
"""

import argparse
from collections import Counter

from ml_collections import ConfigDict

from input_pipeline import records
from plan_jax.evaluators import detection
from plan_jax.results import boxes
from plan_jax.results import rows as results
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import make_mesh
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import command
from plan_jax.transfer.detection import detector as detectors
from plan_jax.transfer.detection import drawing, yolo
from plan_jax.transfer.detection.coco import write_coco
from plan_jax.transfer.detection.data import Encode, training
from plan_jax.transfer.detection.detector import Detector
from plan_jax.transfer.encoder import data_name
from plan_jax.transfer.examples import iter_of, regions_in
from plan_jax.transfer.fitting import fit

ENCODERS = ("run", "random", "supervised")


def detect(arguments: argparse.Namespace) -> list[results.Row]:
  """Trains, or goes on, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  command.check(arguments)
  config = ConfigDict(Workdir(arguments.workdir).read_config())
  settings = command.training_settings(arguments, config, ("anchors", "channels"))
  seed = settings.seed
  encoder = command.encoder_for(arguments, config, settings.image_px)
  out = command.claim(arguments, settings, encoder)
  source = training(
    arguments.records,
    findings=settings.findings,
    fraction=settings.fraction,
    seed=seed,
    image_px=settings.image_px,
  )
  anchors = yolo.COCO_ANCHORS * (settings.image_px / yolo.COCO_PX)
  if settings.anchors == "boxes":
    anchors = yolo.fit_anchors(source.sizes)
  detector = Detector(
    encoder.module, encoder.weights, settings, anchors, source.findings, make_mesh(-1, 1)
  )

  def findings_in(split: str) -> set[str]:
    return regions_in(records.RecordSource(arguments.records, split), source.findings)

  measure = None
  if command.has_validation(
    arguments, findings_in, "box of what is learned",
    "the last step is evaluated, and nothing stops it early",
  ):  # fmt: skip
    validation = records.RecordSource(arguments.records, "validation")

    def measure(state):
      return detectors.measure(detector, state, iter_of(validation))

  encode = Encode(detector.findings, settings.image_px, source.most)
  state = fit(
    detector.learner, out, source, encode, followed=detectors.BEST, measure=measure
  )  # fmt: skip
  test = records.RecordSource(arguments.records, "test")
  images = detector.images(state, iter_of(test))
  _say_others(test, detector.findings)
  floor = detection.with_typical_boxes(images, source.typical, source.shares)
  data = data_name(arguments.records, "test")
  common = {"data": data, "resamples": arguments.resamples, "seed": seed}
  rows = detection.detection_rows(
    images, detector.findings, baselines={detection.TYPICAL: floor}, **common
  )
  if arguments.compatibility:
    rows += detection.compat_rows(images, detector.findings, **common)
  found = detection.detection_scores(images, detector.findings)
  boxes.write(out.example_scores_of(detection.TASK).with_suffix(".npz"), images, detector.findings)
  write_coco(out.path, images, detector.findings)
  path = out.path / "overlays.png"
  drawing.write(path, images, detector.findings, test)
  command.finish(out, arguments, int(state.step), rows, found, detection.TASK)
  log.info(f"\nfilms with boxes (true in cyan, found in orange): {path}")
  return rows


def _say_others(test: records.RecordSource, findings: tuple[str, ...]) -> None:
  labels = (region.label for example in iter_of(test) for region in example.regions)
  others = Counter(label for label in labels if label not in findings)
  if others:
    log.info(f"detection: {others.total()} test regions are of other findings: {', '.join(others)}")


def parser() -> argparse.ArgumentParser:
  """The command line; the defaults of training are MGCA's, but for the number of steps."""
  out = command.parser("detect", __doc__, ENCODERS, image_px=224)
  command.add_training(
    out, freezes=True, steps=10_000, learning_rate=5e-4, weight_decay=1e-6, validate_every_steps=500
  )
  add = out.add_argument
  add("--anchors", choices=("boxes", "coco"), default="boxes",
      help="k-means of the training boxes, or those of YOLOv3 for COCO, scaled")  # fmt: skip
  add("--channels", type=int, default=128, help="of the head on its fine grid")
  add("--compatibility", type=command.truth, default=False,
      help="also as published evaluators measure")  # fmt: skip
  return out


if __name__ == "__main__":
  command.main(parser().parse_args(), detect)
