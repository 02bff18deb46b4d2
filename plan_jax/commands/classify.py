"""Scores images for findings, zero-shot: by the names of classes in the words of a prompt set.

  plan-jax classify --workdir=runs/a --image=image.dcm --class=pneumothorax --class=effusion
  plan-jax classify --workdir=runs/a --image=FOLDER --class=effusion --json > scores.jsonl

A line an image, of a folder or of a CSV table with the column image. A score is that of a
finding's prompts against those of its absence, from 0 to 1; of a set without those it is a
similarity, from -1 to 1. It ranks images, and is no probability.
Exit status 1 says that some images could not be read.
"""

import json
from collections.abc import Sequence

from input_pipeline.command_line import Parser
from input_pipeline.conversion.workers import progress_bar
from input_pipeline.errors import UserError
from input_pipeline.terminal import escape
from plan_jax.commands import inputs

_CHUNK = 32  # images held at a time


def main(arguments: Sequence[str]) -> None:
  """Runs the command line."""
  options = _parser().parse_args(arguments)
  with inputs.command():
    # Here: they take seconds, which --help does without.
    from plan_jax.inference import prompts
    from plan_jax.inference.inputs import check_images, check_phrases
    from plan_jax.inference.load import load

    images = inputs.list_images(options.image)
    check_phrases(options.classes, "--class")
    prompts.load([options.prompts])  # before the model, which takes seconds
    model = load(options.workdir)
    classify = prompts.classifier(model, options.classes, options.prompts)
    failures = inputs.Failures(len(images))
    with progress_bar("classify", len(images), show=len(images) > 1) as bar:
      for start in range(0, len(images), _CHUNK):
        rows: list[dict] = []
        read = {}  # place in the rows -> image
        for place, path in enumerate(images[start : start + _CHUNK]):
          rows.append({"image": str(path)})
          try:
            (read[place],) = check_images(path)
          except UserError as error:
            if len(images) == 1:
              raise
            failures.add(str(path), error)
            rows[place]["error"] = str(error)
        scores = classify(list(read.values())) if read else []
        for place, row in zip(read, scores, strict=True):
          rows[place]["scores"] = row
        for row in rows:
          print(json.dumps(row) if options.json else _text(row), flush=True)
        bar.update(len(rows))
    failures.finish(model.note)


def _parser() -> Parser:
  parser = inputs.parser("classify", __doc__)
  add = parser.add_argument
  add("--image", required=True, help="an image, a folder of images, or a CSV table")
  classes = "a finding's name; may be given several times"
  add("--class", dest="classes", action="append", required=True, help=classes)
  which = "prompt set, by its name, or a .json file (default %(default)s)"
  add("--prompts", default="ours", help=which)
  add("--json", action="store_true", help="one JSON object a line")
  return parser


def _text(row: dict) -> str:
  if "error" in row:
    return f"{escape(row['image'])}: error: {row['error']}"
  listed = "  ".join(f"{escape(name)} {score:.3f}" for name, score in row["scores"].items())
  return f"{escape(row['image'])}: {listed}"
