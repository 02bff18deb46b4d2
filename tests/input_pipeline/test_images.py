import cv2
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.example import Example


def ramp(height, width):
  y, x = np.mgrid[:height, :width]
  return (40 + 150 * (y / height + x / width) / 2).astype(np.uint8)


def test_decode_is_grey_and_refuses_garbage():
  image = ramp(5, 8)
  assert (images.decode(cv2.imencode(".png", image)[1].tobytes()) == image).all()
  with pytest.raises(ValueError, match="JPEG or PNG"):
    images.decode(b"no image")


@pytest.mark.parametrize("shape", [(64, 64), (300, 400), (400, 300), (1000, 700), (20, 30)])
def test_fit_and_unfit_are_each_other_s_way_back(shape):
  image = ramp(*shape)
  square = images.fit(image, 64)
  assert square.shape == (64, 64) and square.dtype == np.float32
  assert square.min() >= 0 and square.max() <= 1
  back = images.unfit(square, *shape, 64)
  assert back.shape == shape
  inner = (slice(shape[0] // 8, -shape[0] // 8), slice(shape[1] // 8, -shape[1] // 8))
  assert np.abs(back * 255 - image)[inner].max() < 4


def test_margin_is_black_and_the_image_is_centred():
  square = images.fit(np.full((50, 100), 200, np.uint8), 64)
  assert (square[:15] == 0).all() and (square[-15:] == 0).all()
  np.testing.assert_allclose(square[20:44], 200 / 255, atol=1e-6)


def test_unfit_of_a_coarse_grid_lies_where_the_grid_says():
  grid = np.zeros((4, 4), np.float32)
  grid[1, 2] = 1
  back = images.unfit(grid, 200, 200, 64)
  assert np.unravel_index(back.argmax(), back.shape) == pytest.approx((75, 125), abs=1)
  # A wide image covers only the middle rows of the grid.
  back = images.unfit(grid, 100, 200, 64)
  assert np.unravel_index(back.argmax(), back.shape) == pytest.approx((25, 125), abs=1)


def test_augment_is_seeded_and_bounded():
  image = ramp(90, 120)
  augment = images.Augment()
  first, again, other = (augment(image, 64, np.random.default_rng(seed)) for seed in (1, 1, 2))
  assert (first == again).all() and (first != other).any()
  assert first.shape == (64, 64) and first.dtype == np.float32
  assert first.min() >= 0 and first.max() <= 1


def test_augment_without_strength_is_fit():
  image = ramp(90, 120)
  still = images.Augment(0, 0, 0, 0)
  np.testing.assert_allclose(
    still(image, 64, np.random.default_rng(0)), images.fit(image, 64), atol=1e-6
  )


def test_augment_never_mirrors():
  image = np.zeros((64, 64), np.uint8)
  image[:, :20] = 255  # bright on the left
  for seed in range(50):
    out = images.Augment()(image, 64, np.random.default_rng(seed))
    assert out[:, :20].mean() > out[:, -20:].mean() + 0.3


def test_decode_batches_keeps_the_order_and_names_what_is_unreadable():
  def example(name, image):
    return Example(image, 8, 5, image_id=name, study_id="s", patient_id="p")

  examples = [example(str(i), cv2.imencode(".png", ramp(5, 8) + i)[1].tobytes()) for i in range(5)]
  batches = list(images.decode_batches(iter(examples), 2))
  assert [[e.image_id for e in group] for group, _ in batches] == [["0", "1"], ["2", "3"], ["4"]]
  for group, decoded in batches:
    for member, pixels in zip(group, decoded, strict=True):
      np.testing.assert_array_equal(pixels, ramp(5, 8) + int(member.image_id))
  with pytest.raises(UserError, match="^no record, image bad: the bytes are no readable"):
    list(images.decode_batches([*examples, example("bad", b"none")], 4))
