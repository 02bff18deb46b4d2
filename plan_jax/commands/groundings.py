"""The work of `plan-jax ground`: jobs, rows, overlays."""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from input_pipeline.conversion.workers import progress_bar
from input_pipeline.errors import UserError
from input_pipeline.files import replacing
from input_pipeline.terminal import escape
from plan_jax.commands import ground_files, inputs
from plan_jax.commands.ground_files import GroundFiles
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.inputs import check_images, check_phrases
from plan_jax.inference.load import load
from plan_jax.inference.predictor import Predictor
from plan_jax.results.example_scores import quote

_COLUMNS = (
  *("image", "phrase", "score", "quantile", "warning", "width", "height", "threshold", "boxes"),
  *("overlay", "error"),
)
_TOGETHER = 16  # phrases, whose maps are as large as their image

Jobs = list[tuple[Path, list[str]]]  # an image, and its phrases
Emit = Callable[[dict], None]


def run(options: argparse.Namespace) -> None:
  """Grounds what the flags say. Raises UserError."""
  jobs = _jobs(options.image, options.phrase)
  total = sum(len(phrases) for _, phrases in jobs)
  single = inputs.is_file(options.image)
  files = GroundFiles(options, single)
  folder = _folder(options.out, single, total)
  model = load(options.workdir)
  if folder:
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
  writer = _printer(options.json) if single else _file(folder, options.json)
  failures = inputs.Failures(total)
  with writer as emit, progress_bar("ground", total, show=not single) as bar:
    number = 0
    for path, phrases in jobs:
      for row, result in _rows(model, path, phrases, options.threshold, failures):
        if single and "error" in row:
          raise UserError(row["error"])
        number += 1
        if result:
          files.take(path, result)
        if result and options.out:
          row["overlay"] = str(_save(result, folder or Path(options.out), number, path))
        emit(row)
        bar.update()
      files.add(model, path, failures)
  files.finish()
  failures.finish(model.note)


def _jobs(image: str, phrases: list[str]) -> Jobs:
  """Lists images with their phrases. Raises UserError."""
  if inputs.is_table(image):
    if phrases:
      raise UserError(f"--phrase: leave it out, {image} has a column of phrases")
    rows = inputs.read_table(image, "image", "phrase")
    return [
      (inputs.beside(image, name), [row["phrase"] for row in group])
      for name, group in groupby(rows, lambda row: row["image"])
    ]
  if not phrases:
    raise UserError('--phrase is missing, e.g. --phrase="left effusion"')
  phrases = list(dict.fromkeys(check_phrases(phrases, "--phrase")))  # twice would be boxes twice
  return [(path, phrases) for path in inputs.list_images(image)]


def _folder(out: str | None, single: bool, total: int) -> Path | None:
  """Checks the folder of a batch, or of several overlays; None for one file, or none."""
  if not out:
    if not single:
      raise UserError("--out is missing: name a new folder for the results")
    return None
  if single and total == 1:
    ground_files.check_new("--out", out, ".png")
    return None
  folder = Path(out)
  if folder.suffix.lower() == ".png":
    raise UserError(f"--out={out}: there are several overlays, name a new folder")
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise UserError(f"--out={out} exists: name a new folder, or delete it")
  inputs.check_place("--out", str(folder / "overlays"))
  return folder


def _rows(
  model: Predictor, path: Path, phrases: list[str], threshold: float, failures: inputs.Failures
) -> Iterator[tuple[dict, Grounding | None]]:
  """Yields the row of each phrase with its grounding; None where image or phrase cannot be read."""
  for phrase, result in zip(phrases, _ground(model, path, phrases, _TOGETHER), strict=True):
    row = {"image": str(path), "phrase": phrase}
    if isinstance(result, UserError):
      failures.add(str(path), result)
      yield row | {"error": str(result)}, None
      continue
    row |= {
      "score": round(float(result.score), 6),
      "quantile": None if result.quantile is None else round(float(result.quantile), 4),
      "warning": result.warning,
      "width": result.image.shape[1],
      "height": result.image.shape[0],
      "threshold": threshold,
      "boxes": [
        {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "score": round(float(score), 6)}
        for x0, y0, x1, y1, score in result.boxes(threshold)
      ],
    }
    yield row, result


def _ground(
  model: Predictor, image: Any, phrases: list[str], together: int
) -> Iterator[Grounding | UserError]:
  """Yields the grounding of each phrase, or its error; holds the maps of some `together`."""
  try:
    (image,) = check_images(image)  # read once
  except UserError as error:
    yield from [error] * len(phrases)
    return
  for start in range(0, len(phrases), together):
    chunk = phrases[start : start + together]
    try:
      yield from model.ground(image, chunk)
    except UserError as error:
      # Of a table, of whose phrases one may have no word.
      yield from [error] if together == 1 else _ground(model, image, chunk, 1)


def _save(result: Grounding, out: Path, number: int, image: Path) -> Path:
  """Writes an overlay, into a folder of overlays under a name of its own."""
  if out.is_dir():
    words = (re.sub(r"[^A-Za-z0-9.]+", "_", text)[:60] for text in (image.stem, result.phrase))
    out = out / "overlays" / f"{number:05}-{'-'.join(words)}.png"
  with replacing(out) as temporary:
    result.overlay().save(temporary, format="PNG")
  return out


@contextmanager
def _printer(as_json: bool) -> Iterator[Emit]:
  """Prints each row: an object of JSON, or some lines."""
  yield lambda row: print(json.dumps(row) if as_json else _text(row), flush=True)


@contextmanager
def _file(folder: Path, as_json: bool) -> Iterator[Emit]:
  """Writes each row into a file, at once, so that what is done stays."""
  path = folder / ("grounding.jsonl" if as_json else "grounding.csv")
  with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
    table = csv.writer(file)

    def emit(row: dict) -> None:
      if as_json:
        file.write(json.dumps(row) + "\n")
      else:
        table.writerow([_cell(row.get(name)) for name in _COLUMNS])
      file.flush()

    if not as_json:
      table.writerow(_COLUMNS)
    yield emit
  inputs.print_path("results", path)


def _cell(value) -> str | float | None:
  """Returns a value as a cell, which no spreadsheet takes for a formula."""
  if isinstance(value, list):
    return json.dumps(value)
  return quote(value) if isinstance(value, str) else value


def _text(row: dict) -> str:
  """Writes the row of a grounding for a reader; its warning is in the log."""
  lines = [f"{escape(row['image'])}: {escape(row['phrase'])}"]
  if row.get("error"):
    return f"{lines[0]}\n  error: {row['error']}"
  quantile = row["quantile"]
  share = "no quantile: the run has no calibration"
  if quantile is not None:
    share = f"quantile {quantile:g} of the validation phrases"
  lines.append(f"  score {row['score']:.3f} ({share})")
  lines += [
    f"  box x {box['x0']}-{box['x1']}, y {box['y0']}-{box['y1']}, highest {box['score']:.2f}"
    for box in row["boxes"]
  ]
  lines += [f"  overlay: {escape(row['overlay'])}"] if "overlay" in row else []
  return "\n".join(lines)
