"""The report of a run: one HTML page that needs nothing but itself, and an image of overlays.

The page holds, in this order: the run and its first metrics in words, images with their true
regions, phrase maps and the soft region of every word, curves, tables of all metrics beside chance
baselines, and a glossary.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline import pages
from input_pipeline.files import replace_bytes, replace_text
from plan_jax.inference.overlay import COLOURS, coloured
from plan_jax.results import drawing, plots, sentences, tables
from plan_jax.results.glossary import Glossary
from plan_jax.results.rows import RUN, Row

_IMAGE_PX, _MAP_PX, _TILE_PX, _CANVAS_PX = 640, 96, 224, 384  # longest sides


class Word(NamedTuple):
  """A word of a report, with the model's reading of it."""

  text: str
  significance: float  # in [0, 1]
  region: np.ndarray | None  # float [h, w] >= 0, soft, over the whole image; None without one


class Phrase(NamedTuple):
  """A phrase to ground in an image."""

  text: str
  label: str  # its finding
  mask: np.ndarray | None  # [H, W], non-zero in the true region; None where that is not known
  heatmap: np.ndarray  # float [h, w] in [0, 1], the model's map over the whole image


class Head(NamedTuple):
  """The model and its data, as the page begins with them."""

  title: str
  summary: str  # a few sentences
  notes: Mapping[str, str]  # facts by name


@dataclass(frozen=True)
class ImageView:
  """An image, uint8 [H, W], as the report shows it."""

  image: np.ndarray
  image_id: str
  sentences: Sequence[Sequence[Word]] = ()
  phrases: Sequence[Phrase | tuple] = ()

  def __post_init__(self):
    """Raises ValueError where the image or a mask has the wrong shape or kind."""
    if self.image.ndim != 2 or self.image.dtype != np.uint8:
      raise ValueError(f"{self.image_id}: the image is {self.image.dtype}{list(self.image.shape)}")
    object.__setattr__(self, "phrases", [Phrase(*phrase) for phrase in self.phrases])
    for phrase in self.phrases:
      if phrase.mask is not None and phrase.mask.shape != self.image.shape:
        raise ValueError(
          f"{self.image_id}: the mask of {phrase.text!r} is {phrase.mask.shape},"
          f" the image {self.image.shape}"
        )


def write_report(
  path: str | os.PathLike,
  *,
  head: Head,
  rows: Sequence[Row],
  patients: tables.Patients,
  curves: Mapping[str, Sequence[tuple[int, float]]],
  images: Sequence[ImageView],
  protocols: Mapping[str, str],
) -> Path:
  """Writes the page, whole or not at all; returns its path, whose folder is made.

  Metrics of fewer than `tables.LEAST_PATIENTS` patients are not judged. `curves` are (step, value)
  points in order of step, of which values that are not finite are left out; `protocols` definitions
  by name, shown for those that the rows name.
  """
  views = [_image(image) for image in images]
  colours = base64.b64encode(COLOURS[:, ::-1].tobytes()).decode()
  stops = COLOURS[::17, ::-1].tolist()
  template = pages.environment(Path(__file__).parent).get_template("report.html")
  glossary = Glossary()
  page = template.render(
    **head._asdict(),
    glossary=glossary,
    least_patients=tables.LEAST_PATIENTS,
    sentences=sentences.sentences(rows, patients),
    sections=[
      _section(name, block, protocols.get(name[1]), patients)
      for name, block in tables.grouped(rows).items()
    ],
    curves=[plots.curve(name, points) for name, points in curves.items()],
    images=views,
    maps={"colours": colours, "images": [view["maps"] for view in views]},
    ramp=", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in stops),
  )
  replace_text(path, page)
  return Path(path)


def save_overlays(
  path: str | os.PathLike, images: Sequence[ImageView], most: int = 12
) -> Path | None:
  """Writes a PNG of the images' first phrases: image, true region, map; two images a row.

  Returns the path; None, and no file, where no image has a phrase.
  """
  entries = []
  for image in [image for image in images if image.phrases][:most]:
    phrase = image.phrases[0]
    plain = cv2.cvtColor(image.image, cv2.COLOR_GRAY2BGR)
    tiles = [plain, *_outlined(image, phrase)]
    strip = np.concatenate([drawing.boxed(tile, _TILE_PX) for tile in tiles], 1)
    entry = np.concatenate([strip, drawing.caption(phrase.text, strip.shape[1])])
    entries.append(np.pad(entry, ((6, 4), (6, 6), (0, 0)), constant_values=255))
  if not entries:
    return None
  replace_bytes(path, cv2.imencode(".png", drawing.tiled(entries, 2))[1].tobytes())
  return Path(path)


