"""Mass inside: shares by hand, maps without mass, cropped pixels, and rows beside a flat map."""

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example, Region
from plan_jax.evaluators.mass_inside import mass_inside_rows, score_mass_inside
from plan_jax.metrics.localization import mass_inside

HEIGHT, WIDTH = 4, 10


def examples(count):
  """Images whose phrases are "upper effusion" and "left mass"."""
  boxes = {"upper effusion": (0, 0, 10, 1), "left mass": (5, 0, 10, 4)}
  for i in range(count):
    yield Example(
      image=cv2.imencode(".png", np.full((HEIGHT, WIDTH), i, np.uint8))[1].tobytes(),
      width=WIDTH,
      height=HEIGHT,
      image_id=f"image{i}",
      study_id=f"s{i}",
      patient_id=f"p{i // 2}",
      regions=tuple(
        Region(text, text.split()[1], np.array([box], np.float32)) for text, box in boxes.items()
      ),
    )


class Model:
  """Gives a map of the first rows and columns, by the image's level."""

  def __init__(self):
    self.asked = []

  def maps(self, images, phrases, of):
    assert of == "words"
    self.asked.append(len(phrases))
    return [
      self._map(int(image[0, 0]), phrase) for image, phrase in zip(images, phrases, strict=True)
    ]

  def _map(self, level, phrase):
    out = np.zeros((HEIGHT, WIDTH), np.float32)
    if "effusion" in phrase:
      out[: 1 + level % 2] = 0.5  # all of it inside, or half
    else:
      out[:, 4:8] = 1.0
      out[0, 4] = np.nan  # 15 of whole mass, 12 inside
    return out


def test_shares_by_hand_beside_a_flat_map():
  model = Model()
  scores = score_mass_inside(model, examples(4), batch=3)
  assert model.asked == [3, 3, 2]
  run = dict(zip(scores["run"].ids, scores["run"].values[:, 0], strict=True))
  assert [run[f"image{i}\tupper effusion"] for i in range(4)] == [1, 0.5, 1, 0.5]
  assert run["image0\tleft mass"] == pytest.approx(12 / 15)
  rows = mass_inside_rows(scores, data="toy/test", resamples=20)
  cells = {(row.group, row.model): row for row in rows}
  assert len(cells) == len(rows) == 6 and rows[0].group == "macro"
  assert {row.metric for row in rows} == {"mass inside"} and {row.n for row in rows} == {4, 8}
  assert cells["effusion", "run"].value == 0.75 and cells["effusion", "chance"].value == 0.25
  assert cells["mass", "chance"].value == 0.5
  assert cells["macro", "run"].value == pytest.approx((0.75 + 0.8) / 2)


def test_without_phrases_there_are_no_rows():
  assert score_mass_inside(Model(), []) == {} and mass_inside_rows({}, data="toy") == []


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_against_plain_numpy(share):
  rng = np.random.default_rng(0)
  values, mask = rng.random((7, 9)).astype(np.float32), rng.random((7, 9)) < share
  values[0, :3] = np.nan
  pairs = zip(values.ravel().tolist(), mask.ravel().tolist(), strict=True)
  known = [(value, inside) for value, inside in pairs if value == value]
  expected = sum(value for value, inside in known if inside) / sum(value for value, _ in known)
  assert mass_inside(values, mask) == pytest.approx(expected)
  for level in (0, np.nan):
    assert mass_inside(np.full((7, 9), level, np.float32), mask) == 0
  assert mass_inside(np.full((7, 9), 0.2, np.float32), mask) == pytest.approx(mask.mean())
