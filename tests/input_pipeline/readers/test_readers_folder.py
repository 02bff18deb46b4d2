import json

import cv2
import numpy as np
import pytest

from fakes.images import image, manifest
from input_pipeline.example import UnreadableError, check
from input_pipeline.readers import folder
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients
from paths import REAL


def examples(directory):
  source = folder.open_source(str(directory))
  return [source.read(item) for item in source.items]


def single(directory, width=40, height=30, **cells):
  """Reads the example of a folder that holds one image."""
  image(directory / "a.png", width, height)
  manifest(directory, [{"image": "a.png", "text": "", **cells}])
  (example,) = examples(directory)
  check(example)
  return example


def box(x, y, w, h, label="opacity", **more):
  return {"label": label, "x": x, "y": y, "w": w, "h": h, **more}


def test_a_full_row(tmp_path):
  example = single(
    tmp_path,
    text="FINDINGS: Small effusion, left. No pneumothorax.\nIMPRESSION: Small effusion.",
    split="validation",
    patient_id="p1",
    study_id="s1",
    image_id="i1",
    view="PA",
    labels="effusion|pneumothorax=0|edema=-1|nodule=1",
  )
  assert (example.patient_id, example.study_id, example.image_id) == ("p1", "s1", "i1")
  assert (example.view, example.width, example.height) == ("PA", 40, 30)
  assert set(example.sections) == {"findings", "impression"}
  assert example.sentences == ("Small effusion, left.", "No pneumothorax.", "Small effusion.")
  assert example.labels == {"effusion": 1, "pneumothorax": 0, "edema": -1, "nodule": 1}
  assert example.image == (tmp_path / "a.png").read_bytes()
  assert folder.open_source(str(tmp_path)).items[0].split == "validation"


def test_the_least_a_manifest_may_hold(tmp_path):
  image(tmp_path / "x" / "1.png")
  image(tmp_path / "y" / "1.png")
  manifest(tmp_path, [{"image": "x/1.png", "text": ""}, {"image": "y/1.png", "text": "Normal."}])
  first, second = examples(tmp_path)
  assert (first.image_id, first.patient_id, first.sentences) == ("x/1", "x/1", ())
  assert (second.image_id, second.patient_id, second.sentences) == ("y/1", "y/1", ("Normal.",))
  notes = folder.open_source(str(tmp_path)).notes
  assert any("no column patient_id" in note for note in notes)
  assert any("no column split" in note for note in notes)
  assert "rows without text: 1 of 2" in notes


def test_drawn_splits_keep_patients_whole_and_stay_when_rows_are_added(tmp_path):
  rows = [{"image": f"{i}.png", "text": "", "patient_id": f"p{i // 2}"} for i in range(2000)]
  manifest(tmp_path, rows[:1000])
  before = {item.key: item.split for item in folder.open_source(str(tmp_path)).items}
  manifest(tmp_path, rows)
  items = folder.open_source(str(tmp_path)).items
  check_patients(items)
  assert all(item.split == before[item.key] for item in items[:1000])
  shares = [sum(item.split == s for item in items) / 2000 for s in ("train", "validation", "test")]
  np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.04)


