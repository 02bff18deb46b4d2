"""Side: the values against plain NumPy, ties, what is left out, and the margin of an image."""

import cv2
import numpy as np
import pytest

from input_pipeline import images as images_lib
from input_pipeline.example import Example, Region
from plan_jax import compare
from plan_jax.evaluators import side
from plan_jax.metrics.localization import side_balance

HEIGHT, WIDTH = 12, 20
RIGHT, LEFT = (1, 2, 9, 10), (11, 2, 19, 10)  # boxes on the patient's right and left


def example(i, *phrases, view="PA", image=None):
  """An image whose phrases are (text, box)."""
  pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
  return Example(
    image=cv2.imencode(".png", pixels)[1].tobytes() if image is None else image,
    width=WIDTH,
    height=HEIGHT,
    image_id=f"image{i}",
    study_id=f"s{i}",
    patient_id=f"p{i // 2}",
    view=view,
    regions=tuple(
      Region(text, text.split()[-1], np.array([box], np.float32)) for text, box in phrases
    ),
  )


class Model:
  """Gives the similarities of a function of image and phrase; the map is what is above zero."""

  def __init__(self, similarity):
    self.similarity, self.asked = similarity, []

  def similarities(self, images, phrases, of):
    assert of == "words"
    pairs = zip(images, phrases, strict=True)
    return np.stack([self.similarity(image, phrase) for image, phrase in pairs]).astype(np.float32)

  def maps(self, images, phrases, of):
    self.asked.append(list(phrases))
    maps = np.maximum(self.similarities(images, phrases, of), 0)
    tops = maps.max((1, 2), keepdims=True)
    maps = maps / np.where(tops > 0, tops, 1)
    return [self.to_image(m, image.shape) for m, image in zip(maps, images, strict=True)]

  def to_image(self, grid, shape, *, nearest=False):
    return images_lib.unfit(grid, *shape, 32, nearest=nearest)


def lit(*columns, level=1.0):
  """A grid [4, 4] with these columns above the rest."""
  grid = np.zeros((4, 4))
  grid[1:3, list(columns)] = level
  return grid


def score(similarity, *examples, **options):
  return side.score_side(Model(similarity), examples, **options)


ONE = example(0, ("small right effusion", RIGHT))


@pytest.mark.parametrize(
  ("right", "left", "expected"),
  [
    (lit(0, 1, level=0.9), lit(2, 3, level=0.8), [1, 1, 1]),
    (lit(0, 1, level=0.8), lit(2, 3, level=0.9), [1, 1, 0]),
    (lit(2, 3, level=0.9), lit(0, 1, level=0.8), [0, 1, 1]),  # both on the wrong side
    (lit(0, level=0.9), lit(1, level=0.8), [1, 0, 1]),  # moves within a half
    (lit(0, level=0.5), lit(0, level=0.5), [1, 0, 0]),  # does not read the side
    (lit(0) + 0.6 * lit(3), lit(3) + 0.6 * lit(0), [1, 1, 0]),  # more than half
    (np.ones((4, 4)), lit(3), [0, 0, 0]),  # flat: no side
    (lit(0), np.full((4, 4), 0.1), [1, 0, 1]),
    (lit(1) + lit(2), lit(3, level=2), [0, 0, 0]),  # level
    (np.full((4, 4), -0.3), np.full((4, 4), -0.4), [0, 0, 1]),  # maps of zeros
    (lit(0), lit(0, level=1 + 5e-7), [1, 0, 0]),
    (lit(0, level=1 + 5e-7), lit(0), [1, 0, 0]),  # peaks that tie
  ],
)
@pytest.mark.parametrize("named", ["right", "left"])
def test_values_of_one_phrase(right, left, expected, named):
  """The mirror image of all this, with the other word, has the same values."""
  grids = {"right": right, "left": left}
  if named == "left":
    grids = {"left": right[:, ::-1], "right": left[:, ::-1]}

  def similarity(image, phrase):
    return grids["right" if "right" in phrase else "left"]

  scores = score(
    similarity, example(0, (f"small {named} effusion", RIGHT if named == "right" else LEFT))
  )
  assert scores.metrics == ("on the named side", "moves", "true side brighter")
  assert scores.values.tolist() == [expected]
  assert scores.ids == [f"image0\tsmall {named} effusion"] and scores.groups == ["effusion"]


