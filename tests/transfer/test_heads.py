"""Classification and segmentation: losses, examples and encoders."""

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.phantom import radiograph
from plan_jax.transfer import classification
from plan_jax.transfer.encoder import fresh_encoder, pooled
from plan_jax.transfer.segmentation import data
from tiny_runs import tiny


def test_only_known_labels_count():
  raw = np.array([[0.5, -2.0], [1.0, 3.0]], np.float32)
  labels = np.array([[1, -1], [0, 1]], np.int32)
  value, parts = classification.loss(raw, {"labels": labels})
  p = 1 / (1 + np.exp(-raw))
  expected = -np.mean([np.log(p[0, 0]), np.log(1 - p[1, 0]), np.log(p[1, 1])])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert parts["known"] == 3
  assert classification.loss(raw, {"labels": -np.ones((2, 2), np.int32)})[0] == 0
  example = radiograph.example(0, 0, 64)
  encode = classification.Encode(("ghost", *example.labels), 64, None)
  encoded = encode.random_map(example, np.random.default_rng(0))
  assert encoded["labels"].tolist() == [-1, *example.labels.values()]


def test_masks_lie_in_the_square_as_the_image_does():
  examples = (radiograph.example(0, i, 64) for i in range(20))
  example = next(example for example in examples if len(example.regions) == 1)
  name = example.regions[0].label
  for keep in (True, False):
    encoded = data.Encode(("none", name), 128, keep).random_map(example, np.random.default_rng(0))
    assert encoded["known"].tolist() == [keep, True] and not encoded["masks"][..., 0].any()
  mask = images.decode(example.regions[0].mask)
  expected = cv2.resize(mask, (128, 128), interpolation=cv2.INTER_LINEAR) >= 127.5
  assert (encoded["masks"][..., 1] == expected).mean() > 0.999


def test_a_projector_is_no_part_of_the_encoder():
  config = tiny(**{"model.image.projector": 24})
  fresh = fresh_encoder(config, image_px=64, seed=0)
  assert not any(name.startswith("projector") for name in fresh.weights["params"])
  image = np.zeros((1, 64, 64, 1), np.float32)
  features, _ = pooled(fresh.module, fresh.weights, image, train=False)
  assert features.shape == (1, 16)
