"""Tables of single radiologists of CheXpert's test set."""

import pytest

from fakes.images import table
from input_pipeline.readers import chexpert_radiologists
from input_pipeline.readers.chexpert import LABELS
from input_pipeline.readers.raw.folders import SourceError

# As in the release: two columns stand in another order than in CheXpert's own tables.
COLUMNS = ["Study", *LABELS]
COLUMNS[4], COLUMNS[5] = COLUMNS[5], COLUMNS[4]


def row(study, **labels):
  cells = dict.fromkeys(LABELS, "0") | {k.replace("_", " "): str(v) for k, v in labels.items()}
  return {"Study": f"CheXpert-v1.0/test/{study}"} | cells


def test_readings_by_study_and_finding(tmp_path):
  assert chexpert_radiologists.find(tmp_path) is None
  folder = tmp_path / chexpert_radiologists.FOLDER
  rows = [row("patient64741/study1", Lung_Opacity=1), row("patient64742/study1", Edema=1)]
  table(folder / "bc4.csv", rows, COLUMNS)
  table(folder / "bc10.csv", rows[:1], COLUMNS)
  table(tmp_path / "radiologists/groundtruth/bc1_gt.csv", rows, COLUMNS)  # of the truth: not read
  assert chexpert_radiologists.find(tmp_path) == folder
  readings = chexpert_radiologists.read(folder)
  assert list(readings) == ["bc10.csv", "bc4.csv"]
  assert set(readings["bc4.csv"]) == {"patient64741/study1", "patient64742/study1"}
  first = readings["bc4.csv"]["patient64741/study1"]
  assert first == dict.fromkeys(LABELS, 0) | {"Lung Opacity": 1}


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    ([row("patient64741")], "row 2, column 'Study': is .*; it must be a path that ends like test/"),
    ([row("patient1/study1")] * 2, "row 3, column 'Study': .* it must be in one row only"),
    ([row("patient1/study1", Edema="")], "row 2, column 'Edema': is ''; it must be 0 or 1"),
    ([row("patient1/study1", Edema=-1)], "row 2, column 'Edema': is '-1'; it must be 0 or 1"),
  ],
)
def test_what_is_not_as_it_must_be(tmp_path, rows, words):
  table(tmp_path / "bc4.csv", rows, COLUMNS)
  with pytest.raises(SourceError, match=words):
    chexpert_radiologists.read(tmp_path)


def test_a_folder_without_tables(tmp_path):
  with pytest.raises(SourceError, match=r"there is no table of a radiologist, such as bc4\.csv"):
    chexpert_radiologists.read(tmp_path)
  table(tmp_path / "bc4.csv", [row("patient1/study1")], COLUMNS[:-1])
  with pytest.raises(SourceError, match="no column 'Support Devices'"):
    chexpert_radiologists.read(tmp_path)
