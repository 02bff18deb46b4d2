import gzip
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from fakes import siim as fake
from fakes.images import by_id, converted
from input_pipeline import images
from input_pipeline.example import UnreadableError
from input_pipeline.readers import siim
from input_pipeline.readers.raw.folders import SourceError

WHEEL = importlib.util.find_spec("torchxrayvision")


def test_examples(tmp_path):
  _, examples = converted("siim", fake.write(tmp_path / "raw"), tmp_path / "out")
  examples_of = by_id(examples)
  assert examples_of["a"].labels == {"Pneumothorax": 0} and examples_of["a"].regions == ()
  assert examples_of["b"].labels == {"Pneumothorax": 1} and examples_of["b"].view == "PA"
  (region,) = examples_of["b"].regions
  expected = np.zeros((1024, 1024), bool)
  expected[:10, 1:3] = True
  expected[20:23, 500] = True
  np.testing.assert_array_equal(images.decode(region.mask) > 0, expected)


def test_runs_are_relative_and_column_by_column():
  mask = siim.decode_runs((3, 2, 1024, 4))
  expected = np.zeros((1024, 1024), bool)
  expected[3:5, 0] = True
  expected[5:9, 1] = True
  np.testing.assert_array_equal(mask, expected)
  assert siim.decode_runs((0, 1024 * 1024)).all()


def test_flat_folders_and_images_of_other_sizes(tmp_path):
  rows = ("a,-1", f"b,0 {512 * 1024}", f"c,{500 * 1024 + 21} 1")
  source = fake.write(tmp_path / "raw", rows, flat=True, size_px=256)
  _, examples = converted("siim", source, tmp_path / "out")
  examples_of = by_id(examples)
  half, speck = (images.decode(examples_of[name].regions[0].mask) > 0 for name in "bc")
  assert half.shape == (256, 256) and half[:, :128].all() and not half[:, 128:].any()
  np.testing.assert_array_equal(np.argwhere(speck), [[5, 125]])  # small, and not lost


def test_an_image_that_is_not_square_has_no_mask(tmp_path):
  source = siim.open_source(str(fake.write(tmp_path, flat=True, size_px=256, height=128)))
  a, b, _ = source.items
  assert source.read(a).height == 128
  with pytest.raises(UnreadableError, match="256 x 128, its mask is of a square one"):
    source.read(b)


def test_what_is_noted_and_skipped(tmp_path):
  rows = ("a, -1", "a,-1", "b,1024 10", "b,1024 10", "b,5000 3", "e,-1")
  source = siim.open_source(str(fake.write(tmp_path / "raw", rows)))
  assert any("dropped: 2" in note for note in source.notes)
  assert any("left aside: 1" in note for note in source.notes)
  summary, _ = converted("siim", tmp_path / "raw", tmp_path / "out", max_skipped_fraction=0.5)
  assert summary["skipped"] == 1 and sum(summary["images"].values()) == 2


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (("a,1 2 3",), "row 2, column 'EncodedPixels'.*pairs"),
    (("a,5 0",), "a pixel at least"),
    (("a,1048570 10",), "end within"),
    (("a,-1 4",), "pairs"),
    (("a,x",), "whole numbers"),
    (("a,",), "filled"),
    (("a,-1", "a,1 2"), "row 3 and row 2 say that a has a mask and none"),
    (("a,1 2", "a,-1"), "row 3 and row 2"),
  ],
)
def test_contradictions_stop(tmp_path, rows, words):
  with pytest.raises(SourceError, match=words):
    siim.open_source(str(fake.write(tmp_path, rows, images="")))


@pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")
def test_the_real_table(tmp_path):
  data = Path(WHEEL.submodule_search_locations[0]) / "data"
  with (
    gzip.open(data / "siim-pneumothorax-train-rle.csv.gz") as packed,
    open(tmp_path / "train-rle.csv", "wb") as table,
  ):
    shutil.copyfileobj(packed, table)
  assert (tmp_path / "train-rle.csv").read_text().count("\n") == 12954 + 1
  items = siim.open_source(str(tmp_path)).items
  assert len(items) == 12047
  masks = [runs for item in items for runs in item.row.runs]
  assert len(masks) == 12954 - 9378
  assert sum(len(item.row.runs) > 1 for item in items) == 624
  for runs in masks[::50]:  # where runs end, listing has checked for all
    assert siim.decode_runs(runs).sum() == sum(runs[1::2])
