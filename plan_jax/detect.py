"""Object detection on a pre-trained image encoder: trains a head, evaluates it on the test split.

  python -m plan_jax.detect --workdir=runs/a --records=FOLDER --out=runs/a/detection/NAME

The encoder is that of the run, frozen with its batch norm in inference mode (--frozen=False: fine-
tuned), or, for comparison, of the same architecture with fresh weights: "random", which stays as it
is, or "supervised", which learns with the head. Into --out go checkpoints, metrics.jsonl,
evaluation.json, units/ (`python -m plan_jax.compare OUT OUT` compares two), predictions.json and
truth.json as COCO has them, and overlays.png. The same command goes on where it stopped.
"""

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax import preemption
from plan_jax.detection import pictures, yolo
from plan_jax.detection.detector import Detector, train
from plan_jax.detection.films import iter_of, training
from plan_jax.downstream import data_name, encoder_of
from plan_jax.evaluators import bootstrap, detection, results, units
from plan_jax.evaluators.detection import Film
from plan_jax.mesh import make_mesh
from plan_jax.reporting import say
from plan_jax.workdir import Workdir, WorkdirError

_PICTURES = 12
_PICTURED = "1/8"  # of detection.RATES: predictions above its limit are drawn


def detect(arguments: argparse.Namespace) -> list[results.Row]:
  """Trains, or goes on, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  run, out = Workdir(arguments.workdir), Workdir(arguments.out)
  config = ConfigDict(run.read_config())
  splits = records.splits(arguments.records)
  if not splits.get("train") or not splits.get("test"):
    raise UserError(f"{arguments.records} needs a train and a test split; it has {splits}")
  settings = _settings(arguments, config)
  encoder, weights, settings.run_step = encoder_of(
    arguments.workdir,
    config,
    fresh=arguments.encoder != "run",
    image_px=settings.image_px,
    seed=settings.seed,
  )
  try:
    out.claim(settings)
    out.claim_records(arguments.records, records.fingerprint(arguments.records))
  except WorkdirError as error:
    raise UserError(str(error).replace("--workdir", "--out")) from error
  source = training(
    arguments.records,
    findings=settings.findings,
    fraction=settings.fraction,
    seed=settings.seed,
    image_px=settings.image_px,
  )
  anchors = yolo.COCO_ANCHORS * (settings.image_px / yolo.COCO_PX)
  if settings.anchors == "boxes":
    anchors = yolo.fit_anchors(source.sizes)
  detector = Detector(encoder, weights, settings, anchors, source.findings, make_mesh(-1, 1))
  validation = None
  if splits.get("validation"):
    validation = records.RecordSource(arguments.records, "validation")
  else:
    say("no validation split: the last step is evaluated, and nothing stops training early")
  state = train(detector, out, source, validation)
  test = records.RecordSource(arguments.records, "test")
  films = detector.films(state, iter_of(test))
  others = Counter(
    region.label
    for study in iter_of(test)
    for region in study.regions
    if region.label not in detector.findings
  )
  if others:
    say(f"detection: {others.total()} test regions are of other findings: {', '.join(others)}")
  floor = detection.with_typical_boxes(films, source.typical, source.shares)
  data = data_name(arguments.records, "test")
  common = {"data": data, "resamples": arguments.resamples, "seed": settings.seed}
  rows = detection.detection_rows(
    films, detector.findings, floors={detection.TYPICAL: floor}, **common
  )
  if arguments.compatibility:
    rows += detection.compat_rows(films, detector.findings, **common)
  if not rows:
    raise UserError(f"the test split of {arguments.records} has no box of what was learned")
  say(results.table(rows))
  found = detection.detection_units(films, detector.findings)
  units.write(out.units_of(detection.TASK), found)
  fingerprint = records.fingerprint(arguments.records)
  results.write(
    out.evaluation, results.Evaluation(int(state.step), rows, {common["data"]: fingerprint})
  )
  _write_coco(out, films, detector.findings)
  _write_pictures(out, films, detector.findings, test)
  return rows


def _settings(arguments: argparse.Namespace, config: ConfigDict) -> ConfigDict:
  """What the detector learns by, for `Workdir.claim`; keys as in `FREE` there may change."""
  frozen = arguments.frozen
  if frozen is None:
    frozen = arguments.encoder != "supervised"
  elif arguments.encoder != "run" and frozen == (arguments.encoder == "supervised"):
    raise UserError(
      f"--encoder={arguments.encoder} --frozen={frozen}: a random encoder is frozen, a supervised"
      " one is not"
    )
  keys = (
    "encoder", "fraction", "image_px", "steps", "batch_size", "learning_rate", "weight_decay",
    "anchors", "channels", "seed", "validate_every_steps", "patience",
  )  # fmt: skip
  settings = ConfigDict({key: getattr(arguments, key) for key in keys})
  settings.frozen = frozen
  settings.findings = tuple(filter(None, arguments.findings.split(",")))
  settings.image = config.model.image.to_dict()
  return settings


def _write_coco(out: Workdir, films: Sequence[Film], findings: Sequence[str]) -> None:
  """truth.json and predictions.json, for any COCO tool."""
  truth, found = [], []
  for number, film in enumerate(films, 1):
    for box, label in zip(film.truth.tolist(), film.truth_labels.tolist(), strict=True):
      side = (box[2] - box[0], box[3] - box[1])
      truth.append(
        {
          "id": len(truth) + 1, "image_id": number, "category_id": label + 1,
          "bbox": [*box[:2], *side], "area": side[0] * side[1], "iscrowd": 0,
        }
      )  # fmt: skip
    marks = zip(film.boxes.tolist(), film.scores.tolist(), film.labels.tolist(), strict=True)
    for box, score, label in marks:
      side = (box[2] - box[0], box[3] - box[1])
      found.append(
        {
          "image_id": number, "category_id": label + 1, "bbox": [*box[:2], *side], "score": score
        }
      )  # fmt: skip
  content = {
    "images": [
      {"id": number, "file_name": film.image_id, "height": film.height, "width": film.width}
      for number, film in enumerate(films, 1)
    ],
    "categories": [{"id": number, "name": name} for number, name in enumerate(findings, 1)],
    "annotations": truth,
  }
  replace_text(out.path / "truth.json", json.dumps(content) + "\n")
  replace_text(out.path / "predictions.json", json.dumps(found) + "\n")


def _write_pictures(out: Workdir, films, findings: Sequence[str], test) -> None:
  """Films spread over the set; of a finding's predictions those above 1/8 false ones a film."""
  limits = detection.score_limits(films, len(findings))[:, list(detection.RATES).index(_PICTURED)]
  chosen = np.unique(np.linspace(0, len(films) - 1, min(_PICTURES, len(films))).round().astype(int))
  drawn = [
    pictures.overlay(images.decode(test[i].image), films[i], findings, limits)
    for i in chosen.tolist()
  ]
  path = out.path / "overlays.png"
  cv2.imwrite(str(path), pictures.sheet(drawn, [films[i].image_id for i in chosen]))
  say(f"\nfilms with boxes (true in cyan, found in orange): {path}")


