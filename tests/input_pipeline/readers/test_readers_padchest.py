import pytest

from fakes import padchest as fake
from fakes.images import by_id, converted
from input_pipeline.readers import padchest
from input_pipeline.readers.raw.folders import SourceError


def test_examples(tmp_path):
  summary, examples = converted("padchest", fake.write(tmp_path / "raw"), tmp_path / "out")
  images = by_id(examples)
  assert {name: (each.patient_id, each.view, each.labels) for name, each in images.items()} == {
    "1_a": ("p1", "PA", {"cardiomegaly": 0, "pleural effusion": 0}),
    "1_b": ("p1", "L", {"cardiomegaly": 1, "pleural effusion": 1}),
    "2_a": ("p2", "AP_horizontal", {"cardiomegaly": 1, "pleural effusion": 0}),
    "4_a": ("p4", "PA", {"cardiomegaly": 0, "pleural effusion": 0}),
  }
  assert not any(each.sentences or each.regions for each in images.values())
  assert summary["notes"][1:] == [
    "images labelled by a network, left aside: 1",
    "images without labels, left aside: 1",
  ]


def test_the_labels_of_a_network(tmp_path):
  source = padchest.open_source(str(fake.write(tmp_path, zipped=True)), labels="all")
  assert len(source.items) == 5
  named = {item.image_id: dict(item.labels) for item in source.items}
  assert named["3_a"] == {"cardiomegaly": 0, "nodule": 1, "pleural effusion": 0}


@pytest.mark.parametrize("cell", ["cardiomegaly", "['a', b]", "['a'", "[[1]]", "['a' + 'b']"])
def test_labels_that_are_no_list(tmp_path, cell):
  rows = [*fake.ROWS[:2], ("9_a.png", "0", "p9", "PA", cell, "Physician")]
  with pytest.raises(SourceError, match=r"row 4, column 'Labels': is .* a list of names in quotes"):
    padchest.open_source(str(fake.write(tmp_path, rows)))


def test_two_rows_of_an_image(tmp_path):
  folder = fake.write(tmp_path, [*fake.ROWS, fake.ROWS[0]])
  assert len(padchest.open_source(str(folder)).items) == 4
  changed = (*fake.ROWS[0][:4], "['edema']", "Physician")
  with pytest.raises(SourceError, match=r"1_a\.png .* contradicts 1_a\.png"):
    padchest.open_source(str(fake.write(tmp_path, [*fake.ROWS, changed])))
