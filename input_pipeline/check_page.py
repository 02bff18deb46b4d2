"""The page of a check: tables, sample films with their regions, and pictures of what was found."""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from input_pipeline import images, records
from input_pipeline.files import replace_text
from input_pipeline.records import RecordError
from input_pipeline.soundness import SPLITS, Film, Problem
from input_pipeline.study import Study

_TEMPLATE = Path(__file__).with_name("check.html")
_SAMPLES = 6  # of each split
_SIDE_PX = 220
_TRUTH = (0, 184, 212)  # red, green, blue


def write(
  path: Path,
  folder: Path,
  counted: dict[str, dict[str, Counter]],
  problems: Sequence[Problem],
  left_out: tuple[int, list[str]],
  films: Sequence[Film],
  folders: dict[int, Path],
) -> None:
  """Writes one self-contained page.

  Args:
    path: of the page.
    folder: what was checked.
    counted: of `soundness.counts`.
    problems: what was found.
    left_out: of `check.skipped`.
    films: of the folder.
    folders: id of a film -> the folder it is in, for all films of `problems`.
  """
  splits = [split for split in SPLITS if any(film.split == split for film in films)]
  body = [f"<h1>{escape(str(folder))}</h1>"]
  body += [_problem(problem, folders) for problem in problems] or ["<p>Nothing was found.</p>"]
  body.append(f"<h2>Left out by the conversion: {left_out[0]}</h2>")
  body.append("<ul>" + "".join(f"<li>{escape(r)}</li>" for r in left_out[1]) + "</ul>")
  for title, rows in counted.items():
    body.append(f"<h2>{escape(title.capitalize() or 'Counts')}</h2>{_table(rows, splits)}")
  for split in splits:
    some = [film for film in films if film.split == split]
    chosen = np.unique(np.linspace(0, len(some) - 1, _SAMPLES).astype(int))
    body.append(f"<h2>Films of {split}</h2>")
    body.append(_gallery([some[i] for i in chosen], dict.fromkeys(map(id, some), folder)))
  page = _TEMPLATE.read_text(encoding="utf-8")
  replace_text(path, page.replace("<!--BODY-->", "\n".join(body)))


def _problem(problem: Problem, folders: dict[int, Path]) -> str:
  lines = "".join(f"<li>{escape(line)}</li>" for line in problem.examples)
  return (
    f'<section class="{problem.level}"><h2>{escape(problem.level)}: {escape(problem.name)}'
    f" <small>{problem.count} of {problem.of}</small></h2><ul>{lines}</ul>"
    f"{_gallery(problem.films, folders)}</section>"
  )


def _table(rows: dict[str, Counter], splits: Sequence[str]) -> str:
  head = "".join(f"<th>{split}</th>" for split in splits)
  body = "".join(
    f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{row[s]:,}</td>" for s in splits) + "</tr>"
    for name, row in rows.items()
  )
  return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _gallery(films: Sequence[Film], folders: dict[int, Path]) -> str:
  figures = []
  for film in films:
    try:
      study = records.RecordSource(folders[id(film)], film.split)[film.number]
      picture = base64.b64encode(_picture(study)).decode()
      shown = f'<img src="data:image/jpeg;base64,{picture}" alt="">'
    except (RecordError, ValueError) as error:
      shown = f"<p>{escape(str(error))}</p>"
    told = escape(film.begin)
    name = escape(f"{film.split} {film.image_id} {film.view}")
    figures.append(f"<figure>{shown}<figcaption>{name}<small>{told}</small></figcaption></figure>")
  return f'<div class="films">{"".join(figures)}</div>' if figures else ""


def _picture(study: Study) -> bytes:
  """A small JPEG of the film, boxes and outlines of masks drawn."""
  grey = images.decode(study.image)
  scale = _SIDE_PX / max(grey.shape)
  size = tuple(max(1, round(side * scale)) for side in grey.shape[::-1])
  picture = cv2.cvtColor(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
  for region in study.regions:
    for box in region.boxes:
      x0, y0, x1, y1 = (int(round(float(value) * scale)) for value in box)
      cv2.rectangle(picture, (x0, y0), (x1, y1), _TRUTH[::-1], 1)
    if region.mask:
      mask = cv2.resize(images.decode(region.mask), size, interpolation=cv2.INTER_NEAREST)
      outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
      cv2.drawContours(picture, outlines, -1, _TRUTH[::-1], 1)
  return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