def _truth(text: str) -> bool:
  if text.lower() not in ("true", "false"):
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
  return text.lower() == "true"


def parser() -> argparse.ArgumentParser:
  """The command line; the defaults of training are MGCA's, but for the number of steps."""
  out = argparse.ArgumentParser(
    prog="python -m plan_jax.detect",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = out.add_argument
  add("--workdir", type=Path, required=True, help="of the run whose encoder it is")
  add("--encoder", choices=("run", "random", "supervised"), default="run")
  add("--frozen", type=_truth, help="whether the encoder stays as it is (default: True)")
  add("--records", type=Path, required=True, help="folder of records with boxes")
  add("--out", type=Path, required=True, help="folder of the detector")
  add("--findings", default="", help="names with commas between (default: all with a box)")
  add("--fraction", type=float, default=1.0, help="of the training patients: 0.01, 0.1, 1")
  add("--image_px", type=int, default=224, help="side of the square film; the field has 224, 512")
  add("--steps", type=int, default=10_000)
  add("--batch_size", type=int, default=16)
  add("--learning_rate", type=float, default=5e-4)
  add("--weight_decay", type=float, default=1e-6)
  add("--anchors", choices=("boxes", "coco"), default="boxes",
      help="k-means of the training boxes, or those of YOLOv3 for COCO, scaled")  # fmt: skip
  add("--channels", type=int, default=128, help="of the head on its fine grid")
  add("--validate_every_steps", type=int, default=500)
  add("--patience", type=int, default=10, help="measurements without a better mAP before it stops")
  add("--compatibility", type=_truth, default=False, help="also as published evaluators measure")
  add("--resamples", type=int, default=bootstrap.RESAMPLES, help="bootstrap draws")
  add("--seed", type=int, default=0)
  return out


def main() -> None:
  """The command line: the table, or one error and exit status 1."""
  arguments = parser().parse_args()
  for name in ("steps", "batch_size", "channels", "validate_every_steps", "patience"):
    if getattr(arguments, name) < 1:
      raise SystemExit(f"error: --{name}={getattr(arguments, name)} must be 1 or more")
  if not 0 < arguments.fraction <= 1:
    raise SystemExit(f"error: --fraction={arguments.fraction:g} must be above 0, and 1 at most")
  signal.signal(signal.SIGTERM, preemption.interrupt)
  try:
    detect(arguments)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except preemption.Preempted:
    print("preempted; the same command goes on from the last checkpoint", file=sys.stderr)
    raise SystemExit(preemption.EXIT_CODE) from None


if __name__ == "__main__":
  main()