def test_bom_crlf_quoted_newlines_and_blank_lines(tmp_path):
  image(tmp_path / "a.png")
  image(tmp_path / "b.png")
  text = 'image,text,note\r\na.png,"Line, one.\r\nLine ""two"".",x\r\n\r\nb.png,Herz groß.,y\r\n'
  (tmp_path / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
  first, second = examples(tmp_path)
  assert first.sentences == ("Line, one.", 'Line "two".')
  assert second.sentences == ("Herz groß.",)
  source = folder.open_source(str(tmp_path))
  assert source.items[1].key == "b.png (manifest.csv row 4)"
  assert "columns left aside: note" in source.notes


def test_text_kinds(tmp_path):
  assert single(tmp_path, text="Effusion.", text_kind="labels").text_kind == "labels"
  assert single(tmp_path, text="Effusion.", text_kind="").text_kind == "report"
  example = single(tmp_path, text_kind="none")
  assert (example.text_kind, example.sentences) == ("report", ())


def test_boxes_of_one_phrase_are_one_region(tmp_path):
  cells = [
    box(1, 2, 3, 4, phrase="bilateral opacities", source="ignored"),
    box(30, 2, 5, 6, "nodule"),
    box(20, 2, 3, 4, phrase="bilateral opacities"),
  ]
  both, nodule = single(tmp_path, boxes=json.dumps(cells)).regions
  assert (both.phrase, both.label, nodule.phrase) == ("bilateral opacities", "opacity", "nodule")
  np.testing.assert_array_equal(both.boxes, [[1, 2, 4, 6], [20, 2, 23, 6]])
  np.testing.assert_array_equal(nodule.boxes, [[30, 2, 35, 8]])
  assert both.boxes.dtype == np.float32


def test_a_box_may_stick_out_by_a_pixel_and_is_clipped(tmp_path):
  (region,) = single(tmp_path, boxes=json.dumps([box(-0.5, 0, 41.4, 31)])).regions
  np.testing.assert_array_equal(region.boxes, [[0, 0, 40, 30]])


@pytest.mark.parametrize(
  "name", ["../secret.png", "ABOVE/secret.png", "link.png", "x/../../secret.png"]
)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_what_leads_out_of_the_folder_is_not_read(tmp_path, name, column):
  source = tmp_path / "source"
  (source / "x").mkdir(parents=True)
  image(tmp_path / "secret.png", 40, 30)
  image(source / "a.png", 40, 30)
  (source / "link.png").symlink_to(tmp_path / "secret.png")
  manifest(source, [{"image": "a.png", "text": "", column: name.replace("ABOVE", str(tmp_path))}])
  with pytest.raises(UnreadableError, match="secret.png; copy it there|leads out of the source"):
    examples(source)


@pytest.mark.parametrize(
  "where", [(0, 0, 41.5, 30), (-2, 0, 10, 10), (0, 25, 5, 7), (50, 5, 4, 4), (9, 9, 1e-9, 4)]
)
def test_a_box_outside_its_image(tmp_path, where):
  message = r"manifest\.csv, row 2 \(a\.png\), column 'boxes'.*'opacity'.*outside its 40 x 30 image"
  with pytest.raises(SourceError, match=message):
    single(tmp_path, boxes=json.dumps([box(*where)]))


def mask_of(example):
  (region,) = example.regions
  return region, cv2.imdecode(np.frombuffer(region.mask, np.uint8), cv2.IMREAD_UNCHANGED)


def test_masks_of_one_phrase_unite_with_each_other_and_with_boxes(tmp_path):
  for i in range(2):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:, i] = 255
    cv2.imwrite(str(tmp_path / f"m{i}.png"), pixels)
  mask = [{"label": "effusion", "file": f"m{i}.png", "phrase": "both sides"} for i in range(2)]
  boxes = [box(0, 0, 2, 30, "effusion", phrase="both sides")]
  example = single(tmp_path, mask=json.dumps(mask), boxes=json.dumps(boxes))
  region, pixels = mask_of(example)
  assert (region.phrase, region.label, len(region.boxes)) == ("both sides", "effusion", 1)
  assert (pixels > 0).sum() == 60


def test_masks_that_do_not_fit(tmp_path):
  image(tmp_path / "small.png", 20, 30)
  image(tmp_path / "m.jpg")
  cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((30, 40), np.uint8))
  for name, problem in [
    ("small.png", "is 20 x 30, its image 40 x 30; they must have the same size"),
    ("m.jpg", "is a JPEG"),
    ("empty.png", "is empty"),
  ]:
    with pytest.raises(SourceError, match=rf"row 2 \(a\.png\), column 'mask': {name} {problem}"):
      single(tmp_path, mask=name)
  with pytest.raises(UnreadableError, match=r"nowhere\.png: no such file"):
    single(tmp_path, mask="nowhere.png")


