"""Shows where in an image a phrase is: score, boxes, and the map over the image.

  plan-jax ground --workdir=runs/a --image=image.dcm --phrase="left effusion" --out=overlay.png
  plan-jax ground --workdir=runs/a --image=image.png --phrase=effusion --phrase=edema --json
  plan-jax ground --workdir=runs/a --image=FOLDER --phrase="left effusion" --out=OUT
  plan-jax ground --workdir=runs/a --image=table.csv --out=OUT
  plan-jax ground --workdir=runs/a --image=image.dcm --phrase=effusion --dicom-out=regions.dcm
  plan-jax ground --workdir=runs/a --image=image.png --phrase=effusion --boxes-out=boxes.json

A folder, or a CSV table with the columns image and phrase, is a batch: OUT/grounding.csv (with
--json: grounding.jsonl) has a row an image and phrase, OUT/overlays/ the maps. Boxes are
(x0, y0, x1, y1) in the image's own pixels, x1 and y1 exclusive, the largest first. Exit status 1
says that some could not be read; their rows hold the error.
"""

import argparse
from collections.abc import Sequence

from input_pipeline.command_line import Parser, path
from plan_jax.commands import inputs


def main(arguments: Sequence[str]) -> None:
  """Runs the command line."""
  options = _parser().parse_args(arguments)
  with inputs.command(options.out):
    from plan_jax.commands import groundings  # takes seconds, which --help does without

    groundings.run(options)


def _parser() -> Parser:
  parser = inputs.parser("ground", __doc__)
  add = parser.add_argument
  add("--image", required=True, help="an image, a folder of images, or a CSV table")
  add("--phrase", action="append", default=[], help="to be shown; may be given several times")
  add("--out", type=path, help="overlay of one image and phrase, a .png file; else a new folder")
  threshold = "of the boxes, a share of the map's maximum (default %(default)s)"
  add("--threshold", type=_share, default=0.5, help=threshold)
  add("--json", action="store_true", help="one JSON object a line")
  add("--boxes-out", type=path, help="boxes of all images, a new file: .json (COCO) or .csv")
  segmentation = "DICOM Segmentation of a DICOM image, a new .dcm file; of several, a new folder"
  add("--dicom-out", type=path, help=segmentation)
  kinds = "regions at --threshold, which viewers show, or the maps themselves (default %(default)s)"
  add("--dicom-type", choices=("binary", "fractional"), default="binary", help=kinds)
  return parser


def _share(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = 0
  if not 0 < value <= 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
  return value
