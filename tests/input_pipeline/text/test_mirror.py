"""Sides exchanged in the reports of mirror images."""

import csv

import pytest

from input_pipeline.text import mirror, reports
from paths import SHARED_DATA

PAIRS = [
  ("Small left pleural effusion.", "Small right pleural effusion."),
  ("Right-sided line, LEFT base clear.", "Left-sided line, RIGHT base clear."),
  ("Leftward shift of the trachea.", "Rightward shift of the trachea."),
  ("Midright lung opacity, the rightmost.", "Midleft lung opacity, the leftmost."),
  ("Mild dextroscoliosis, levo curvature.", "Mild levoscoliosis, dextro curvature."),
  ("RUL nodule, LIJ catheter.", "LUL nodule, RIJ catheter."),
  ("Opacity of the right middle lobe.", "Opacity of the left middle lobe."),
  ("Bilateral effusions, upright view, lefty.", "Bilateral effusions, upright view, lefty."),
  ("", ""),
]


@pytest.mark.parametrize(("text", "other"), PAIRS)
def test_sides_change_places(text, other):
  assert mirror.swapped(text) == other
  assert mirror.swapped(other) == text
  assert mirror.can_be_swapped([text]) and mirror.can_be_swapped([other])


@pytest.mark.parametrize(
  ("text", "sides"),
  [
    ("Small left effusion, left apex.", "left"),
    ("Right-sided line, tip in the midright.", "right"),
    ("RLL nodule.", "right"),
    ("LIJ catheter, upright view.", "left"),
    ("RUL nodule and LEFT effusion.", "left right"),
    ("Bilateral effusions.", "left right"),
    ("Both lungs; biapical scars.", "left right"),
    ("Right effusion, bibasilar atelectasis.", "left right"),
    ("Levoscoliosis.", ""),
    ("Dextroscoliosis, left effusion.", "left"),
    ("Lateral view, cardiomegaly.", ""),
  ],
)
def test_sides_of_a_text(text, sides):
  opposite = {"left": "right", "right": "left"}
  assert mirror.sides(text) == set(sides.split())
  assert mirror.sides(mirror.swapped(text)) == {opposite[side] for side in sides.split()}


@pytest.mark.parametrize(
  "text",
  [
    "Dextrocardia.",
    "Known situs inversus.",
    "Lingular opacity.",
    "Azygos lobe.",
    "Middle lobe collapse.",
    "A drain was left in place.",
    "RML opacity.",
    "Opacity of the R base.",
    "Tip in the RA.",
  ],
)
def test_sides_that_cannot_be_told(text):
  assert not mirror.can_be_swapped(["Small left effusion.", text])


def test_capitals_are_no_abbreviations():
  assert mirror.can_be_swapped(["RIB FRACTURE ON THE LEFT, NO LINE."])


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real reports are not here")
def test_real_reports():
  with (SHARED_DATA / "iu_reports" / "iu_reports.csv").open() as file:
    texts = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file)]
  for text in texts:
    other = mirror.swapped(text)
    assert mirror.swapped(other) == text
    assert len(reports.words(other)) == len(reports.words(text))
  untold = sum(not mirror.can_be_swapped([text]) for text in texts)
  assert untold / len(texts) < 0.05
