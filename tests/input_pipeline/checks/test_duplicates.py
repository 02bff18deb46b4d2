import re

import cv2
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.checks import duplicates
from input_pipeline.checks.duplicates import (
  HASH_BITS,
  close_hashes,
  near_pairs,
  perceptual_hash,
  thumbnail,
)
from input_pipeline.phantom import radiograph
from paths import REAL


def close(hashes):
  return [tuple(pair) for block in close_hashes(hashes) for pair in block.tolist()]


@pytest.mark.parametrize("block", [5, 1 << 18])
def test_close_hashes_are_those_of_all_pairs(monkeypatch, block):
  monkeypatch.setattr(duplicates, "_BLOCK", block)
  rng = np.random.default_rng(0)
  seeds = rng.integers(0, 2**64, 12, np.uint64)
  hashes = []
  for seed in seeds:  # each with copies at 0 to 12 flipped bits
    for flips in range(13):
      places = rng.choice(64, flips, replace=False)
      hashes.append(int(seed) ^ sum(1 << int(place) for place in places))
  hashes = np.array(hashes, np.uint64)
  all_pairs = {
    (i, j)
    for i in range(len(hashes))
    for j in range(i + 1, len(hashes))
    if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= HASH_BITS
  }
  pairs = close(hashes)
  assert len(pairs) == len(set(pairs))
  assert set(pairs) == all_pairs
  assert 100 < len(all_pairs) < len(hashes) ** 2 / 10


def test_few_images_have_no_pairs():
  none = np.zeros((0, 32, 32), np.uint8)
  assert near_pairs(none).shape == near_pairs(np.zeros((1, 32, 32), np.uint8)).shape == (0, 2)
  assert close(np.array([5, 5, 5], np.uint64)) == [(0, 1), (0, 2), (1, 2)]


def test_the_hash_is_the_sign_of_low_frequencies():
  thumb = thumbnail(images.decode(radiograph.example(0, 3, 64).image))
  coefficients = cv2.dct(thumb.astype(np.float32))[1:9, 1:9]
  bits = np.unpackbits(perceptual_hash(thumb[None]).view(np.uint8))
  np.testing.assert_array_equal(bits, coefficients.ravel() > 0)


def recode(pixels):
  return images.decode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes())


CHANGES = {
  "compressed": recode,
  "smaller": lambda p: cv2.resize(p, (90, 70), interpolation=cv2.INTER_AREA),
  "toned": lambda p: np.uint8(255 * (p / 255) ** 0.8),
  "noisier": lambda p: np.uint8(
    np.clip(p + np.random.default_rng(0).normal(0, 6, p.shape), 0, 255)
  ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copies_are_found_and_look_alikes_are_not(change):
  decoded = [images.decode(radiograph.example(0, i, 128).image) for i in range(60)]
  thumbs = np.stack(
    [thumbnail(image) for image in decoded + [change(image) for image in decoded[:20]]]
  )
  expected = [[i, 60 + i] for i in range(20)]
  np.testing.assert_array_equal(near_pairs(thumbs), expected)


@pytest.mark.skipif(not REAL.exists(), reason="needs the real images of cxr_mini")
def test_the_real_images_that_two_sets_share_are_found_at_another_size():
  large = sorted(REAL.glob("images/ni_*"))
  small = sorted(REAL.with_name("nih_64px").glob("images/*"))
  assert len(large) > 800 and len(small) == 967
  thumbs = [thumbnail(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in large + small]
  pairs = near_pairs(np.stack(thumbs)).tolist()
  patients = [re.search(r"(\d+)_", (large + small)[j].name).group(1) for _, j in pairs]
  expected = "00000061 00000061 00000075 00000100 00000129 00000150 00000193"
  assert patients == expected.split()
  assert all(i < len(large) <= j for i, j in pairs)
