"""The report of a run: one HTML page that needs nothing but itself, and a picture of its images.

The page holds the run's facts, its figures beside their floors, its curves, and images with their
true regions, phrase maps and the soft region of every word.
"""

import base64
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.files import replace_text
from plan_jax.evaluators import grounding, presence, retrieval, terms
from plan_jax.results import drawing
from plan_jax.results import rows as results
from plan_jax.results.rows import RUN, Row

PROTOCOLS = {
  module.PROTOCOL: inspect.cleandoc(module.__doc__)
  for module in (grounding, retrieval, presence, terms)
}
_TEMPLATE = Path(__file__).with_name("report.html")
_IMAGE_PX, _MAP_PX, _TILE_PX = 640, 96, 224  # longest sides


class Word(NamedTuple):
  """A word of a report, with what the model makes of it.

  Attributes:
    text: as written.
    significance: in [0, 1].
    region: float [h, w] >= 0, its soft region over the whole image; None where it has none.
  """

  text: str
  significance: float
  region: np.ndarray | None


class Phrase(NamedTuple):
  """A phrase to ground in an image.

  Attributes:
    text: the phrase.
    label: its finding.
    mask: [H, W], non-zero in the true region; None where that is not known.
    heat: float [h, w] in [0, 1], the model's map over the whole image, of any resolution.
  """

  text: str
  label: str
  mask: np.ndarray | None
  heat: np.ndarray


@dataclass(frozen=True)
class ImageView:
  """An image as the report shows it.

  Attributes:
    image: uint8 [H, W].
    image_id: its name.
    sentences: the report, each sentence a list of words.
    phrases: (text, label, mask, heat) each; see `Phrase`.
  """

  image: np.ndarray
  image_id: str
  sentences: Sequence[Sequence[Word]] = ()
  phrases: Sequence[Phrase | tuple] = field(default_factory=tuple)

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
  title: str,
  rows: Sequence[Row],
  curves: Mapping[str, Sequence[tuple[int, float]]],
  images: Sequence[ImageView],
  notes: Mapping[str, str],
  protocols: Mapping[str, str] = PROTOCOLS,
) -> Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file; its folder is made.
    title: heading of the page.
    rows: the results; may be empty.
    curves: name -> (step, value) points in order of step; values that are not finite are left out.
    images: shown in their order.
    notes: name -> value: data, step, configuration, ...
    protocols: name -> its definition, shown for those that the rows name.

  Returns:
    The path.
  """
  facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in notes.items())
  body = [f'<h1>{escape(title)}</h1>\n<div class="card"><dl class="notes">{facts}</dl></div>']
  if rows:
    body.append(_results_section(rows, protocols))
  if curves:
    figures = "\n".join(drawing.curve(name, points) for name, points in curves.items())
    body.append(f'<h2>Curves</h2>\n<div class="curves">\n{figures}\n</div>')
  maps: list[list[dict]] = []
  if images:
    body.append(_IMAGES_HEAD)
    for image in images:
      html, of_image = _image(image)
      body.append(html)
      maps.append(of_image)
  colours = base64.b64encode(drawing.COLOURS[:, ::-1].tobytes()).decode()
  data = json.dumps({"colours": colours, "images": maps})  # numbers and base64: no "<"
  stops = drawing.COLOURS[::17, ::-1].tolist()
  ramp = ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in stops)
  page = _TEMPLATE.read_text(encoding="utf-8").replace("<!--RAMP-->", ramp)
  # What replaces a mark is escaped and so holds no mark of its own.
  for mark, text in (("TITLE", escape(title)), ("BODY", "\n".join(body)), ("IMAGES", data)):
    page = page.replace(f"<!--{mark}-->", text)
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
    lit = drawing.coloured(image.image, phrase.heat)
    tiles = [plain, drawing.outlined(plain, phrase.mask), drawing.outlined(lit, phrase.mask)]
    strip = np.concatenate([drawing.boxed(tile, _TILE_PX) for tile in tiles], 1)
    entry = np.concatenate([strip, drawing.caption(phrase.text, strip.shape[1])])
    entries.append(np.pad(entry, ((6, 4), (6, 6), (0, 0)), constant_values=255))
  if not entries:
    return None
  if len(entries) % 2 and len(entries) > 1:
    entries.append(np.full_like(entries[0], 255))
  across = min(2, len(entries))
  sheet = np.concatenate(
    [np.concatenate(entries[i : i + across], 1) for i in range(0, len(entries), across)]
  )
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
  return path


_READING = """<p class="soft">Each figure stands beside floors, which do not look at the image.
The plot shows the run with its 95&nbsp;% interval, and the floors as ticks, the best one thick.
A run is better or worse than its best floor (underlined) only where its interval does not hold the
floor's figure, else level with it.</p>"""

