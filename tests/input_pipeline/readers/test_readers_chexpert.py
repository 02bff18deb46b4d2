import gzip
import importlib.util
from pathlib import Path

import pytest

from fakes import chexpert as fake
from fakes.images import converted, table
from input_pipeline.readers import chexpert
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients

WHEEL = importlib.util.find_spec("torchxrayvision")


def ids(source):
  return [item.image_id for item in source.items]


def test_examples(tmp_path):
  summary, examples = converted("chexpert", fake.write(tmp_path / "raw"), tmp_path / "out")
  assert summary["images"] == {"train": 4, "validation": 1, "test": 1}
  assert "lateral views left aside: 1 of 7" in summary["notes"]
  first, second, third, fourth = examples["train"]
  assert first.image_id == "train/patient00001/study1/view1_frontal"
  assert (first.patient_id, first.study_id) == ("patient00001", "patient00001/study1")
  assert first.labels == {"No Finding": 1, "Support Devices": 1}
  assert second.labels == {"Edema": -1, "Cardiomegaly": 0}
  assert [s.view for s in examples["train"]] == ["AP", "PA", "LL", "AP"]
  assert fourth.labels == {}  # "nan" says nothing
  assert (examples["test"][0].view, examples["test"][0].labels) == ("", {"Edema": 1})
  path = tmp_path / "raw/CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"
  assert third.image == path.read_bytes()
  assert all(s.sentences == () and s.regions == () for s in examples["train"])


def test_the_source_may_be_the_folder_or_its_parent(tmp_path):
  fake.write(tmp_path)
  above = chexpert.open_source(str(tmp_path))
  within = chexpert.open_source(str(tmp_path / "CheXpert-v1.0-small"))
  assert above.items == within.items
  assert above.read(above.items[0]) == within.read(within.items[0])
  fake.write(tmp_path, "CheXpert-v1.0")
  with pytest.raises(SourceError, match="tables in CheXpert-v1.0/ and CheXpert-v1.0-small/; name"):
    chexpert.open_source(str(tmp_path))


def test_full_size_images_stay_in_their_archives_folders(tmp_path):
  source = chexpert.open_source(str(fake.write(tmp_path, batches=True)))
  examples = [source.read(item) for item in source.items]
  assert [example.height for example in examples] == [64, 65, 66, 68, 69, 70]
  assert len({example.image for example in examples}) == 6


def test_laterals_on_demand(tmp_path):
  source = chexpert.open_source(str(fake.write(tmp_path)), views="all")
  assert len(source.items) == 7
  assert [item.view for item in source.items].count("LATERAL") == 1
  assert not any("lateral" in note for note in source.notes)


def test_reports_of_chexpert_plus(tmp_path):
  fake.write(tmp_path, plus=True)
  home = tmp_path / "CheXpert-v1.0-small"
  # The reports above the tables, then beside them; the source is either folder.
  for number, folder in enumerate((tmp_path, home, tmp_path, home)):
    if number == 2:
      (tmp_path / "df_chexpert_plus_240401.csv").rename(home / "df_chexpert_plus_240401.csv")
    source = chexpert.open_source(str(folder), views="all")
    examples = {item.image_id: source.read(item) for item in source.items}
    frontal = examples["train/patient00002/study1/view1_frontal"]
    assert frontal.sentences == ("Small left effusion.", "No pneumothorax.", "No edema.")
    assert set(frontal.sections) == {"findings", "impression"}
    assert examples["train/patient00002/study1/view2_lateral"].sentences == frontal.sentences
    assert examples["train/patient00003/study1/view1_frontal"].sentences == ("Normal chest.",)
    assert "images without a report: 4 of 7" in source.notes
  assert not any("another report" in note for note in source.notes)
  with open(home / "df_chexpert_plus_240401.csv", "a") as file:
    file.write("train/patient00002/study1/view2_lateral.jpg,Clear.,,\n")
  source = chexpert.open_source(str(home))
  assert any(note.endswith("of the study, left aside: 1") for note in source.notes)
  (tmp_path / "df_chexpert_plus_240101.csv").write_text("")
  with pytest.raises(SourceError, match="240401.csv and .*240101.csv are both there; keep one"):
    chexpert.open_source(str(home))


def test_a_column_report_impression(tmp_path):
  row = fake.row("train/patient00001/study1/view1_frontal.jpg")
  row["Report Impression"] = "No acute disease."
  table(tmp_path / "train.csv", [row], [*fake.COLUMNS, "Report Impression"])
  source = chexpert.open_source(str(tmp_path))
  assert source.items[0].row.sections == (("impression", "No acute disease."),)
  assert not any("without a report" in note for note in source.notes)
  assert "no valid.csv or val_labels.csv: no validation images" in source.notes


def test_the_form_of_chexlocalize(tmp_path):
  for split in ("val", "test"):
    rows = [{"Path": f"{split}/patient64541/study1/view1_frontal.jpg", "Edema": "1.0"}]
    table(tmp_path / "CheXpert" / f"{split}_labels.csv", rows, ["Path", *chexpert.LABELS])
  source = chexpert.open_source(str(tmp_path))
  assert [item.split for item in source.items] == ["validation", "test"]
  table(tmp_path / "CheXpert" / "test.csv", rows, ["Path", *chexpert.LABELS])
  with pytest.raises(SourceError, match="test.csv and test_labels.csv are both there; keep one"):
    chexpert.open_source(str(tmp_path))


def test_rows_twice(tmp_path):
  rows = fake.train_rows()
  table(tmp_path / "train.csv", [*rows, rows[0]], fake.COLUMNS)
  source = chexpert.open_source(str(tmp_path))
  assert len(source.items) == 4
  assert "rows that say the same as an earlier one, dropped: 1" in source.notes
  assert "lateral views left aside: 1 of 6" in source.notes
  table(tmp_path / "train.csv", [*rows, rows[0] | {"Edema": "1.0"}], fake.COLUMNS)
  with pytest.raises(SourceError, match=r"train.csv row 7\) contradicts .* \(train.csv row 2\)"):
    chexpert.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"Path": "patient1.jpg"}, "row 2, column 'Path': is 'patient1.jpg'; it must be a path"),
    ({"Edema": "2.0"}, "row 2, column 'Edema': is '2.0'; it must be 1.0, 0.0, -1.0 or empty"),
    ({"Edema": "yes"}, "row 2, column 'Edema': is 'yes'; it must be a number"),
  ],
)
def test_wrong_cells(tmp_path, change, words):
  table(tmp_path / "train.csv", [fake.train_rows()[0] | change], fake.COLUMNS)
  with pytest.raises(SourceError, match=words):
    chexpert.open_source(str(tmp_path))


def test_a_table_without_a_column(tmp_path):
  table(tmp_path / "train.csv", fake.train_rows(), fake.COLUMNS[:-1])
  with pytest.raises(SourceError, match="no column 'Support Devices'"):
    chexpert.open_source(str(tmp_path))


@pytest.mark.skipif(WHEEL is None, reason="the real label file is not here")
def test_the_real_table(tmp_path):
  file = Path(WHEEL.submodule_search_locations[0]) / "data" / "chexpert_train.csv.gz"
  (tmp_path / "train.csv").write_bytes(gzip.decompress(file.read_bytes()))
  source = chexpert.open_source(str(tmp_path))
  assert len(source.items) == 191_027
  assert "lateral views left aside: 32387 of 223414" in source.notes
  assert len({item.patient_id for item in source.items}) == 64_534
  views = [item.view for item in source.items]
  assert (views.count("AP"), views.count("PA")) == (161_590, 29_420)
  check_patients(source.items)
