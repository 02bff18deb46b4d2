import json

import numpy as np
import pytest

from fakes import chestx_det10 as fake
from fakes.images import by_id, converted
from input_pipeline.readers import chestx_det10
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients


def opened(folder, train=fake.TRAIN, test=fake.TEST):
  return chestx_det10.open_source(str(fake.write(folder, train, test)))


def test_examples(tmp_path):
  summary, examples = converted("chestx_det10", fake.write(tmp_path / "raw"), tmp_path / "out")
  assert "boxes given twice on an image, dropped: 1" in summary["notes"]
  images = by_id(examples)
  train = ["00000004_000", "00000011_000", "00000103_001"]
  assert sorted(images) == sorted([*train, "00000071_008", "00000091_005"])
  assert [example.image_id for example in examples["test"]] == ["00000071_008", "00000091_005"]
  example = images["00000011_000"]
  assert example.patient_id == "00000011"
  assert example.labels == dict.fromkeys(chestx_det10.FINDINGS, 0) | {"Nodule": 1, "Effusion": 1}
  nodules, effusion = example.regions
  assert (nodules.phrase, nodules.label) == ("Nodule", "Nodule")
  # Of 1024 pixels, on an image of 128.
  np.testing.assert_array_equal(nodules.boxes, [[64, 0, 72, 8], [0, 64, 16, 80]])
  np.testing.assert_array_equal(effusion.boxes, [[8, 80, 32, 128]])
  assert images["00000103_001"].regions[0].boxes.shape == (1, 4)
  clean = images["00000004_000"]
  assert (clean.regions, clean.sentences, sum(clean.labels.values())) == ((), (), 0)


def test_patients_of_the_test_table_are_not_trained_on(tmp_path):
  source = opened(tmp_path)
  check_patients(source.items)
  assert "00000071_000" not in {item.image_id for item in source.items}
  assert "images of train.json whose patient is in test.json, left aside: 1 of 4" in source.notes


def test_validation_is_a_tenth_and_keeps_patients_whole(tmp_path):
  train = [fake.entry(f"{i:08d}_{j:03d}.png") for i in range(1000, 2000) for j in range(2)]
  for name, entries in (("train", train), ("test", fake.TEST)):
    (tmp_path / f"{name}.json").write_text(json.dumps(entries))
  source = chestx_det10.open_source(str(tmp_path))
  check_patients(source.items)
  splits = [item.split for item in source.items]
  assert len(splits) == 2002
  assert abs(splits.count("validation") / 2000 - 0.1) < 0.02


def test_the_older_names_tell_no_patients(tmp_path):
  train = [fake.entry("36200.png"), fake.entry("36201.png")]
  source = opened(tmp_path, train, [fake.entry("36199.png")])
  assert [item.patient_id for item in source.items] == ["36200", "36201", "36199"]
  with pytest.raises(SourceError, match="have the same name"):
    opened(tmp_path / "b", train, train[:1])


def test_boxes_that_are_clipped_or_left_out(tmp_path):
  boxes = [[-10, 960, 64, 1100], [5, 5, 5, 9], [1024, 5, 1100, 9]]
  source = opened(tmp_path, test=[fake.entry("00000091_005.png", Mass=boxes)])
  key = "00000091_005.png (test.json image 0)"
  assert source.left_out == (
    (key, "the box [5, 5, 5, 9] of Mass is empty or outside its image"),
    (key, "the box [1024, 5, 1100, 9] of Mass is empty or outside its image"),
  )
  example = source.read(source.items[-1])
  np.testing.assert_array_equal(example.regions[0].boxes, [[0, 120, 8, 128]])


def test_images_twice(tmp_path):
  source = opened(tmp_path / "a", [*fake.TRAIN, fake.TRAIN[0]])
  assert "entries that say the same as an earlier one, dropped: 1" in source.notes
  assert len(source.items) == 5
  other = fake.entry(fake.TRAIN[0]["file_name"], Mass=[[1, 1, 2, 2]])
  with pytest.raises(SourceError, match=r"train.json image 4\) contradicts .* image 0\)"):
    opened(tmp_path / "b", [*fake.TRAIN, other])


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("[", "not JSON"),
    ("{}", "must be a list of images"),
    ("[3]", "image 0: must have a file_name, and syms and boxes of one length"),
    ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": []}]', "image 0: must have"),
    ('[{"file_name": "", "syms": [], "boxes": []}]', "image 0: must have"),
    ('[{"file_name": "a.png", "syms": ["Cough"], "boxes": [[1, 2, 3, 4]]}]', "'Cough' must be"),
    ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3]]}]', "must be four numbers"),
    ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3, NaN]]}]', "four numbers"),
    ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3, 1e9]]}]', "-1e9 and 1e9"),
    ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3, "4"]]}]', "four numbers"),
  ],
)
def test_tables_that_cannot_be_right(tmp_path, content, words):
  fake.write(tmp_path)
  (tmp_path / "test.json").write_text(content)
  with pytest.raises(SourceError, match=words) as error:
    chestx_det10.open_source(str(tmp_path))
  assert str(tmp_path / "test.json") in str(error.value)
