import cv2
import numpy as np
import pytest

from fakes import object_cxr as fake
from fakes.images import by_id, converted, table
from input_pipeline.example import UnreadableError
from input_pipeline.readers import object_cxr
from input_pipeline.readers.raw.folders import SourceError


def mask_of(example):
  (region,) = example.regions
  return cv2.imdecode(np.frombuffer(region.mask, np.uint8), cv2.IMREAD_UNCHANGED) > 0


def single(folder, annotation):
  """Reads the example of a folder whose first image has these shapes."""
  source = object_cxr.open_source(str(fake.write(folder, {"a.jpg": annotation})))
  return source.read(source.items[0])


def test_examples(tmp_path):
  _, examples = converted("object_cxr", fake.write(tmp_path / "raw"), tmp_path / "out")
  images = by_id(examples)
  assert len(images) == 7
  assert [example.image_id for example in examples["test"]] == ["dev/08001", "dev/08002"]
  rectangle, clean = images["train/00001"], images["train/00002"]
  assert (rectangle.labels, clean.labels) == ({"foreign object": 1}, {"foreign object": 0})
  assert (rectangle.patient_id, rectangle.view) == ("train/00001", "FRONTAL")
  (region,) = rectangle.regions
  assert (region.phrase, region.label, region.mask) == ("foreign object", "foreign object", b"")
  np.testing.assert_array_equal(region.boxes, [[10, 12, 30, 40]])
  assert (clean.regions, clean.sentences) == ((), ())
  # Beyond the edge: clipped.
  np.testing.assert_array_equal(
    images["dev/08001"].regions[0].boxes, [[70, 50, 80, 64], [1, 1, 4, 4]]
  )


def test_an_ellipse_is_filled_and_so_is_what_stands_beside_it(tmp_path):
  example = single(tmp_path, "1 10 10 50 30;0 60 5 70 9")
  np.testing.assert_array_equal(example.regions[0].boxes, [[10, 10, 50, 30], [60, 5, 70, 9]])
  y, x = np.mgrid[:64, :80] + 0.5
  expected = ((x - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 <= 1
  expected |= (x > 60) & (x < 70) & (y > 5) & (y < 9)
  np.testing.assert_array_equal(mask_of(example), expected)


@pytest.mark.parametrize("shape", ["1 -40 -40 40 40", "1 60 50 100 90", "1 -10 20 200 30"])
def test_an_ellipse_over_the_edge(tmp_path, shape):
  x0, y0, x1, y1 = map(float, shape.split()[1:])
  y, x = np.mgrid[:64, :80] + 0.5
  expected = np.hypot((2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)) <= 1
  np.testing.assert_array_equal(mask_of(single(tmp_path, shape)), expected)


def test_a_polygon_is_filled(tmp_path):
  example = single(tmp_path, "2 5 5 25 5 25 45 5 45")
  np.testing.assert_array_equal(example.regions[0].boxes, [[5, 5, 25, 45]])
  y, x = np.mgrid[:64, :80] + 0.5
  mask = mask_of(example)
  assert mask[(x > 5) & (x < 25) & (y > 5) & (y < 45)].all()
  assert not mask[(x < 4) | (x > 26) | (y < 4) | (y > 46)].any()
  example = single(tmp_path / "triangle", "2 -20 0 60 0 60 200")  # over the edges
  assert mask_of(example)[2, 50] and not mask_of(example)[60, 2]


def test_masks_follow_when_images_are_reduced(tmp_path):
  _, examples = converted("object_cxr", fake.write(tmp_path / "raw"), tmp_path / "out", image_px=32)
  images = by_id(examples)
  example = images["train/00004"]
  assert mask_of(example).shape == (example.height, example.width)
  assert example.height < 64


def test_validation_is_a_fifth_of_the_training_table(tmp_path):
  rows = [{"image_name": f"{i:05d}.jpg", "annotation": ""} for i in range(4000)]
  table(tmp_path / "train.csv", rows)
  table(tmp_path / "dev.csv", rows[:10])  # the same names in another folder
  source = object_cxr.open_source(str(tmp_path))
  splits = [item.split for item in source.items]
  assert splits.count("test") == 10
  assert abs(splits.count("validation") / 4000 - 0.2) < 0.02
  assert "drawn by file name" in source.notes[0]


def test_shapes_without_area_are_left_out_and_shapes_twice_dropped(tmp_path):
  rows = {"a.jpg": "0 5 5 5 9;0 10 10 20 20;0 10 10 20 20;1 9 9 3 3;2 1 1 2 1 3 1"}
  source = object_cxr.open_source(str(fake.write(tmp_path, rows)))
  assert source.left_out == (
    ("train/a.jpg (train.csv row 2)", "the shape '0 5 5 5 9' has no area"),
    ("train/a.jpg (train.csv row 2)", "the shape '1 9 9 3 3' has no area"),
    ("train/a.jpg (train.csv row 2)", "the shape '2 1 1 2 1 3 1' has no area"),
  )
  np.testing.assert_array_equal(source.read(source.items[0]).regions[0].boxes, [[10, 10, 20, 20]])
  rows = {"a.jpg": "0 5 5 5 9"}  # something is there, though nobody knows where
  source = object_cxr.open_source(str(fake.write(tmp_path / "b", rows)))
  assert dict(source.items[0].labels) == {"foreign object": 1}
  assert source.read(source.items[0]).regions == ()


def test_a_shape_outside_its_image_makes_it_unreadable(tmp_path):
  with pytest.raises(
    UnreadableError, match="x 100 to 120, y 5 to 9 lies outside the 80 x 64 image"
  ):
    single(tmp_path, "0 100 5 120 9")


@pytest.mark.parametrize(
  "shape",
  ["3 1 2 3 4", "0 1 2 3", "0 1 2 3 4 5", "2 1 2 3 4", "2 1 2 3 4 5 6 7", "0 1 2 3 nan", "x"],
)
def test_shapes_that_cannot_be_read(tmp_path, shape):
  with pytest.raises(SourceError, match="train.csv, row 2, column 'annotation'.* not "):
    single(tmp_path, f"0 1 1 9 9;{shape}")
  with pytest.raises(SourceError, match="numbers with blanks between; '0 1,2,3,4' is not"):
    single(tmp_path, "0 1,2,3,4")


def test_rows_twice(tmp_path):
  fake.write(tmp_path)
  rows = [{"image_name": "a.jpg", "annotation": "0 1 1 9 9"}] * 2
  table(tmp_path / "train.csv", rows)
  source = object_cxr.open_source(str(tmp_path))
  assert "rows that say the same as an earlier one, dropped: 1" in source.notes
  table(tmp_path / "train.csv", [rows[0], rows[0] | {"annotation": ""}])
  with pytest.raises(SourceError, match=r"row 3\) contradicts train/a.jpg \(train.csv row 2\)"):
    object_cxr.open_source(str(tmp_path))