_IMAGES_HEAD = """<h2>Images</h2>
<div class="legend">
<span>map <i class="ramp"></i> none to maximum</span>
<span><i class="mark"></i> true region</span>
<span>word <i class="shade"></i> significance 0 to 1</span>
<label>opacity <input type="range" id="opacity" min="0" max="1" step="0.05" value="0.7"></label>
</div>
<p class="soft">Hover a word, or move to it with Tab, to see its soft region, scaled to its own
maximum. Choose a phrase to keep its map.</p>"""


def _results_section(rows: Sequence[Row], protocols: Mapping[str, str]) -> str:
  out = [f"<h2>Results</h2>\n{_READING}"]
  for (task, protocol, data), block in results.grouped(rows).items():
    cells = results.cells_of(block)
    floors = results.floors_of(block)
    gallery = any(row.gallery is not None for row in block)
    first = next(iter(cells))[0]
    out.append(
      f'<section class="card"><h3>{escape(task.capitalize())} on {escape(data)}'
      f" <small>{escape(protocol)}</small></h3>"
    )
    lines = {metric: found for (group, metric), found in cells.items() if group == first}
    out.append(_table(first, lines, floors, gallery, shared=False))
    for metric in dict.fromkeys(metric for group, metric in cells if group != first):
      lines = {g: found for (g, m), found in cells.items() if m == metric and g != first}
      opened = " open" if metric == next(iter(cells))[1] else ""
      out.append(f"<details{opened}><summary>{escape(metric)} by group</summary>")
      out.append(_table("", lines, floors, gallery, shared=True) + "</details>")
    if protocol in protocols:
      text = escape(protocols[protocol])
      out.append(f"<details><summary>Protocol {escape(protocol)}</summary>")
      out.append(f"<pre>{text}</pre></details>")
    out.append("</section>")
  return "\n".join(out)


def _table(
  head: str, lines: dict[str, dict[str, Row]], floors: list[str], gallery: bool, *, shared: bool
) -> str:
  """One line a metric (or group): plot, run, floors, verdict. `shared`: one scale for all plots."""
  titles = "".join(f"<th>{escape(name).replace('_', '_<wbr>')}</th>" for name in floors)
  sizes = "<th>n</th>" + "<th>gallery</th>" * gallery
  out = [
    f'<div class="wide"><table><thead><tr><th>{escape(head)}</th><th></th>'
    f'<th>run [95 % interval]</th>{titles}<th class="text">against best floor</th>'
    f"{sizes}</tr></thead><tbody>"
  ]
  together = [row for cells in lines.values() for row in cells.values()]
  for name, cells in lines.items():
    run, best = cells.get(RUN), results.best_floor(cells)
    standing = results.standing(cells)
    value = ""
    if run:
      figure, _, rest = results.with_interval(run).partition(" ")
      value = f"{figure} <span>{rest}</span>"
    plot = drawing.range_plot(cells, together if shared else list(cells.values()))
    line = f'<tr><th>{escape(name)}</th><td class="plot">{plot}</td>'
    line += f'<td class="run {standing}">{value}</td>'
    for floor in floors:
      mark = ' class="best"' if best and floor == best.model else ""
      line += f"<td{mark}>{results.number(cells[floor].value) if floor in cells else '-'}</td>"
    some = run or next(iter(cells.values()))
    line += f'<td class="verdict {standing}">{standing}</td><td>{some.n}</td>'
    out.append(line + f"<td>{some.gallery}</td>" * gallery + "</tr>")
  return "\n".join(out) + "</tbody></table></div>"


