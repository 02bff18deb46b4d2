"""Preprocessing of images against torch, pixel by pixel."""

import numpy as np
import pytest

from plan_jax.baselines.gloria import ENLARGED
from plan_jax.baselines.preprocessing import MiddleOfShortSide, PaddedSquare, resample

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("torch_baselines")


@pytest.mark.parametrize("shape", [(96, 96), (300, 211), (173, 401), (512, 622), (90, 31)])
def test_square_of_gloria_and_mgca(shape):
  image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  want = theirs.padded_square(image)[0, 0] / 2 + 0.5
  np.testing.assert_allclose(PaddedSquare().fit(image), want, atol=1e-6)
  want = theirs.enlarged(theirs.padded_square(image))[0, 1] / 2 + 0.5
  np.testing.assert_allclose(PaddedSquare(enlarged_px=299).fit(image), want, atol=5e-5)


@pytest.mark.parametrize("shape", [(96, 96), (512, 611), (700, 512), (300, 211)])
@pytest.mark.parametrize("crop", [448, 480])
def test_square_of_biovil(shape, crop):
  image = np.random.default_rng(0).integers(3, 200, shape, np.uint8)
  np.testing.assert_allclose(
    MiddleOfShortSide(crop).fit(image), theirs.middle(image, crop)[0, 1], atol=1e-6
  )
  assert not MiddleOfShortSide(crop).fit(np.full(shape, 7, np.uint8)).any()


@pytest.mark.parametrize("shape", [(256, 256), (200, 311), (640, 500), (100, 37)])
def test_a_cell_of_the_square_lies_on_the_image_where_it_was_seen(shape):
  """A grid that holds the places of its cells gives each pixel its own place; none beyond."""
  cells = np.arange(19)
  # Of the enlarged image pixel 16 i, that is so far into the 224, of the 256, of the image.
  in_square = 16 * cells * 223 / 298 + 16
  height, width = shape
  scale = 256 / max(shape)
  rows, columns = (int(length * scale + 1e-9) for length in shape)
  y = (in_square - (256 - rows) // 2 + 0.5) * height / rows - 0.5
  x = (in_square - (256 - columns) // 2 + 0.5) * width / columns - 0.5
  for axis, places in enumerate((y, x)):
    grid = np.broadcast_to(places[:, None] if axis == 0 else places[None], (19, 19))
    image = ENLARGED.to_image(grid, shape)
    positions = np.argwhere(~np.isnan(image))[:, axis]
    between = (positions > places[0]) & (positions < places[-1])  # beyond centres there is no slope
    np.testing.assert_allclose(image[~np.isnan(image)][between], positions[between], atol=1e-2)
  visible = ~np.isnan(image)
  # The middle 224 of 256 in each direction, as far as the image goes.
  for length, whole, count in (
    (height, rows, visible.any(1).sum()),
    (width, columns, visible.any(0).sum()),
  ):
    assert count == pytest.approx(min(224, whole) * length / whole, abs=1.01)
  patches = PaddedSquare()
  near = patches.to_image(np.arange(196.0).reshape(14, 14), (256, 256), nearest=True)
  assert (near[16:240, 16:240] == np.kron(np.arange(196).reshape(14, 14), np.ones((16, 16)))).all()
  assert np.isnan(near[:16]).all() and np.isnan(near[:, 240:]).all()


@pytest.mark.parametrize("shape", [(256, 256), (200, 311), (640, 512), (500, 501)])
@pytest.mark.parametrize("crop", [448, 480])
def test_biovil_s_map_on_the_image(shape, crop):
  grid = np.random.default_rng(1).random((crop // 32, crop // 32)).astype(np.float32)
  model = theirs.BioViL(torch.nn.Identity(), 3, 3)
  model.crop = crop
  for mode, nearest in (("bilinear", False), ("nearest", True)):
    want = model.on_image(torch.tensor(grid), shape, mode).numpy()
    image = MiddleOfShortSide(crop).to_image(grid, shape, nearest=nearest)
    np.testing.assert_allclose(image, want, atol=1e-5)
  assert np.isnan(image).any()


def test_resampling_by_hand():
  grid = np.array([[0.0, 2], [4, 10]], np.float32)
  places = np.array([-1, 0, 0.25, 1, 5])
  values = resample(grid, places, np.array([0, 0.5]))
  np.testing.assert_allclose(values, [[0, 1], [0, 1], [1, 2.5], [4, 7], [4, 7]])
  near = resample(grid, places, np.array([0.4, 0.6]), nearest=True)
  np.testing.assert_array_equal(near, [[0, 2], [0, 2], [0, 2], [4, 10], [4, 10]])
