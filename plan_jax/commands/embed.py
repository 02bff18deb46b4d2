"""Writes the embeddings of images, or of texts, to a file of NumPy.

  plan-jax embed --workdir=runs/a --images=FOLDER --out=images.npz
  plan-jax embed --workdir=runs/a --texts=reports.csv --out=texts.npz

The file holds "embeddings", float32 [N, D] of unit norm (the product of an image's and a text's is
their similarity), and "names" [N]: paths of images, or the row or line of a text. Images are a
folder, a file, or a CSV table with the column image; texts a CSV table with the column text, or a
.txt file with a report a line. Exit status 1 says that some could not be read: they are listed, and
left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.command_line import Parser, path
from input_pipeline.conversion.workers import progress_bar
from input_pipeline.errors import UserError
from input_pipeline.files import read_regular, replacing
from plan_jax.commands import inputs

_CHUNK = 32  # items that are embedded together


def main(arguments: Sequence[str]) -> None:
  """Runs the command line."""
  options = _parser().parse_args(arguments)
  with inputs.command(options.out):
    # Here: they take seconds, which --help does without.
    from plan_jax.inference.inputs import check_images, check_texts
    from plan_jax.inference.load import load

    if Path(options.out).suffix != ".npz":
      raise UserError(f"--out={options.out}: name a .npz file")
    inputs.check_place("--out", options.out)
    if options.texts is None:
      items = [(str(path), path) for path in inputs.list_images(options.images)]
    else:
      items = _texts(options.texts)
    model = load(options.workdir)
    embed, check, unit = model.embed_images, check_images, "image"
    if options.texts is not None:
      embed, check, unit = model.embed_texts, check_texts, "text"
    names, parts, failures = [], [], inputs.Failures(len(items))
    with progress_bar("embed", len(items), unit=unit) as bar:
      for start in range(0, len(items), _CHUNK):
        chunk = []
        for name, item in items[start : start + _CHUNK]:
          try:
            chunk += check([item])
            names.append(name)
          except UserError as error:
            failures.add(name, error)
          bar.update()
        parts += [embed(chunk)] if chunk else []
    if not parts:
      failures.finish(model.note)
    embeddings = np.concatenate(parts)
    with replacing(options.out) as temporary, temporary.open("wb") as file:
      np.savez(file, embeddings=embeddings, names=np.array(names))
    count, width = embeddings.shape
    inputs.print_path(f"{count} embeddings of {width} numbers", options.out)
    failures.finish(model.note)


def _parser() -> Parser:
  parser = inputs.parser("embed", __doc__)
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument("--images", help="a folder, an image, or a CSV table with the column image")
  given.add_argument("--texts", help="a CSV table with the column text, or a .txt file")
  parser.add_argument("--out", type=path, required=True, help="the .npz file to write")
  return parser


def _texts(given: str) -> list[tuple[str, str]]:
  """Reads texts with their names. Raises UserError."""
  if inputs.is_table(given):
    return [(f"row {row.number}", row["text"]) for row in inputs.read_table(given, "text")]
  try:
    lines = read_regular(Path(given)).decode().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--texts={given} cannot be read ({error}): name a .csv or .txt file") from None
  texts = [(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
  if not texts:
    raise UserError(f"--texts={given}: there is no text in it")
  return texts