def test_the_margin_beside_an_image_does_not_count():
  """Rows 0 and 3 of the grid are black margin: neither mass nor peak."""
  right, left = lit(0, 1), lit(2, 3, level=0.9)
  right[0, 3] = 50.0
  left[3, 3] = 60.0
  wide = example(0, ("right effusion", (0, 0, 40, 20)))
  wide = Example(**{**wide.__dict__, "width": 80, "height": 20})
  pixels = np.zeros((20, 80), np.uint8)
  wide = Example(**{**wide.__dict__, "image": cv2.imencode(".png", pixels)[1].tobytes()})
  scores = score(lambda image, phrase: right if "right" in phrase else left, wide)
  assert scores.values.tolist() == [[1, 1, 1]]


def test_cropped_pixels_hold_no_mass():
  class Cropping(Model):
    def to_image(self, grid, shape, *, nearest=False):
      out = super().to_image(grid, shape, nearest=nearest)
      out[:, 15:] = np.nan
      return out

  def similarity(image, phrase):
    return lit(0) + 5 * lit(3) if "right" in phrase else 0.5 * lit(2)

  scores = side.score_side(Cropping(similarity), [ONE])
  assert scores.values.tolist() == [[1, 1, 1]]


def _oracle(values):
  """Shares of the mass on the image's left and right half, pixel by pixel."""
  height, width = values.shape
  left = right = total = 0.0
  for y in range(height):
    for x in range(width):
      value = 0.0 if np.isnan(values[y, x]) else float(values[y, x])
      total += value
      left += value * (x + 0.5 < width / 2)
      right += value * (x + 0.5 > width / 2)
  return (right - left) / total if total else 0.0


@pytest.mark.parametrize("shape", [(5, 8), (4, 7), (1, 2), (3, 1)])
def test_balance_agrees_with_a_count_of_pixels(shape):
  rng = np.random.default_rng(sum(shape))
  for _ in range(20):
    values = rng.random(shape).astype(np.float32)
    values[rng.random(shape) < 0.2] = np.nan
    assert side_balance(values) == pytest.approx(_oracle(values), abs=1e-6)
  mask = rng.random(shape) < 0.5
  assert side_balance(mask) == pytest.approx(_oracle(mask.astype(float)), abs=1e-6)
  for level in (np.float32(0), np.float32(0.1), np.float32(np.nan)):
    assert side_balance(np.full(shape, level)) == 0


def test_scores_agree_with_plain_numpy_and_batches_do_not_matter():
  rng = np.random.default_rng(0)
  grids = {}
  sides = ["right", "left"] * 20
  data = [
    example(i, (f"{name} mass", RIGHT if name == "right" else LEFT)) for i, name in enumerate(sides)
  ]

  def similarity(image, phrase):
    return grids.setdefault((image.tobytes(), phrase), rng.normal(size=(4, 4)))

  scores = score(similarity, *data)
  for each, name, values in zip(data, sides, scores.values, strict=True):
    image = images_lib.decode_example(each)
    other = {"right": "left", "left": "right"}[name]
    true, false = (grids[image.tobytes(), f"{word} mass"] for word in (name, other))
    # The image covers all columns of the square and three fifths of its rows: parts of all cells.
    mine, theirs = (
      _oracle(images_lib.unfit(np.maximum(x, 0), *image.shape, 32)) for x in (true, false)
    )
    sign = 1 if name == "left" else -1
    assert values.tolist() == [mine * sign > 0, mine * theirs < 0, true.max() > false.max()]
  assert {0, 1} == set(scores.values.ravel())
  again = score(similarity, *data, batch=7)
  assert again.ids == scores.ids and (again.values == scores.values).all()