def _image(image: ImageView) -> tuple[str, list[dict]]:
  """The image's part of the page, and the maps that its words and phrases point at."""
  maps: list[dict] = []

  def keep(heat: np.ndarray) -> int:
    heat = drawing.reduced(np.nan_to_num(np.asarray(heat, np.float32)), _MAP_PX)
    values = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    rows, columns = values.shape
    text = base64.b64encode(values.tobytes()).decode()
    maps.append({"rows": rows, "columns": columns, "values": text})
    return len(maps) - 1

  paths, buttons, stills = [], [], []
  for i, phrase in enumerate(image.phrases):
    text, label = escape(phrase.text), escape(phrase.label)
    if phrase.mask is not None:
      paths.append(f'<path data-phrase="{i}" d="{drawing.outline(phrase.mask)}"/>')
    buttons.append(
      f'<button type="button" aria-pressed="false" data-phrase="{i}" data-map="{keep(phrase.heat)}"'
      f' data-caption="phrase: {text}">{text}<small>{label}</small></button>'
    )
    plain = cv2.cvtColor(image.image, cv2.COLOR_GRAY2BGR)
    lit = drawing.coloured(image.image, phrase.heat)
    pair = [drawing.outlined(plain, phrase.mask), drawing.outlined(lit, phrase.mask)]
    pair = np.concatenate([drawing.reduced(still, drawing.STILL_PX) for still in pair], 1)
    stills.append(
      f'<figure><img alt="true region and map of {text}" src="{drawing.uri(pair, ".jpg")}">'
      f"<figcaption>{text}</figcaption></figure>"
    )
  lines = []
  for sentence in image.sentences:
    words = []
    for word in sentence:
      score = min(max(float(np.nan_to_num(word.significance)), 0.0), 1.0)
      text, note = escape(word.text), f"significance {score:.2f}"
      hover = ""
      if word.region is not None:
        top = np.nanmax(word.region)
        number = keep(word.region / top if top > 0 else word.region)
        hover = f' tabindex="0" data-map="{number}" data-caption="word: {text}, {note}"'
      words.append(
        f'<span class="word" style="--s:{score:.3f}" title="{note}"{hover}>{text}</span>'
      )
    lines.append(f'<p class="sentence">{" ".join(words)}</p>')

  height, width = image.image.shape
  scale = min(1.0, 384 / max(height, width))
  canvas = (max(1, round(width * scale)), max(1, round(height * scale)))
  name = escape(image.image_id)
  side = ['<h4>Phrases</h4><div class="phrases">' + "".join(buttons) + "</div>"] * bool(buttons)
  side += ["<h4>Report</h4>", *lines] * bool(lines)
  side += ['<div class="stills">' + "".join(stills) + "</div>"] * bool(stills)
  return (
    f'<article class="card image"><h3>{name}</h3><div>'
    f'<div class="viewer" style="aspect-ratio:{width}/{height}">'
    f'<img alt="image {name}" src="{drawing.uri(drawing.reduced(image.image, _IMAGE_PX), ".png")}">'
    f'<canvas width="{canvas[0]}" height="{canvas[1]}"></canvas>'
    f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(paths)}</svg></div>'
    f'<p class="shown" aria-live="polite"></p></div><div>{"".join(side)}</div></article>'
  ), maps
