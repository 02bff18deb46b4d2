import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fakes import physionet
from fakes.images import noted
from input_pipeline import records
from input_pipeline.conversion.convert import convert
from input_pipeline.example import UnreadableError, check
from input_pipeline.readers import mimic_cxr, ms_cxr
from input_pipeline.readers.raw.folders import SourceError

JPG, BOXES = Path("mimic-cxr-jpg/2.0.0"), Path("ms-cxr/1.1.0")


def boxes(root):
  return root / BOXES / "MS_CXR_Local_Alignment_v1.1.0.csv"


def examples_of(root):
  source = ms_cxr.open_source(str(root))
  return {item.image_id: source.read(item) for item in source.items}


def test_from_files_to_records(download, tmp_path):
  root, images = download
  summary = convert("ms_cxr", tmp_path / "out", source=str(root), workers=1, progress=False)
  images = {image.dicom_id: image for image in images if image.ms_cxr}
  assert sum(summary["images"].values()) == len(images)
  splits = {"train": "train", "val": "validation", "test": "test"}
  for split in summary["images"]:
    for example in records.RecordSource(tmp_path / "out", split):
      image = images.pop(example.image_id)
      assert splits[image.ms_cxr] == split
      assert (example.patient_id, example.study_id) == (image.subject_id, image.study_id)
      boxed = [region for region in image.truth.regions if physionet.category(region)]
      assert [r.phrase for r in example.regions] == [r.phrase for r in boxed]
      for region, truth in zip(example.regions, boxed, strict=True):
        assert region.label == physionet.category(truth)
        np.testing.assert_array_equal(region.boxes, truth.boxes)
      assert example.labels == {region.label: 1 for region in example.regions}
      assert " ".join(example.sentences) == " ".join(
        dict.fromkeys(r.phrase for r in example.regions)
      )
      assert example.text_kind == "report"
  assert not images


def test_the_json_says_the_same(own):
  wanted = [repr(item) for item in ms_cxr.open_source(str(own)).items]
  boxes(own).unlink()
  assert [repr(item) for item in ms_cxr.open_source(str(own)).items] == wanted
  assert len(mimic_cxr.open_source(str(own)).items) == 42


def test_version_1_0_0_has_no_splits(download, own):
  shutil.rmtree(own / "ms-cxr")
  images = [image for image in download[1] if image.truth]
  physionet.write_ms_cxr(own / "ms-cxr" / "0.1", images, version="1.0.0")
  source = ms_cxr.open_source(str(own))
  assert {item.split for item in source.items} == {"test"}
  assert "every image is test" in noted(source, "no splits")


def test_boxes_of_larger_images_are_scaled(download, own):
  shutil.rmtree(own / "ms-cxr")
  images = [image for image in download[1] if image.truth]
  physionet.write_ms_cxr(own / BOXES, images, scale=3)
  examples, wanted = examples_of(own), examples_of(download[0])
  assert examples.keys() == wanted.keys()
  for image_id, example in examples.items():
    check(example)
    for region, other in zip(example.regions, wanted[image_id].regions, strict=True):
      np.testing.assert_allclose(region.boxes, other.boxes, rtol=1e-6)


def test_an_image_of_other_proportions(own):
  source = ms_cxr.open_source(str(own))
  image = own / JPG / source.items[0].key
  cv2.imwrite(str(image), np.zeros((90, 64), np.uint8))
  with pytest.raises(UnreadableError, match="it was cut or distorted"):
    source.read(source.items[0])


def only(own, *rows):
  """Opens the source with these rows: changes of the first row of the table."""
  names, first, *_ = csv.reader(boxes(own).read_text().splitlines())
  base = dict(zip(names, first, strict=True)) | dict(x=4, y=6, w=10, h=20)
  base |= dict(image_width=64, image_height=64)
  image = own / JPG / base["path"]
  cv2.imwrite(str(image), np.zeros((64, 64), np.uint8))
  physionet.table(boxes(own), names, [[{**base, **row}[name] for name in names] for row in rows])
  return ms_cxr.open_source(str(own))


def test_regions_unite_by_phrase_and_category(own):
  source = only(
    own,
    {"label_text": "Opacity at the  base", "category_name": "Pneumonia"},
    {"label_text": "Opacity at the base", "category_name": "Pneumonia", "x": 30},
    {"label_text": "Opacity at the base", "category_name": "Lung Opacity"},
    {"label_text": "Opacity at the base", "category_name": "Lung Opacity"},
    {"label_text": "Large heart. Tube.", "category_name": "Cardiomegaly"},
  )
  assert noted(source, "twice") == "boxes that stand twice, taken once: 1"
  assert noted(source, "phrases") == (
    "3 phrases on 1 images; sentences are the phrases, not the report"
  )
  example = source.read(source.items[0])
  check(example)
  assert [(r.phrase, r.label) for r in example.regions] == [
    ("Opacity at the base", "Pneumonia"),
    ("Opacity at the base", "Lung Opacity"),
    ("Large heart. Tube.", "Cardiomegaly"),
  ]
  np.testing.assert_array_equal(example.regions[0].boxes, [[4, 6, 14, 26], [30, 6, 40, 26]])
  assert example.sentences == ("Opacity at the base", "Large heart.", "Tube.")
  assert example.labels == {"Pneumonia": 1, "Lung Opacity": 1, "Cardiomegaly": 1}