def test_what_is_left_out_is_counted_and_not_decoded(capsys):
  whole = (0, 0, WIDTH, HEIGHT)
  data = [
    example(0, ("small right effusion", RIGHT), ("cardiomegaly", LEFT), ("LLL mass", LEFT)),
    example(1, ("bilateral effusions", whole), ("both lungs", whole), image=b"not read"),
    example(2, ("left and right mass", LEFT), ("dextroscoliosis", LEFT), image=b"not read"),
    example(3, ("lingular mass on the left", LEFT), image=b"not read"),
    example(4, ("right mass", RIGHT), view="LATERAL", image=b"not read"),
    example(5, ("right mass", RIGHT), view="ll", image=b"not read"),
    example(6, ("right mass", LEFT), ("left nodule", whole), image=b"not read"),
    example(7, ("right-sided mass", (0, 0, 12, 12)), view="LLD"),  # more of it on the right
  ]
  model = Model(lambda image, phrase: lit(0) if "right" in phrase.lower() else lit(3))
  scores = side.score_side(model, data)
  kept = ["small right effusion", "LLL mass", "right-sided mass"]
  assert [name.partition("\t")[2] for name in scores.ids] == kept
  assert model.asked == [[*kept, "small left effusion", "RLL mass", "left-sided mass"]]
  assert scores.values[:, 0].tolist() == [1, 1, 1] and scores.patients == ["p0", "p0", "p3"]
  assert capsys.readouterr().out == (
    "side: 3 of 13 phrases are scored; left out: 2 are of a lateral view, 2 have a region that is"
    " not on their side, 1 name a side that cannot be told, 3 name both sides, 2 name no side\n"
  )


def test_without_a_phrase_that_names_a_side_there_are_no_rows(capsys):
  assert score(None, example(0, ("cardiomegaly", LEFT), image=b"not read")) is None
  assert capsys.readouterr().out == "side: 0 of 1 phrases are scored; left out: 1 name no side\n"
  assert score(None) is None and side.side_rows(None, data="toy") == []
  assert capsys.readouterr().out == ""


def test_rows_and_paired_comparison():
  """One that reads the side, one that does not, on effusions and masses."""
  data = [
    example(i, (f"{name} {finding}", RIGHT if name == "right" else LEFT))
    for i in range(60)
    for name, finding in [(("right", "left")[i % 2], ("effusion", "mass")[i % 3 == 0])]
  ]
  reads = score(lambda image, phrase: lit(0, level=0.9) if "right" in phrase else lit(3), *data)
  not_ = score(lambda image, phrase: lit(0), *data)
  rows = side.side_rows(reads, data="toy/test", resamples=50)
  cells = {(row.group, row.metric, row.model): row for row in rows}
  assert len(cells) == len(rows) == 3 * 3 * 2 and rows[0].group == "macro"
  assert {(row.task, row.protocol, row.data) for row in rows} == {("side", "side-v1", "toy/test")}
  assert cells["macro", "moves", "run"].value == 1
  brighter = cells["mass", "true side brighter", "run"]
  assert (brighter.value, brighter.n) == (0.5, 20) and brighter.low < 0.5 < brighter.high
  assert cells["mass", "moves", "chance"].value == 0.5
  changes = {
    (group, metric): (a, b, change)
    for group, metric, a, b, change in compare.differences.mean_changes(
      not_, reads, {"resamples": 50, "seed": 0}
    )
  }
  a, b, change = changes["macro", "moves"]
  assert (a, b, change.value, change.low, change.high) == (0, 1, 1, 1, 1)
  a, b, change = changes["effusion", "on the named side"]
  assert (a, b) == (0.5, 1) and 0 < change.low < change.value == 0.5
