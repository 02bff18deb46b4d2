import gzip
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fakes import nih14 as fake
from fakes.images import by_id, converted
from input_pipeline.readers import nih14
from input_pipeline.readers.raw import boxes, folders
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients
from paths import SHARED_DATA

WHEEL = importlib.util.find_spec("torchxrayvision")
REAL_IMAGES = SHARED_DATA / "nih_64px"


def test_examples(tmp_path):
  _, examples = converted("nih14", fake.write(tmp_path / "raw"), tmp_path / "out")
  assert len(examples["test"]) == 2
  assert sum(map(len, examples.values())) == 6
  first, second = examples["test"]
  assert first.labels == dict.fromkeys(nih14.LABELS, 0) | {"Infiltration": 1, "Effusion": 1}
  assert (first.patient_id, first.study_id, first.view) == ("3", "00000003_000", "PA")
  infiltration, effusion = first.regions
  assert (infiltration.phrase, infiltration.label) == ("Infiltration", "Infiltration")
  # Of 1024 pixels, on an image of 96.
  np.testing.assert_allclose(infiltration.boxes, [[9.6, 19.2, 57.6, 43.2]], rtol=1e-5)
  np.testing.assert_allclose(effusion.boxes, [[84.42188, 84.42188, 96, 96]], rtol=1e-5)
  np.testing.assert_allclose(second.regions[0].boxes, [[0, 0, 6, 6]])
  normal = by_id(examples)["00000002_000"]
  assert normal.labels["No Finding"] == 1
  assert sum(normal.labels.values()) == 1


def test_layouts_and_table_vintages_give_the_same(tmp_path):
  flat = nih14.open_source(str(fake.write(tmp_path / "a")))
  for name in ("images_001/.DS_Store", "images_002/.DS_Store"):
    (tmp_path / "b" / name).parent.mkdir(parents=True)
    (tmp_path / "b" / name).touch()
  spread = nih14.open_source(str(fake.write(tmp_path / "b", archives=True, old=True)))
  assert spread.items[1].row.file == "images_002/images/00000001_001.png"
  assert [item.split for item in flat.items] == [item.split for item in spread.items]
  for item, other in zip(flat.items, spread.items, strict=True):
    a, b = flat.read(item), spread.read(other)
    assert (a.image, a.labels, a.view) == (b.image, b.labels, b.view)
    assert [r.boxes.tolist() for r in a.regions] == [r.boxes.tolist() for r in b.regions]


def test_what_boxes_are_left_out_or_dropped(tmp_path):
  wrong = (
    "00000004_000.png,Mass,10.0,10.0,0.0,64.0",
    "00000004_000.png,Mass,1030.0,10.0,20.0,64.0",
    fake.BOXES[2],
    "00009999_000.png,Mass,0.0,0.0,64.0,64.0",
  )
  source = nih14.open_source(str(fake.write(tmp_path, boxes=(*fake.BOXES, *wrong))))
  assert [key for key, _ in source.left_out] == [
    "00000004_000.png (BBox_List_2017.csv row 5)",
    "00000004_000.png (BBox_List_2017.csv row 6)",
  ]
  assert "width 0, height 64 is empty or outside" in source.left_out[0][1]
  assert "boxes given twice, dropped: 1" in source.notes
  assert "boxes of images that are not listed, left aside: 1" in source.notes
  (tmp_path / "BBox_List_2017.csv").unlink()
  source = nih14.open_source(str(tmp_path))
  assert "no BBox_List_2017.csv: no boxes" in source.notes
  assert not any(item.row.boxes for item in source.items)


def test_rows_twice_and_images_outside_the_lists(tmp_path):
  again = fake.entry("00000002_000.png", "No Finding")
  source = nih14.open_source(
    str(fake.write(tmp_path, extra=(again, fake.entry("00000006_000.png", "Mass"))))
  )
  assert len(source.items) == 6
  assert "rows that say the same as an earlier one, dropped: 1" in source.notes
  ((key, reason),) = source.left_out
  assert key == "00000006_000.png (Data_Entry_2017_v2020.csv row 9)"
  assert reason == "is in neither train_val_list.txt nor test_list.txt"
  fake.write(tmp_path, extra=(fake.entry("00000002_000.png", "No Finding", patient=7),))
  folders.file_names.cache_clear()
  with pytest.raises(SourceError, match=r"row 8\) contradicts 00000002_000.png \(.* row 4\)"):
    nih14.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("row", "box", "words"),
  [
    ("00000009_000.png,Cough,0,9,57,M,PA,1,1,1,1", "", "row 8, column 'Finding Labels'"),
    ("00000009_000.png,,0,9,57,M,PA,1,1,1,1", "", "row 8, column 'Finding Labels'"),
    (",Mass,0,9,57,M,PA,1,1,1,1", "", "row 8, column 'Image Index'.* filled"),
    ("00000009_000.png,Mass,0,,57,M,PA,1,1,1,1", "", "row 8, column 'Patient ID'.* filled"),
    ("", "00000004_000.png,Mass,x,1,1,1", "row 2, column 'x': is 'x'; it must be a number"),
    ("", "00000004_000.png,Mass,1,1,,1", "row 2, column 'w'"),
    ("", "00000004_000.png,Mass,,,,", "row 2, column 'x'"),
    ("", "00000004_000.png,Cough,1,1,1,1", "row 2, column 'Finding Label'"),
  ],
)
def test_wrong_cells(tmp_path, row, box, words):
  folder = fake.write(tmp_path, extra=[row] if row else (), boxes=[box] if box else fake.BOXES)
  with pytest.raises(SourceError, match=words):
    nih14.open_source(str(folder))


