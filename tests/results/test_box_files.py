"""Boxes as COCO JSON and CSV."""

import csv
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from plan_jax.inference.grounding import Grounding
from plan_jax.inference.inputs import InputError
from plan_jax.results.box_files import FRAME, phrase_boxes, to_coco, to_csv


def grounding(phrase, *boxes, shape=(6, 9)):
  heatmap = np.zeros(shape, np.float32)
  for value, (x0, y0, x1, y1) in zip((1, 0.75), boxes, strict=False):
    heatmap[y0:y1, x0:x1] = value
  return Grounding(phrase, np.zeros(shape, np.uint8), heatmap, 0.25, None, "", [], np.asarray)


ROWS = [
  phrase_boxes("a.png", grounding("effusion", (1, 2, 4, 6), (6, 0, 9, 1))),
  phrase_boxes("b\x1b[2J.png", grounding("=1+1", shape=(5, 5))),
  phrase_boxes("a.png", grounding("edema", (0, 0, 9, 6))),
  phrase_boxes("-c.png", grounding("effusion", (0, 0, 1, 1), shape=(5, 5)), 0.8),
]


def test_coco_reads_it(tmp_path, capsys):
  path = tmp_path / "boxes.json"
  path.write_text(to_coco(ROWS))
  data = COCO(path)
  assert data.dataset["info"]["coordinates"] == FRAME
  images = [(i["file_name"], i["width"], i["height"]) for i in data.loadImgs(data.getImgIds())]
  assert images == [("a.png", 9, 6), ("b\\x1b[2J.png", 5, 5), ("-c.png", 5, 5)]
  names = {each["id"]: each["name"] for each in data.loadCats(data.getCatIds())}
  boxes = [
    (each["image_id"], names[each["category_id"]], each["bbox"], each["area"], each["score"])
    for each in data.loadAnns(data.getAnnIds())
  ]
  assert boxes == [
    (1, "effusion", [1, 2, 3, 4], 12, 1),
    (1, "effusion", [6, 0, 3, 1], 3, 0.75),
    (1, "edema", [0, 0, 9, 6], 54, 1),
    (3, "effusion", [0, 0, 1, 1], 1, 1),
  ]
  assert [a["threshold"] for a in data.dataset["annotations"]] == [0.5, 0.5, 0.5, 0.8]
  assert json.loads(to_coco([]))["annotations"] == []


def test_csv_has_a_line_a_box_and_one_for_none():
  lines = list(csv.DictReader(to_csv(ROWS).splitlines()))
  assert [line["file_name"] for line in lines] == [
    *("a.png", "a.png", "b\\x1b[2J.png", "a.png", "'-c.png")
  ]
  first = {"width": "9", "height": "6", "phrase": "effusion", "presence": "0.25", "quantile": ""}
  corners = {"x0": "1", "y0": "2", "x1": "4", "y1": "6", "score": "1.0"}
  more = {"threshold": "0.5", "coordinates": FRAME, "file_name": "a.png"}
  assert lines[0] == first | corners | more
  assert lines[2]["phrase"] == "'=1+1" and lines[2]["x0"] == lines[2]["score"] == ""


def test_a_threshold_that_is_none():
  with pytest.raises(InputError, match="threshold"):
    phrase_boxes("a.png", grounding("effusion"), 2)