def _section(
  name: tuple[str, str, str],
  rows: Sequence[Row],
  definition: str | None,
  patients: tables.Patients,
) -> dict[str, object]:
  """Returns the tables of one (task, protocol, data): its first group, and each metric by group."""
  task, protocol, data = name
  cells = tables.cells_of(rows)
  first, *groups = dict.fromkeys(group for group, _ in cells)
  by_group = {}
  for metric in dict.fromkeys(metric for group, metric in cells if group != first):
    chosen = {g: cells[g, metric] for g in groups if (g, metric) in cells}
    together = [row for models in chosen.values() for row in models.values()]  # one scale
    by_group[metric] = [_line(g, models, together, patients) for g, models in chosen.items()]
  return {
    "task": task.capitalize(),
    "protocol": protocol,
    "data": data,
    "definition": definition,
    "models": tables.beside(rows),
    "gallery": any(row.gallery is not None for row in rows),
    "group": first,
    "lines": [
      _line(metric, models, list(models.values()), patients)
      for (group, metric), models in cells.items()
      if group == first
    ],
    "by_group": by_group,
  }


def _line(
  name: str, cells: dict[str, Row], together: Sequence[Row], patients: tables.Patients
) -> dict[str, object]:
  """Returns one line of a table; `together` are the rows that share the scale of its plot."""
  run, best = cells.get(RUN), tables.best_chance(cells)
  value, _, interval = tables.with_interval(run).partition(" ") if run else ("", "", "")
  any_row = run or next(iter(cells.values()))
  count = tables.patients_of(any_row, patients)
  standing = tables.standing(cells, count)
  few = tables.few(count) if best and interval and count < tables.LEAST_PATIENTS else ""
  return {
    "name": name,
    "plot": plots.range_plot(cells, together),
    "value": value,
    "interval": interval,
    "standing": standing,
    "verdict": standing or few,
    "chance": {model: tables.number(row.value) for model, row in cells.items()},
    "best": best.model if best else None,
    "n": any_row.n,
    "gallery": any_row.gallery,
  }


def _image(view: ImageView) -> dict[str, object]:
  """Returns the image's part of the page, with the maps that its words and phrases point at."""
  maps: list[dict] = []

  def keep(heatmap: np.ndarray) -> int:
    heatmap = drawing.reduced(np.nan_to_num(np.asarray(heatmap, np.float32)), _MAP_PX)
    values = np.round(255 * np.clip(heatmap, 0, 1)).astype(np.uint8)
    rows, columns = values.shape
    text = base64.b64encode(values.tobytes()).decode()
    maps.append({"rows": rows, "columns": columns, "values": text})
    return len(maps) - 1

  phrases = []
  for number, phrase in enumerate(view.phrases):
    pair = [drawing.reduced(still, drawing.STILL_PX) for still in _outlined(view, phrase)]
    outline = None if phrase.mask is None else drawing.outline(phrase.mask)
    still = drawing.uri(np.concatenate(pair, 1), ".jpg")
    entry = {"number": number, "text": phrase.text, "label": phrase.label, "outline": outline}
    phrases.append(entry | {"map": keep(phrase.heatmap), "still": still})
  sentences = []
  for sentence in view.sentences:
    words = []
    for word in sentence:
      significance = min(max(float(np.nan_to_num(word.significance)), 0.0), 1.0)
      number = None
      if word.region is not None:
        top = np.nanmax(word.region)
        number = keep(word.region / top if top > 0 else word.region)
      words.append({"text": word.text, "significance": significance, "map": number})
    sentences.append(words)

  height, width = view.image.shape
  scale = min(1.0, _CANVAS_PX / max(height, width))
  return {
    "name": view.image_id,
    "width": width,
    "height": height,
    "canvas": (max(1, round(width * scale)), max(1, round(height * scale))),
    "uri": drawing.uri(drawing.reduced(view.image, _IMAGE_PX), ".png"),
    "phrases": phrases,
    "sentences": sentences,
    "maps": maps,
  }


def _outlined(view: ImageView, phrase: Phrase) -> list[np.ndarray]:
  """Returns the image, and the image under the phrase's map, both with the true region."""
  plain = cv2.cvtColor(view.image, cv2.COLOR_GRAY2BGR)
  mixed = coloured(view.image, phrase.heatmap)
  return [drawing.outlined(image, phrase.mask) for image in (plain, mixed)]