def test_lists_that_disagree(tmp_path):
  fake.write(tmp_path)
  with open(tmp_path / "test_list.txt", "a") as file:
    file.write("00000001_000.png\n")
  with pytest.raises(SourceError, match="00000001_000.png is in train_val_list.txt too"):
    nih14.open_source(str(tmp_path))


def test_clipping():
  assert boxes.clip((-1, 2, 3, 99), 10, 20) == (0, 2, 3, 20)
  assert boxes.clip((3, 2, 3, 4), 10, 20) is None
  assert boxes.clip((5, 2, 3, 4), 10, 20) is None
  assert boxes.clip((10, 2, 13, 4), 10, 20) is None
  assert boxes.clip((1000, 0, 1000 + 1e-9, 4), 2000, 20) is None  # nothing in float32
  sliver = boxes.clip((1 - 1.1e-6, 0, 1, 1), 1, 1)
  assert np.float32(sliver[0] * 1652) < np.float32(sliver[2] * 1652)


def real_tables(folder):
  data = Path(WHEEL.submodule_search_locations[0]) / "data"
  for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
    (folder / name).write_bytes(gzip.decompress((data / f"{name}.gz").read_bytes()))
  return folder


def lists(folder, test):
  """Splits by the table alone: the publisher's lists are not at hand."""
  lines = (folder / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
  names = [line.split(",")[0] for line in lines]
  for file, part in (("test_list.txt", True), ("train_val_list.txt", False)):
    chosen = [name for name in names if (name[:8] in test) == part]
    (folder / file).write_text("\n".join(chosen))


@pytest.mark.skipif(WHEEL is None, reason="the real label files are not here")
def test_the_real_tables(tmp_path):
  real_tables(tmp_path)
  boxed = {line[:8] for line in (tmp_path / "BBox_List_2017.csv").read_text().splitlines()[1:]}
  lists(tmp_path, boxed)
  source = nih14.open_source(str(tmp_path))
  assert len(source.items) == 112_120
  assert source.left_out == ()
  patients = Counter({item.patient_id: item.split for item in source.items}.values())
  assert sum(patients.values()) == 30_805
  drawn = patients["validation"] / (patients["validation"] + patients["train"])
  assert abs(drawn - 1 / 8) < 0.01
  check_patients(source.items)
  labelled = [box for item in source.items for box in item.row.boxes]
  assert len(labelled) == 984
  assert sum(bool(item.row.boxes) for item in source.items) == 880
  assert Counter(label for label, _ in labelled)["Infiltration"] == 123
  # A box is of a finding that its image's labels name.
  for item in source.items:
    assert all(dict(item.labels)[label] == 1 for label, _ in item.row.boxes)
  assert sum(dict(item.labels)["No Finding"] for item in source.items) == 60_361


@pytest.mark.skipif(
  WHEEL is None or not REAL_IMAGES.is_dir(), reason="the real images are not here"
)
def test_real_images_with_real_tables(tmp_path):
  real_tables(tmp_path)
  (tmp_path / "images").mkdir()
  for path in sorted((REAL_IMAGES / "images").iterdir()):
    (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
  lists(tmp_path, set())
  source = nih14.open_source(str(tmp_path))
  names = folders.file_names(tmp_path.resolve(), ".png")
  items = [item for item in source.items if f"{item.image_id}.png" in names]
  assert len(items) > 500
  examples = [source.read(item) for item in items]
  assert {(example.width, example.height) for example in examples} == {(64, 64)}
  boxed = next(example for example in examples if example.image_id == "00000193_019")
  # 703.7 of 1024 pixels in the table.
  np.testing.assert_allclose(boxed.regions[0].boxes[0, 0], 43.98, atol=0.01)
