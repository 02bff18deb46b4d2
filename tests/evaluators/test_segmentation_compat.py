"""Segmentation by prompts as RadZero measures it, against plain loops."""

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example, Region
from plan_jax.evaluators import segmentation_compat as compat
from plan_jax.inference import prompts

H, W, GRID = 20, 28, (5, 7)
(PROMPTS,) = prompts.load(["radzero"])
PNG = cv2.imencode(".png", np.zeros((H, W), np.uint8))[1].tobytes()


class Model:
  """A map of its own for each image, in their order; `cropped` columns are not seen."""

  def __init__(self, grids, scale=2.0, cropped=0):
    self.grids, self.scale, self.cropped = list(grids), scale, cropped
    self.asked = []

  def global_scale(self):
    return self.scale

  def similarities(self, images, phrases, of):
    assert of == "phrase"
    self.asked += phrases
    return np.stack([self.grids.pop(0) for _ in phrases])

  def to_image(self, grid, shape):
    image = cv2.resize(grid.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    image[:, : self.cropped] = np.nan
    return image


def example(name, label, *boxes):
  regions = (Region("x", "pneumothorax", np.array(boxes, np.float32)),) if boxes else ()
  labels = {} if label is None else {"Pneumothorax": label}
  return Example(PNG, W, H, name, name, f"patient {name}", labels=labels, regions=regions)


EXAMPLES = [
  example("a", 1, (2, 3, 12, 15)),
  example("b", 0),
  example("c", 1, (10, 3, 20, 9), (15, 5, 28, 20)),
  example("d", 0),
  example("e", 1),  # present, and not outlined
  example("f", None),
]


def random_grids(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, *GRID)).astype(np.float32)


@pytest.mark.parametrize(("cropped", "scale"), [(0, 2.0), (9, 2.0), (0, None)])
def test_by_loops(cropped, scale, capsys):
  grids = random_grids(4)
  model = Model(grids, scale, cropped)
  scores = compat.score_segmentation(model, EXAMPLES, PROMPTS, batch=3)
  assert model.asked == ["There is pneumothorax"] * 4
  assert "1 findings of images are not outlined and not denied; left out" in capsys.readouterr().out
  assert [name.split("\t")[0] for name in scores.example_scores.ids] == ["a", "b", "c", "d"]
  maps = []
  for grid in grids:
    image = cv2.resize(grid * (scale or 1), (W, H), interpolation=cv2.INTER_LINEAR)
    probability = 1 / (1 + np.exp(-image))
    probability[:, :cropped] = 0
    maps.append(probability)
  masks = np.zeros((2, H, W), bool)
  masks[0, 3:15, 2:12] = masks[1, 3:9, 10:20] = masks[1, 5:20, 15:28] = True
  means = []
  for step in range(101):
    dice = []
    for heatmap, mask in zip((maps[0], maps[2]), masks, strict=True):
      predicted = heatmap > np.float32(step / 100)
      dice.append(2 * (predicted & mask).sum() / (predicted.sum() + mask.sum()))
    means.append(np.mean(dice))
  best = int(np.argmax(means))
  rows = compat.segmentation_rows(scores, data="toy/test", resamples=20)
  cells = {(row.group, row.metric): row for row in rows}
  assert (
    cells["macro", "Dice"].value == pytest.approx(means[best]) and cells["macro", "Dice"].n == 2
  )
  assert cells["pneumothorax", "threshold"].value == pytest.approx(best / 100)
  quiet = [not (heatmap > np.float32(best / 100)).any() for heatmap in (maps[1], maps[3])]
  assert cells["macro", "specificity"].value == np.mean(quiet)
  assert {row.protocol for row in rows} == {f"{compat.PROTOCOL}, prompts {PROMPTS.fingerprint}"}


def test_a_pixel_at_a_threshold_is_not_predicted():
  values = np.array([[0.25, 0.5], [0.75, 0.5]], np.float32)
  mask = np.array([[False, True], [True, False]])
  dice = compat.dice_above(values, mask)
  assert dice[[0, 24, 25, 49, 50, 74, 75, 100]] == pytest.approx(
    [4 / 6, 4 / 6, 4 / 5, 4 / 5, 2 / 3, 2 / 3, 0, 0]
  )


def test_nothing_outlined_is_nothing():
  assert (
    compat.score_segmentation(Model(random_grids(2)), [EXAMPLES[1], EXAMPLES[3]], PROMPTS) is None
  )
  assert compat.segmentation_rows(None, data="x") == []
