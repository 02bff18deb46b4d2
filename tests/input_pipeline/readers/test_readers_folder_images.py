"""Masks of any mode, and boxes and masks of images that EXIF turns, in a folder with a manifest."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from fakes.images import converted, image, manifest
from input_pipeline import images
from input_pipeline.readers import folder
from input_pipeline.readers.raw.folders import SourceError


def read(directory, **cells):
  """Reads the example of a folder that holds one image."""
  manifest(directory, [{"image": "a.png", "text": "", **cells}])
  source = folder.open_source(str(directory))
  return source.read(source.items[0])


INSIDE = np.zeros((30, 40), bool)
INSIDE[5:9, 7:20] = True


def palette_mask(index, colours, **options):
  mask = Image.fromarray(index.astype(np.uint8))
  mask.putpalette(colours)
  out = io.BytesIO()
  mask.save(out, "PNG", **options)
  return Image.open(out)


def layers(*channels):
  """An image of 8-bit channels, each a number or [H, W]."""
  return Image.fromarray(np.stack([np.broadcast_to(np.uint8(c), (30, 40)) for c in channels], -1))


MASKS = {
  "bilevel": Image.fromarray(INSIDE),
  "grey of 1": Image.fromarray(INSIDE.astype(np.uint8)),
  "16 bits of 1": Image.fromarray(INSIDE.astype(np.uint16)),
  "palette, white last": palette_mask(INSIDE, [0, 0, 0, 255, 255, 255]),
  "palette, white first": palette_mask(~INSIDE, [255, 255, 255, 0, 0, 0]),
  "palette, transparent": palette_mask(INSIDE, [255, 0, 0, 255, 0, 0], transparency=b"\x00\xff"),
  "colour": layers(0, 0, INSIDE),
  "opaque colour": layers(0, 0, INSIDE, 255),
  "white, shape in alpha": layers(255, 255, 255, INSIDE * 255),
  "black, shape in alpha": layers(0, 0, 0, INSIDE * 255),
  "shape in both": layers(INSIDE * 9, 0, 0, INSIDE * 255),
  "grey, shape in alpha": layers(255, INSIDE * 255),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_files(tmp_path, name):
  MASKS[name].save(tmp_path / "m.png")
  image(tmp_path / "a.png", 40, 30)
  (region,) = read(tmp_path, mask="m.png").regions
  pixels = images.decode(region.mask)
  assert (region.phrase, region.label, region.boxes.shape) == ("lungs", "lungs", (0, 4))
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels > 0, INSIDE)


TURNED = Image.Exif()
TURNED[0x0112] = 3


@pytest.mark.parametrize(
  ("mask", "options", "problem"),
  [
    (palette_mask(INSIDE, [200, 0, 0, 0, 200, 0]), {}, "is black nowhere"),
    (Image.fromarray(np.uint8(100 + INSIDE)), {}, "is black nowhere"),
    (layers(INSIDE * 255, 0, 0, INSIDE[::-1] * 255), {}, "shows one shape by its colours, another"),
    (MASKS["bilevel"], {"exif": TURNED}, "is turned by its EXIF orientation"),
    (MASKS["grey of 1"], {"format": "WEBP"}, "is a WEBP, which blurs outlines"),
  ],
)
def test_masks_of_two_meanings_are_refused(tmp_path, mask, options, problem):
  image(tmp_path / "a.png", 40, 30)
  mask.save(tmp_path / "m.png", **options)
  with pytest.raises(SourceError, match=rf"row 2 \(a\.png\), column 'mask': m\.png {problem}"):
    read(tmp_path, mask="m.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_boxes_and_masks_follow_an_image_that_exif_turns(tmp_path, suffix):
  pixels = np.zeros((120, 96), np.uint8)
  pixels[100:115, 5:20] = 255
  source = tmp_path / "raw"
  source.mkdir()
  Image.fromarray(pixels).save(source / f"a.{suffix}", exif=TURNED)
  Image.fromarray(pixels).save(source / "m.png")
  boxes = json.dumps([{"label": "nodule", "x": 5, "y": 100, "w": 15, "h": 15}])
  row = {"image": f"a.{suffix}", "text": "Nodule.", "split": "train"}
  manifest(source, [row | {"boxes": boxes, "mask": "m.png"}])
  _, records = converted("folder", source, tmp_path / "out")
  (example,) = records["train"]
  boxed, masked = example.regions
  np.testing.assert_array_equal(boxed.boxes, [[76, 5, 91, 20]])
  x, y, width, height = cv2.boundingRect(images.decode(masked.mask))
  assert (x, y, width, height) == (76, 5, 15, 15)
  shown = images.decode(example.image) > 128
  np.testing.assert_array_equal(shown, images.decode(masked.mask) > 0)
