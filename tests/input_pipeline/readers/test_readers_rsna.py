import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from fakes import rsna as fake
from fakes.images import by_id, converted
from input_pipeline.readers import rsna
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients

WHEEL = importlib.util.find_spec("torchxrayvision")


def test_examples(tmp_path):
  _, examples = converted("rsna", fake.write(tmp_path / "raw"), tmp_path / "out")
  examples_of = by_id(examples)
  assert sorted(examples_of) == ["p0", "p1", "p2", "p3"]
  assert examples_of["p0"].labels == {
    "Lung Opacity": 0,
    "No Lung Opacity / Not Normal": 0,
    "Normal": 1,
  }
  assert examples_of["p1"].labels["Lung Opacity"] == 1 and examples_of["p1"].view == "PA"
  (region,) = examples_of["p1"].regions
  assert region.phrase == region.label == "Lung Opacity"
  # Of 1024 pixels, on an image of 128.
  wanted = np.array([[264, 152, 477, 531], [562, 152, 818, 605]]) / 8
  np.testing.assert_allclose(region.boxes, wanted, rtol=1e-6)
  np.testing.assert_allclose(examples_of["p3"].regions[0].boxes, [[112.5, 112.5, 128, 128]])
  assert (
    examples_of["p0"].regions == examples_of["p2"].regions == ()
    and examples_of["p0"].sentences == ()
  )


def test_broken_rows_and_images_are_listed(tmp_path):
  rows = (*fake.ROWS, fake.ROWS[1], "p4,10.0,10.0,0.0,5.0,1", "p4,5.0,5.0,5.0,5.0,1", "p5,,,,,0")
  source = fake.write(tmp_path / "raw", rows, classes=False)
  (source / "stage_2_train_images" / "p0.dcm").write_bytes(b"no DICOM")
  opened = rsna.open_source(str(source))
  assert [reason for _, reason in opened.left_out] == [
    "the box x 10, y 10, width 0, height 5 is empty or outside its image"
  ]
  assert any("dropped: 1" in note for note in opened.notes)
  summary, examples = converted("rsna", source, tmp_path / "out", max_skipped_fraction=0.9)
  assert summary["skipped"] == 4  # a box, p0, and p4 and p5 without a file
  assert sorted(by_id(examples)) == ["p1", "p2", "p3"]
  listed = (tmp_path / "out" / "skipped.jsonl").read_text()
  assert "no such file" in listed and "not a readable DICOM" in listed and "p4 (" in listed
  assert by_id(examples)["p1"].labels == {"Lung Opacity": 1}


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (("p0,1,1,5,5,0",), "row 2, column 'Target'"),
    (("p0,,,,,1",), "row 2, column 'Target'"),
    (("p0,1,1,5,,1",), "column 'height'"),
    (("p0,,,,,0", "p0,1,1,5,5,1"), "row 3 says Target 1 of p0, row 2 says 0"),
    (("p0,,,,,2",), "one of 0, 1"),
  ],
)
def test_contradictions_stop(tmp_path, rows, words):
  with pytest.raises(SourceError, match=words):
    rsna.open_source(str(fake.write(tmp_path, rows, images=())))


def test_a_class_that_is_none(tmp_path):
  fake.write(tmp_path, images=())
  (tmp_path / "stage_2_detailed_class_info.csv").write_text("patientId,class\np0,Fine\n")
  with pytest.raises(SourceError, match="Normal"):
    rsna.open_source(str(tmp_path))


def test_classes_and_targets_must_agree(tmp_path):
  fake.write(tmp_path, images=())
  table = tmp_path / "stage_2_detailed_class_info.csv"
  for line, words in (
    ("p1,Normal", "row 2, column 'class': is 'Normal'; .*Target 1 of p1 in stage_2_train_labels"),
    ("p0,Lung Opacity", "row 2, column 'class'.*Target 0 of p0"),
    ("p0,Normal\np0,No Lung Opacity / Not Normal", "row 3, column 'class'.*earlier row of p0"),
  ):
    table.write_text(f"patientId,class\n{line}\n")
    with pytest.raises(SourceError, match=words):
      rsna.open_source(str(tmp_path))
  table.write_text("patientId,class\np0,Normal\nelsewhere,Lung Opacity\n")
  source = rsna.open_source(str(tmp_path))
  assert "images without a class in stage_2_detailed_class_info.csv: 3" in source.notes
  labels = {item.image_id: dict(item.labels) for item in source.items}
  assert labels["p0"] == {"Lung Opacity": 0, "No Lung Opacity / Not Normal": 0, "Normal": 1}
  assert labels["p2"] == {"Lung Opacity": 0}


@pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")
def test_the_real_table(tmp_path):
  data = Path(WHEEL.submodule_search_locations[0]) / "data"
  shutil.copy(
    data / "kaggle_stage_2_train_labels.csv.zip", tmp_path / "stage_2_train_labels.csv.zip"
  )
  source = rsna.open_source(str(tmp_path))
  assert len(source.items) == 26684 and not source.left_out
  assert sum(len(item.row.boxes) for item in source.items) == 9555
  assert sum(dict(item.labels)["Lung Opacity"] for item in source.items) == 6012
  check_patients(source.items)
