"""The page of a check: what was found with its pictures, counts, and samples, in one HTML file."""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.checks.counts import Table
from input_pipeline.checks.facts import Image
from input_pipeline.checks.soundness import Finding
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.files import replace_text
from input_pipeline.records import RecordSource

_TEMPLATE = Path(__file__).with_name("page.html")
_SIDE_PX = 280  # longest side of a picture
_SAMPLES = 8  # a split, half of them with regions where there are as many
_BESIDE = 4  # of the images that belong together
_BOX, _OUTLINE = (242, 215, 38), (60, 180, 255)  # blue, green, red


def write_page(
  path: str | os.PathLike,
  *,
  title: str,
  notes: Mapping[str, str],
  tables: Sequence[Table],
  findings: Sequence[Finding],
  images: Sequence[Image],
) -> Path:
  """Writes the page, whole or not at all.

  Args:
    path: of the HTML file; its folder is made.
    title: heading of the page.
    notes: name -> value.
    tables: counts.
    findings: in their order; their images are read again to be shown.
    images: of the data set, for samples.

  Returns the path. Raises UserError where it cannot be written.
  """
  facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in notes.items())
  body = [f'<h1>{escape(title)}</h1>\n<div class="card"><dl class="notes">{facts}</dl></div>']
  for level in ("error", "warning"):
    found = [finding for finding in findings if finding.level == level]
    body.append(f"<h2>{level.capitalize()}s: {len(found) or 'none'}</h2>")
    body += map(_finding, found)
  body.append('<h2>Counts</h2>\n<div class="tables">')
  body += map(_table, tables)
  body.append("</div>\n<h2>Samples</h2>")
  for split in dict.fromkeys(image.place.split for image in images):
    chosen = _samples([image for image in images if image.place.split == split])
    body.append(f"<h3>{escape(split)}</h3>\n{_gallery([[image] for image in chosen])}")
  page = _TEMPLATE.read_text(encoding="utf-8")
  # What replaces a mark is escaped and so holds no mark of its own.
  for mark, text in (("TITLE", escape(title)), ("BODY", "\n".join(body))):
    page = page.replace(f"<!--{mark}-->", text)
  try:
    replace_text(path, page)
  except OSError as error:
    raise UserError(f"{path}: the page cannot be written ({error}); name another --out") from None
  return Path(path)


def _finding(finding: Finding) -> str:
  lines = "".join(f"<li>{escape(line)}</li>" for line in finding.examples)
  lines += "<li>...</li>" * finding.more
  return (
    f'<section class="card {finding.level}"><h3>{escape(finding.name)}'
    f" <small>{escape(finding.counted())}</small></h3><ul>{lines}</ul>"
    f"{_gallery(finding.images)}</section>"
  )


def _table(table: Table) -> str:
  head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
  rows = "\n".join(
    f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    for name, cells in table.rows.items()
  )
  return (
    f'<section class="card wide"><table><thead><tr><th>{escape(table.title)}</th>{head}'
    f"</tr></thead><tbody>{rows}</tbody></table></section>"
  )


def _samples(images: Sequence[Image]) -> list[Image]:
  """Images spread evenly over the split."""
  marked = _spread([image for image in images if image.regions], _SAMPLES // 2)
  bare = _spread([image for image in images if not image.regions], _SAMPLES - len(marked))
  return marked + bare


def _spread(images: Sequence[Image], most: int) -> list[Image]:
  count = min(most, len(images))
  return [images[i * len(images) // count] for i in range(count)]


def _gallery(groups: Iterable[Sequence[Image]]) -> str:
  """Pictures, those of a group in one frame; "" where none can be shown."""
  frames = []
  for group in groups:
    pictures = "".join(map(_figure, group[:_BESIDE]))
    more = f"<p>and {len(group) - _BESIDE} more</p>" * (len(group) > _BESIDE)
    frames.append(f'<div class="group">{pictures}{more}</div>' if pictures else "")
  return f'<div class="gallery">{"".join(frames)}</div>' if any(frames) else ""


def _figure(image: Image) -> str:
  if not image.short_px:
    return ""
  example = RecordSource(image.place.folder, image.place.split)[image.place.number]
  encoded = cv2.imencode(".jpg", _drawn(example), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
  uri = f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
  name = escape(f"{image.place.split} {image.image_id}")
  facts = [f"{example.width} x {example.height}", example.view, example.patient_id]
  facts += [label for label, value in example.labels.items() if value == 1]
  text = " ".join(example.sentences)
  return (
    f'<figure><img alt="{name}" src="{uri}"><figcaption><b>{name}</b><br>'
    f'{escape(", ".join(filter(None, facts)))}<br><span title="{escape(text)}">'
    f"{escape(text)}</span></figcaption></figure>"
  )


def _drawn(example: Example) -> np.ndarray:
  """The image, reduced, with its regions: uint8 [H, W, 3], blue, green, red."""
  pixels = images.decode(example.image)
  scale = min(1.0, _SIDE_PX / max(pixels.shape))
  size = [max(1, round(side * scale)) for side in pixels.shape[::-1]]
  grey = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  picture = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
  for region in example.regions:
    mask = cv2.imdecode(np.frombuffer(region.mask or b"-", np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is not None:
      inside = np.uint8(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0)
      outlines = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
      cv2.drawContours(picture, outlines, -1, _OUTLINE, 1)
    # Boxes that cannot be right are drawn as far as they go.
    corners = np.clip(np.nan_to_num(region.boxes * scale), -_SIDE_PX, 2 * _SIDE_PX)
    for x0, y0, x1, y1 in np.rint(corners).astype(int).tolist():
      cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), _BOX, 1)
  return picture
