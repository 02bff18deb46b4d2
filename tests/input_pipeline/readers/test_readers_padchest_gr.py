import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from fakes import padchest_gr as fake
from fakes.images import converted, image, table
from input_pipeline.example import UnreadableError
from input_pipeline.readers import padchest_gr
from input_pipeline.readers.raw import folders
from input_pipeline.readers.raw.folders import SourceError


def single(folder, *findings, **options):
  """Opens a folder with one study: source and item."""
  studies = [("a_1", "p1", "train", list(findings))]
  source = padchest_gr.open_source(str(fake.write(folder, studies)), **options)
  return source, source.items[0]


def test_examples(tmp_path):
  summary, examples = converted("padchest_gr", fake.write(tmp_path / "raw"), tmp_path / "out")
  assert summary["images"] == {"train": 2, "validation": 1, "test": 1}
  assert summary["notes"] == [
    "findings with the sentence of another on the image, united: 2",
    "extra boxes left aside: 2",
  ]
  first, normal = examples["train"]
  assert (first.image_id, first.study_id, first.patient_id) == ("a_1", "sa_1", "p1")
  assert first.sentences == ("Cardiomegaly.", "No pleural effusion.")
  assert first.sections == {"findings": "Cardiomegaly. No pleural effusion."}
  (region,) = first.regions
  assert (region.phrase, region.label) == ("Cardiomegaly.", "cardiomegaly")
  np.testing.assert_array_equal(region.boxes, [[20, 32, 60, 56]])
  assert (normal.labels, normal.regions) == ({}, ())
  (both,) = examples["validation"][0].regions
  assert (both.phrase, both.label) == ("Nodule in both upper lobes.", "nodule")
  np.testing.assert_array_equal(both.boxes, [[10, 8, 20, 16], [60, 8, 70, 16]])
  assert examples["validation"][0].labels == {"nodule": 1, "calcified granuloma": 1}
  assert len(examples["test"][0].regions) == 2


def test_sixteen_bits_are_windowed_and_eight_stay(tmp_path):
  source = padchest_gr.open_source(str(fake.write(tmp_path / "a")))
  grey = np.asarray(Image.open(io.BytesIO(source.read(source.items[0]).image)))
  path = tmp_path / "a/Padchest_GR_files/PadChest_GR/a_1.png"
  pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float)
  low, high = np.percentile(pixels, (0.5, 99.5))
  expected = np.clip((pixels - low) / (high - low), 0, 1) * 255
  np.testing.assert_allclose(grey, expected, atol=0.51)
  assert (grey == 0).mean() > 0.004 and (grey == 255).mean() > 0.004
  source = padchest_gr.open_source(str(fake.write(tmp_path / "b", bits=8)))
  path = tmp_path / "b/Padchest_GR_files/PadChest_GR/a_1.png"
  assert source.read(source.items[0]).image == path.read_bytes()


@pytest.mark.parametrize("bright", [0, 5])
def test_an_image_of_nearly_one_grey(tmp_path, bright):
  source, item = single(tmp_path, fake.NO_EFFUSION)
  pixels = np.full((64, 80), 700, np.uint16)
  pixels.flat[:bright] = 900
  cv2.imwrite(str(tmp_path / item.row.file), pixels)
  grey = np.asarray(Image.open(io.BytesIO(source.read(item).image)))
  assert (grey > 0).sum() == bright
  assert grey.max() == (255 if bright else 0)


def test_spanish(tmp_path):
  source = padchest_gr.open_source(str(fake.write(tmp_path, zipped=True)), language="es")
  example = source.read(source.items[2])
  assert example.sentences == ("Nódulo en ambos lóbulos superiores.",)
  assert example.regions[0].label == "nodule"  # by the English sentence of the table


def test_images_without_their_folder(tmp_path):
  fake.write(tmp_path)
  (tmp_path / "Padchest_GR_files" / "PadChest_GR").rename(tmp_path / "images")
  (tmp_path / "Padchest_GR_files").rmdir()
  with pytest.raises(SourceError, match="have the same name"):  # beside those of prior studies
    padchest_gr.open_source(str(tmp_path))
  (tmp_path / "PadChest_GR_progression_prior_studies" / "a_1.png").unlink()
  folders.file_names.cache_clear()
  source = padchest_gr.open_source(str(tmp_path))
  assert source.items[0].row.file == "images/a_1.png"


def test_a_label_where_the_table_has_no_group(tmp_path):
  other = fake.CARDIOMEGALY | {"labels": ["heart insufficiency"], "sentence_en": "Heart failure."}
  nameless = fake.CARDIOMEGALY | {"labels": [], "sentence_en": "Something."}
  source, item = single(tmp_path, other, nameless)
  assert [region.label for region in source.read(item).regions] == [
    "heart insufficiency",
    "finding",
  ]


