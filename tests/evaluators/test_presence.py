"""Presence: areas by finding, what is left out and said, and images calls for in order."""

import math

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.evaluators import presence


def _example(i, labels, level=None, image=None):
  pixels = np.full((6, 8), i if level is None else level, np.uint8)
  return Example(
    image=cv2.imencode(".png", pixels)[1].tobytes() if image is None else image,
    width=8,
    height=6,
    image_id=f"image{i}",
    study_id=f"s{i}",
    patient_id=f"p{i // 2}",
    labels=labels,
  )


def evaluate(model, examples, *, data="toy", batch=64, resamples=50):
  scores = presence.score_presence(model, examples, batch=batch)
  return presence.presence_rows(scores, data=data, resamples=resamples)


class _Bright:
  """The peak of "mass" is the image's brightness, that of every other finding constant."""

  def __init__(self):
    self.calls = []

  def peaks(self, images, phrases):
    self.calls.append([(int(i[0, 0]), phrase) for i, phrase in zip(images, phrases, strict=True)])
    pairs = zip(images, phrases, strict=True)
    peaks = [image.mean() / 100 if phrase == "mass" else 0.25 for image, phrase in pairs]
    return np.array(peaks, np.float32)


def _examples():
  return [
    _example(10, {"mass": 0, "edema": 1}),
    _example(20, {"mass": 1, "edema": -1}),
    _example(30, {"mass": 0, "edema": 0, "tube": 1}),
    _example(40, {"mass": 1, "edema": 0}),
    _example(50, {"tube": -1}, image=b"not looked at"),
    _example(60, {}, image=b"not looked at"),
  ]


def test_areas_and_peaks_by_hand(capsys):
  model = _Bright()
  rows = evaluate(model, _examples(), data="toy/test", batch=3, resamples=50)
  assert model.calls == [
    [(10, "mass"), (10, "edema"), (20, "mass")],
    [(30, "mass"), (30, "edema"), (30, "tube")],
    [(40, "mass"), (40, "edema")],
  ]
  cells = {(row.group, row.metric, row.model): row for row in rows}
  assert len(cells) == len(rows) == 3 * (3 + 1)
  assert rows[0].group == "macro"
  assert {(row.task, row.protocol, row.data) for row in rows} == {
    ("presence", "presence-v1", "toy/test")
  }
  mass, edema = cells["mass", "AUC", "run"], cells["edema", "AUC", "run"]
  assert (mass.value, mass.n) == (0.75, 4) and (edema.value, edema.n) == (0.5, 3)
  assert (cells["macro", "AUC", "run"].value, cells["macro", "AUC", "run"].n) == (0.625, 7)
  for group in ("macro", "mass", "edema"):
    chance = cells[group, "AUC", "chance"]
    assert (
      chance.value == 0.5 and math.isnan(chance.low) and chance.n == cells[group, "AUC", "run"].n
    )
  present, absent = (cells["mass", f"mean peak {kind}", "run"] for kind in ("present", "absent"))
  assert (present.value, present.n) == (pytest.approx(0.3), 2)
  assert (absent.value, absent.n) == (pytest.approx(0.2), 2)
  macro = cells["macro", "mean peak present", "run"]
  assert (macro.value, macro.n) == (pytest.approx((0.3 + 0.25) / 2), 3)
  assert capsys.readouterr().out.splitlines() == [
    "presence: 2 of 18 pairs of image and finding are uncertain and left out",
    "presence: 8 of 18 pairs of image and finding have no label",
    "presence: 1 of 3 findings are only present or only absent and left out: tube",
  ]


def test_a_model_that_knows_beats_chance_and_batches_do_not_matter(capsys):
  rng = np.random.default_rng(0)
  levels = rng.integers(0, 250, 60)
  examples = [
    _example(
      i, {"mass": int(level + rng.normal(0, 40) > 125), "edema": int(i % 3 == 0)}, int(level)
    )
    for i, level in enumerate(levels)
  ]
  rows = evaluate(_Bright(), iter(examples), data="toy", resamples=200)
  values = {(row.group, row.metric): row for row in rows if row.model == "run"}
  mass, edema = values["mass", "AUC"], values["edema", "AUC"]
  assert 0.5 < mass.low < mass.value < mass.high <= 1
  assert (edema.low, edema.value, edema.high) == (0.5, 0.5, 0.5)
  assert values["macro", "AUC"].value == pytest.approx((mass.value + 0.5) / 2)
  again = evaluate(_Bright(), examples, data="toy", resamples=200, batch=7)
  assert repr(again) == repr(rows)
  assert capsys.readouterr().out == ""  # nothing was left out


def test_without_two_kinds_there_are_no_rows(capsys):
  assert evaluate(_Bright(), []) == []
  assert capsys.readouterr().out == ""
  assert evaluate(_Bright(), [_example(1, {})]) == []
  assert capsys.readouterr().out == "presence: none of 1 images has labels\n"
  examples = [_example(1, {"mass": 1}), _example(2, {"edema": 0})]
  assert evaluate(_Bright(), examples) == []
  assert (
    "2 of 2 findings are only present or only absent and left out: edema, mass"
    in capsys.readouterr().out
  )


def test_wrong_images_and_peaks_are_named():
  class Wrong:
    def __init__(self, values):
      self.values = values

    def peaks(self, images, phrases):
      return np.full(self.values, np.nan, np.float32)

  both = [_example(1, {"mass": 1}), _example(2, {"mass": 0})]
  with pytest.raises(ValueError, match=r"peaks \(3,\) for 2 phrases"):
    evaluate(Wrong(3), both)
  with pytest.raises(ValueError, match="NaN"):
    evaluate(Wrong(2), both)
  with pytest.raises(UserError, match="image7"):
    evaluate(Wrong(1), [_example(7, {"mass": 1}, image=b"no")])