@pytest.mark.parametrize(
  ("cells", "problem"),
  [
    ({"image": ""}, "column 'image': is empty"),
    ({"image": "."}, "column 'image': '.' names no file"),
    ({"image": "/"}, "column 'image': '/' names no file"),
    ({"split": "val"}, "column 'split': is 'val'; it must be one of train, validation, test"),
    ({"split": ""}, "column 'split': is ''"),
    ({"patient_id": ""}, "column 'patient_id': is empty"),
    (
      {"text_kind": "fake"},
      "column 'text_kind': is 'fake'; it must be one of report, labels, none",
    ),
    ({"text_kind": "none", "text": "Words."}, "column 'text': must be empty"),
    ({"labels": "a|b=2"}, "column 'labels': 'b=2' must be"),
    ({"labels": "a|a=0"}, "column 'labels': 'a' has two values"),
    ({"boxes": "[{"}, "column 'boxes': not JSON"),
    ({"boxes": '{"x": 1}'}, "column 'boxes': must be a JSON list"),
    (
      {"boxes": '[{"x": 1, "y": 1, "w": 1, "h": 1}]'},
      "column 'boxes': entry 0: 'label' is missing",
    ),
    ({"boxes": json.dumps([box(1, 2, 3, "4")])}, "column 'boxes': box 0: x, y, w and h must be"),
    ({"boxes": json.dumps([box(1, 2, float("nan"), 4)])}, "column 'boxes': box 0: x, y, w and h"),
    ({"boxes": json.dumps([box(1, 2, 3, 4), box(1, 2, -3, 4)])}, "column 'boxes': box 1: w and h"),
    (
      {"boxes": json.dumps([box(1, 2, 3, 4, phrase="x"), box(1, 2, 3, 4, "b", phrase="x")])},
      "column 'boxes': the phrase 'x' is one region, but has the labels 'opacity' and 'b'",
    ),
    ({"mask": '[{"label": "lungs"}]'}, "column 'mask': entry 0: 'file' is missing"),
    ({"boxes": "[" * 100_000}, "column 'boxes': not JSON (it is nested too deep)"),
    ({"mask": "[" * 100_000}, "column 'mask': not JSON (it is nested too deep)"),
    (
      {"boxes": json.dumps([box(1, 2, 1e9, 4)])},
      "column 'boxes': box 0: x, y, w and h must be numbers between -1e9 and 1e9: {",
    ),
    (
      {"boxes": '[{"label": "a", "x": 1, "y": 2, "w": 3, "w": 30, "h": 4}]'},
      "column 'boxes': not JSON (the key 'w' stands twice)",
    ),
    ({"boxes": json.dumps([box(1, 2, int("9" * 401), 4)])}, "column 'boxes': box 0: x, y, w and h"),
    (
      {"boxes": json.dumps([box(1, 2, 3, 4, "\ud800")])},
      "column 'boxes': not JSON (it holds half a",
    ),
    (
      {"mask": json.dumps([{"label": "a", "file": "\udcff.png"}])},
      "column 'mask': not JSON (it holds half a character",
    ),
  ],
)
def test_a_wrong_cell_is_named_before_any_image_is_read(tmp_path, cells, problem):
  good = {"image": "good.png", "text": "", "split": "train", "patient_id": "p", "text_kind": ""}
  rows = [good, {**good, "image": "bad.png", **cells}]
  manifest(tmp_path, rows, list(good) + [name for name in cells if name not in good])
  with pytest.raises(SourceError) as error:
    folder.open_source(str(tmp_path))
  assert f"manifest.csv, row 3, {problem}" in str(error.value)


def test_an_image_id_that_comes_twice_names_both_rows(tmp_path):
  manifest(tmp_path, [{"image": f"{i}.png", "text": ""} for i in (1, 2, 1)])
  with pytest.raises(
    SourceError, match="row 4, column 'image': the image id '1' is taken by row 2"
  ):
    folder.open_source(str(tmp_path))


@pytest.mark.parametrize(
  ("content", "problem"),
  [
    (b"file,text\na.png,x\n", "no column 'image'; the first row names 'file', 'text'"),
    (b"", "no column 'image', 'text'; the first row names nothing"),
    (b"image,text\n", "no row below the column names"),
    (b"image,text,text\na,b,c\n", "names 'text' twice"),
    (b"image,text\na.png,left, small\n", "row 2: 3 cells for 2 columns"),
    (b"image,text\na.png,\xe9\n", "not UTF-8"),
    (b'image,text\na.png,"open\n', "not a CSV file"),
    (None, "not a regular file"),
  ],
)
def test_a_manifest_that_is_no_manifest(tmp_path, content, problem):
  path = tmp_path / "manifest.csv"
  path.mkdir() if content is None else path.write_bytes(content)
  with pytest.raises(SourceError) as error:
    folder.open_source(str(tmp_path))
  assert problem in str(error.value)
  assert str(tmp_path / "manifest.csv") in str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not here")
def test_the_real_images_are_listed():
  source = folder.open_source(str(REAL))
  check_patients(source.items)
  assert len(source.items) == 1338
  with_mask = next(item for item in source.items if item.row.masks and item.row.boxes)
  example = source.read(with_mask)
  check(example)
  assert {region.label for region in example.regions} == {"left lung", "right lung", "lungs"}