def test_what_is_left_out(tmp_path):
  silent = fake.CARDIOMEGALY | {"sentence_en": None, "boxes": []}
  mute = fake.CARDIOMEGALY | {"sentence_en": " "}
  boxes = [[0.5, 0.5, 0.5, 0.9], [1.1, 0.5, 1.2, 0.9], [-0.5, 0.5, 0.5, 1.5], [-0.5, 0.5, 0.5, 1.5]]
  source, item = single(tmp_path, silent, mute, fake.CARDIOMEGALY | {"boxes": boxes})
  key = "a_1.png (grounded_reports_20240819.json study 0)"
  assert source.left_out == (
    (f"{key} finding 1", "has boxes, but no sentence_en"),
    (f"{key} finding 2", "the box [0.5, 0.5, 0.5, 0.9] is empty or outside its image"),
    (f"{key} finding 2", "the box [1.1, 0.5, 1.2, 0.9] is empty or outside its image"),
  )
  assert "findings without a sentence and boxes, left aside: 1" in source.notes
  np.testing.assert_array_equal(source.read(item).regions[0].boxes, [[0, 32, 40, 64]])


def test_reports_and_table_that_do_not_match(tmp_path):
  fake.write(tmp_path)
  other = ("e_5", "p5", "test", [fake.CARDIOMEGALY])
  table(tmp_path / "master_table.csv", fake.rows([*fake.STUDIES[1:], other]))
  source = padchest_gr.open_source(str(tmp_path))
  assert len(source.items) == 3
  assert source.left_out == (
    ("a_1.png (grounded_reports_20240819.json study 0)", "has no row in master_table.csv"),
  )
  assert "images of master_table.csv without a report, left aside: 1" in source.notes


def test_studies_twice(tmp_path):
  source = padchest_gr.open_source(
    str(fake.write(tmp_path / "a", [*fake.STUDIES, fake.STUDIES[0]]))
  )
  assert len(source.items) == 4
  assert "studies given twice, dropped: 1" in source.notes
  other = (*fake.STUDIES[0][:3], [fake.NO_EFFUSION])
  with pytest.raises(SourceError, match="a_1.png .* study 4.* contradicts a_1.png .* study 0"):
    padchest_gr.open_source(str(fake.write(tmp_path / "b", [*fake.STUDIES, other])))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      {"split": "val"},
      "row 2, column 'split': is 'val'; it must be one of train, validation, test",
    ),
    ({"split": "test"}, "row 3, column 'split': is 'train'; it must be 'test', as in .* row 2"),
    ({"PatientID": "p9"}, "row 3, column 'PatientID': is 'p1'; it must be 'p9', as in"),
    ({"PatientID": ""}, "row 2, column 'PatientID'.* filled"),
  ],
)
def test_wrong_cells_of_the_table(tmp_path, change, words):
  fake.write(tmp_path)
  first, *others = fake.rows(fake.STUDIES)
  table(tmp_path / "master_table.csv", [first | change, *others])
  with pytest.raises(SourceError, match=words):
    padchest_gr.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("reports", "words"),
  [
    ("[", "not JSON"),
    ("{}", "must be a list of studies"),
    ('[{"findings": []}]', "study 0: must have an ImageID and a list of findings"),
    ('[{"ImageID": "a_1.png", "findings": {}}]', "study 0: must have an ImageID"),
    ('[{"ImageID": "a_1.png", "findings": [3]}]', "study 0: must have an ImageID"),
  ],
)
def test_reports_that_are_nsingle(tmp_path, reports, words):
  fake.write(tmp_path)
  (tmp_path / "grounded_reports_20240819.json").write_text(reports)
  with pytest.raises(SourceError, match=words):
    padchest_gr.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"boxes": [[0, 0, 1]]}, r"finding 0: the box \[0, 0, 1\] must be four numbers"),
    ({"boxes": [[0, 0, 1, "1"]]}, "must be four numbers"),
    ({"boxes": [[0, 0, 1, float("nan")]]}, "must be four numbers between -1e9 and 1e9"),
    ({"boxes": [[0, 0, 1, 10**401]]}, "must be four numbers between"),
    ({"boxes": 3}, "finding 0: boxes is 3; it must be a list"),
    ({"sentence_en": 3}, "finding 0: sentence_en is 3; it must be a str"),
  ],
)
def test_findings_that_cannot_be_right(tmp_path, change, words):
  fake.write(tmp_path)
  reports = fake.reports([("a_1", "p1", "train", [fake.CARDIOMEGALY | change])])
  (tmp_path / "grounded_reports_20240819.json").write_text(json.dumps(reports))
  with pytest.raises(SourceError, match=words):
    padchest_gr.open_source(str(tmp_path))


def test_an_image_cut_short(tmp_path):
  source, item = single(tmp_path, fake.NO_EFFUSION)
  path = tmp_path / item.row.file
  image(path, 200, 150, bits=16)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(UnreadableError, match="not a whole image"):
    source.read(item)
