"""The images of the pages on tasks, of a run of `make demo`: `python docs/draw.py runs/phantom`.

demo.jpg is report/overlays.png of the run, detection.jpg the first six overlays of
detection/run-0.1, which docs/detection.md's command of 1,200 steps makes. retrieval.jpg and
zero_shot.jpg are drawn here, of images that are spread over the test split, not chosen.
"""

import csv
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import plan_jax
from input_pipeline import images, records
from input_pipeline.example import Example
from plan_jax.results import rows
from plan_jax.results.contact_sheet import spread_over
from plan_jax.results.drawing import tiled

WIDTH, GAP, LINE = 760, 10, 24
FONT = ImageFont.load_default(19)
DARK, GREY, BLUE, GREEN = (40, 40, 40), (185, 185, 185), (40, 110, 180), (0, 120, 50)


def draw(workdir: Path) -> None:
  """Writes the four images beside the pages."""
  test = records.RecordSource(workdir / "records", "test", where="text")
  examples = [test[i] for i in range(len(test))]
  overlays = Image.open(workdir / "report" / "overlays.png").convert("RGB")
  drawn = {
    "demo": overlays.resize([round(0.79 * side) for side in overlays.size], Image.LANCZOS),
    "detection": _detection(Image.open(workdir / "detection" / "run-0.1" / "overlays.png")),
    "retrieval": _retrieval(workdir, examples),
    "zero_shot": _zero_shot(workdir, examples),
  }
  for name, image in drawn.items():
    image.save(Path(__file__).with_name(f"{name}.jpg"), quality=75)


def _detection(overlays: Image.Image) -> Image.Image:
  width, height = overlays.width // 4, overlays.height // 3
  corners = [(width * (i % 4), height * (i // 4)) for i in range(6)]
  return _tiled([overlays.crop((x, y, x + width, y + height)) for x, y in corners], 2)


def _retrieval(workdir: Path, examples: Sequence[Example]) -> Image.Image:
  """Draws two images with their nearest reports, and two reports with their nearest images."""
  model = plan_jax.load(workdir)
  pixels = [images.decode_example(example) for example in examples]
  cosines = model.similarity(pixels, [example.sentences for example in examples])
  reports = [" ".join(example.sentences) for example in examples]
  with_finding = [i for i, example in enumerate(examples) if example.regions]
  queries = [with_finding[i] for i in spread_over(len(with_finding), 6)[1:-1]]
  parts = []
  for query in queries[:2]:
    sheet = _Sheet(WIDTH, 600)
    sheet.paste(examples[query], 0, 230)
    for rank, report in _shown(-cosines[query], query):
      sheet.write(f"{rank}. {reports[report]}", 245, 56, GREEN if report == query else DARK)
    parts.append(sheet.image.crop((0, 0, WIDTH, max(240, sheet.y))))
  for query in queries[2:]:
    sheet = _Sheet(WIDTH, 600)
    sheet.write(reports[query], 0, 84, DARK)
    top = sheet.y
    for i, (rank, image) in enumerate(_shown(-cosines[:, query], query)):
      x, sheet.y = i * (WIDTH + GAP) // 3, top
      sheet.paste(examples[image], x, 246)
      sheet.y += 246
      sheet.write(f"{rank}.", x, 9, GREEN if image == query else DARK)
    parts.append(sheet.image.crop((0, 0, WIDTH, sheet.y)))
  return Image.fromarray(np.concatenate([np.asarray(part) for part in parts]))


def _shown(distances: np.ndarray, own: int) -> list[tuple[int, int]]:
  """Returns (rank, number) of the nearest two and of its own, or of the nearest three."""
  order = np.argsort(distances).tolist()
  rank = max(order.index(own), 2)
  return [(1, order[0]), (2, order[1]), (rank + 1, order[rank])]


def _zero_shot(workdir: Path, examples: Sequence[Example]) -> Image.Image:
  """Draws four images with the scores of the findings that their reports speak of."""
  thresholds = {
    row.group: row.value
    for row in rows.read(workdir / "evaluation.json").rows
    if (row.task, row.metric) == ("zero-shot-ours", "threshold")
  }
  with open(workdir / "example_scores" / "zero-shot-ours.csv", newline="") as file:
    scores = list(csv.DictReader(file))
  sheets = []
  for i in spread_over(len(examples), 6)[1:-1]:
    sheet = _Sheet(WIDTH // 2, 520)
    sheet.paste(examples[i], 0, 320)
    sheet.y = 320
    own = [row for row in scores if row["image_id"] == examples[i].image_id]
    for row in sorted(own, key=lambda row: -float(row["score"])):
      score, color = float(row["score"]), BLUE if float(row["positive"]) else GREY
      y, mark = sheet.y + GAP, 150 * thresholds[row["phrase"]]
      sheet.pen.rectangle((0, y + 2, 150 * score, y + 18), fill=color)
      sheet.pen.line((mark, y - 1, mark, y + 21), fill=DARK, width=2)
      sheet.pen.text((160, y), f"{score:.2f} {row['phrase']}", fill=DARK, font=FONT)
      sheet.y += LINE
    sheets.append(sheet.image)
  return _tiled(sheets, 2)


class _Sheet:
  """A white image to write on from the top down; `y` is where the next line comes."""

  def __init__(self, width: int, height: int):
    self.image, self.y = Image.new("RGB", (width, height), "white"), 0
    self.pen = ImageDraw.Draw(self.image)

  def paste(self, example: Example, x: int, side: int) -> None:
    pixels = Image.fromarray(images.decode_example(example))
    self.image.paste(pixels.resize((side, side), Image.BICUBIC), (x, self.y))

  def write(self, text: str, x: int, letters: int, color: tuple) -> None:
    for line in textwrap.wrap(text, letters):
      self.pen.text((x, self.y), line, fill=color, font=FONT)
      self.y += LINE
    self.y += GAP


def _tiled(cells: Sequence[Image.Image], columns: int) -> Image.Image:
  return Image.fromarray(tiled([np.asarray(cell.convert("RGB")) for cell in cells], columns))


if __name__ == "__main__":
  draw(Path(sys.argv[1]))