def test_broken_boxes_are_listed_and_others_clipped(own):
  rows = [
    {"label_text": "a", "x": -5, "w": 100},
    {"label_text": "b", "w": 0},
    {"label_text": "c", "x": 64},
    {"label_text": "d", "x": "", "y": "", "w": "", "h": ""},
    {"label_text": "e", "h": -3},
  ]
  source = only(own, *rows)
  assert [(Path(key).name.split(" ", 1)[1], reason) for key, reason in source.left_out] == [
    ("(MS_CXR_Local_Alignment_v1.1.0.csv row 3)", "the box of 'b' is 0 x 20 pixels"),
    ("(MS_CXR_Local_Alignment_v1.1.0.csv row 4)", "the box of 'c' lies outside its 64 x 64 image"),
    ("(MS_CXR_Local_Alignment_v1.1.0.csv row 5)", "the row has no box, or no size of the image"),
    ("(MS_CXR_Local_Alignment_v1.1.0.csv row 6)", "the box of 'e' is 10 x -3 pixels"),
  ]
  example = source.read(source.items[0])
  assert [region.phrase for region in example.regions] == ["a"]
  np.testing.assert_array_equal(example.regions[0].boxes, [[0, 6, 64, 26]])
  with pytest.raises(SourceError, match="holds no box that can be used"):
    only(own, *rows[1:])
  with pytest.raises(SourceError, match="holds no box that can be used"):
    only(own, {"image_width": "0"}, {"image_width": "0"})


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    ({"w": "wide"}, "row 3, column 'w': is 'wide'; it must be a number"),
    ({"w": ""}, "row 3, column 'w'"),
    ({"split": "dev"}, "row 3, column 'split': is 'dev'"),
    ({"label_text": ""}, "row 3, column 'label_text'"),
    ({"path": "../../etc/passwd"}, "row 3: path is '../../etc/passwd'; it must be files/p10/"),
    ({"path": "../files/p10/p10000032/s50000014/a.jpg"}, "row 3: path is"),
    ({"split": "none"}, "it must be one of train, val"),
    ({"image_width": "65"}, "row 2 and .* row 3: image .* has two paths, sizes or splits"),
  ],
)
def test_tables_that_cannot_be_right(own, change, problem):
  with pytest.raises(SourceError, match=problem):
    only(own, {}, change)


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (lambda content: content.pop("images"), "annotation 0: not as MS-CXR's COCO file.*KeyError"),
    (lambda content: content["annotations"][1].pop("bbox"), "annotation 1: .*'bbox'"),
    (lambda content: content["annotations"][1].update(bbox=["a"]), "annotation 1: .*ValueError"),
    (lambda content: content["annotations"][1].update(bbox=[1, 2]), "annotation 1: .*four"),
    (lambda content: content["annotations"][2].update(split="dev"), "annotation 2: .*'dev'"),
    (lambda content: content["annotations"][2].update(label_text=3), "annotation 2: .*"),
  ],
)
def test_json_that_cannot_be_right(own, change, problem):
  boxes(own).unlink()
  path = boxes(own).with_suffix(".json")
  content = json.loads(path.read_bytes())
  change(content)
  path.write_text(json.dumps(content))
  with pytest.raises(SourceError, match=problem):
    ms_cxr.open_source(str(own))
  path.write_bytes(path.read_bytes()[:99])
  with pytest.raises(SourceError, match="not JSON in UTF-8"):
    ms_cxr.open_source(str(own))


def test_phrases_of_a_single_box(own):
  """A phrase of several boxes goes, whatever their categories, and so does an image of no other."""
  every = examples_of(own)
  counts = {
    name: Counter(region.phrase for region in each.regions for _ in region.boxes)
    for name, each in every.items()
  }
  wanted = {
    name: {phrase for phrase, count in of_image.items() if count == 1}
    for name, of_image in counts.items()
  }
  assert any(count > 1 for of_image in counts.values() for count in of_image.values())
  source = ms_cxr.open_source(str(own), boxes="single")
  got = {item.image_id: {r.phrase for r in source.read(item).regions} for item in source.items}
  assert got == {name: phrases for name, phrases in wanted.items() if phrases}
  aside = sum(count > 1 for of_image in counts.values() for count in of_image.values())
  assert f"phrases of several boxes left aside: {aside}" in source.notes
