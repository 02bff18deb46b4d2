import gzip
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from fakes import vindr as fake
from fakes.images import by_id, converted
from input_pipeline.readers import vindr
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Listing

WHEEL = importlib.util.find_spec("torchxrayvision")


def test_examples(tmp_path):
  summary, examples = converted("vindr", fake.write(tmp_path / "raw"), tmp_path / "out")
  examples_of = by_id(examples)
  assert {s.image_id for s in examples["test"]} == {"t0", "t1"}
  f0 = examples_of["f0"]
  # Two of three name the heart, one the nodule and nothing; pneumonia is of the whole image.
  assert f0.labels == {
    "Cardiomegaly": 1,
    "Nodule/Mass": -1,
    "No finding": -1,
    "Pneumonia": 1,
    "Other diseases": 0,
  }
  regions = {region.label: region.boxes for region in f0.regions}
  np.testing.assert_allclose(regions["Cardiomegaly"], [[21, 41, 81, 91]])
  assert list(regions) == ["Cardiomegaly"]  # the nodule is uncertain
  assert "boxes of findings that one reader alone names, left aside: 1" in summary["notes"]
  assert examples_of["f1"].labels["No finding"] == 1 and examples_of["f1"].view == "PA"
  assert examples_of["f1"].regions == ()
  names = ("Pleural effusion", "Pneumonia", "Other diseases", "No finding")
  assert examples_of["t0"].labels == dict(zip(names, (1, 1, 1, 0), strict=True))
  assert examples_of["t1"].labels == dict(zip(names, (0, 0, 0, 1), strict=True))


def test_kaggles_folder_and_fusion(tmp_path):
  source = fake.write(tmp_path / "raw", kaggle=True)
  _, examples = converted("vindr", source, tmp_path / "out", fusion="every")
  examples_of = by_id(examples)
  assert sorted(examples_of) == ["f0", "f1"]
  (heart,) = examples_of["f0"].regions
  np.testing.assert_allclose(heart.boxes, [[20, 40, 80, 90], [22, 42, 82, 92]])


def test_broken_boxes(tmp_path):
  rows = [
    *fake.ROWS,
    fake.ROWS[0],
    fake.box("f1", "R1", "Cardiomegaly", 50, 10, 50, 20),
    fake.box("f1", "R2", "Cardiomegaly", 500, 500, 600, 600),
  ]
  source = vindr.open_source(str(fake.write(tmp_path / "raw", rows)))
  ((key, reason),) = source.left_out
  assert key.startswith("f1 (annotations_train.csv row") and "is empty" in reason
  assert any("dropped: 1" in note for note in source.notes)
  summary, examples = converted(
    "vindr", tmp_path / "raw", tmp_path / "out", max_skipped_fraction=0.9
  )
  assert summary["skipped"] == 2 and "f1" not in by_id(examples)
  assert "lies outside its 96 x 100 image" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_a_reader_who_names_a_finding_does_not_say_no_finding(tmp_path):
  rows = [*fake.ROWS, fake.box("f1", "R1", "Cardiomegaly", 5, 5, 9, 9)]
  source = vindr.open_source(str(fake.write(tmp_path, rows, labels=False)))
  labels = {item.image_id: dict(item.labels) for item in source.items}
  assert labels["f1"] == {"Cardiomegaly": -1, "Nodule/Mass": 0, "No finding": 1}
  assert "annotations_train.csv: readers who name a finding and 'No finding': 1" in source.notes
  # A disease of the whole image, without a box, is a finding too.
  whole = [
    {"image_id": "f1", "rad_id": f"R{r}", "Pneumonia": int(r < 3), "No finding": 0}
    for r in (1, 2, 3)
  ]
  fake.table(tmp_path / "annotations" / "image_labels_train.csv", whole)
  source = vindr.open_source(str(tmp_path))
  labels = {item.image_id: dict(item.labels) for item in source.items}
  assert labels["f1"]["Pneumonia"] == 1 and labels["f1"]["No finding"] == -1


@pytest.mark.parametrize(
  ("named", "readers", "label"),
  [(0, 3, 0), (1, 3, -1), (2, 3, 1), (3, 3, 1), (0, 1, 0), (1, 1, 1), (1, 2, -1), (2, 2, 1)],
)
def test_labels_by_the_number_of_readers(tmp_path, named, readers, label):
  rows = [
    fake.box("f0", f"R{i}", "Nodule/Mass", 5, 5, 9, 9)
    if i < named
    else {"image_id": "f0", "rad_id": f"R{i}", "class_name": "No finding"}
    for i in range(readers)
  ]
  (item,) = (
    item
    for item in vindr.open_source(str(fake.write(tmp_path, rows, labels=False))).items
    if item.split != "test"
  )
  assert dict(item.labels).get("Nodule/Mass", 0) == label


def test_training_images_need_their_readers(tmp_path):
  fake.write(tmp_path)
  rows = [{k: v for k, v in row.items() if k != "rad_id"} for row in fake.ROWS]
  fake.table(tmp_path / "annotations" / "annotations_train.csv", rows)
  with pytest.raises(SourceError, match=r"annotations_train\.csv: no column 'rad_id'"):
    vindr.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("row", "words"),
  [
    (
      fake.box("f1", "R1", "Cardiomegaly", "", "", "", ""),
      "column 'x_min'.*empty for 'No finding'",
    ),
    (fake.box("f1", "R1", "No finding", 1, 1, 5, 5), "column 'x_min'"),
    (fake.box("f1", "R1", "Cardiomegaly", 1, 1, 5, ""), "column 'y_max'"),
    (fake.box("f1", "", "Cardiomegaly", 1, 1, 5, 5), "column 'rad_id'"),
  ],
)
def test_contradictions_stop(tmp_path, row, words):
  with pytest.raises(SourceError, match=words):
    vindr.open_source(str(fake.write(tmp_path, [*fake.ROWS, row])))


@pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")
def test_the_real_table(tmp_path):
  data = Path(WHEEL.submodule_search_locations[0]) / "data"
  with (
    gzip.open(data / "vinbigdata-train.csv.gz") as packed,
    open(tmp_path / "train.csv", "wb") as to,
  ):
    shutil.copyfileobj(packed, to)
  assert (tmp_path / "train.csv").read_text().count("\n") == 67914 + 1
  source = vindr.open_source(str(tmp_path))
  assert len(source.items) == 15000 and not source.left_out
  read_by = vindr._read_images(tmp_path / "train.csv", tmp_path, "train", Listing())
  assert {len(image.readers) for image in read_by.values()} == {3}
  kept = sum(len(item.row.boxes) for item in source.items)
  assert kept == 36096 - 7924  # 7,924 boxes are of findings that one reader alone names
  assert f"left aside: {36096 - kept}" in source.notes[0]
  normal = sum(dict(item.labels)["No finding"] == 1 for item in source.items)
  assert normal == 10606
