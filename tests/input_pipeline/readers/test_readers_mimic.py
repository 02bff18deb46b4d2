import csv
import gzip
import json
import pickle
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from fakes import physionet
from input_pipeline import images, loader, records
from input_pipeline.conversion.convert import ConvertError, convert
from input_pipeline.example import UnreadableError, check
from input_pipeline.readers import mimic_cxr, ms_cxr
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients
from input_pipeline.text import diagnostic_terms
from input_pipeline.text import tokenizer as tokens

JPG, TEXT = Path("mimic-cxr-jpg/2.0.0"), Path("mimic-cxr/2.0.0")
BOXES, GRAPHS = Path("ms-cxr/1.1.0"), Path("radgraph/1.0.0")
SPLIT = {"train": "train", "validate": "validation", "test": "test"}


@pytest.fixture(scope="module")
def download(tmp_path_factory):
  """A download that tests only read, and what was written there."""
  folder = tmp_path_factory.mktemp("physionet")
  return folder, physionet.write(folder, size_px=64)


@pytest.fixture
def own(download, tmp_path):
  """A copy that a test may spoil."""
  shutil.copytree(download[0], tmp_path / "raw")
  return tmp_path / "raw"


def rows_of(path):
  data = path.read_bytes()
  text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
  return list(csv.reader(text.splitlines()))


def edit(path, change):
  """Rewrites a table; `change` gets its rows, the column names first, and returns new ones."""
  columns, *rows = change(rows_of(path))
  physionet.table(path, columns, rows)


def table(root, name):
  return root / JPG / f"mimic-cxr-2.0.0-{name}.csv.gz"


def boxes(root):
  return root / BOXES / "MS_CXR_Local_Alignment_v1.1.0.csv"


def mimic(root, **options):
  return mimic_cxr.open_source(str(root), **options)


def noted(source, words):
  (note,) = [note for note in source.notes if words in note]
  return note


def unreadable(source, key):
  (item,) = [item for item in source.items if item.key.endswith(key)]
  with pytest.raises(UnreadableError) as error:
    source.read(item)
  return str(error.value)


def test_from_files_to_records(download, tmp_path):
  root, images = download
  summary = convert(
    "mimic_cxr", tmp_path / "out", source=str(root), ms_cxr="keep", workers=1, progress=False
  )
  frontal = {image.dicom_id: image for image in images if image.truth}
  counts = Counter(SPLIT[image.split] for image in frontal.values())
  assert summary["images"] == counts
  assert summary["skipped"] == 0
  for split in counts:
    for example in records.RecordSource(tmp_path / "out", split):
      image = frontal.pop(example.image_id)
      assert SPLIT[image.split] == split
      assert (example.patient_id, example.study_id) == (image.subject_id, image.study_id)
      assert (example.view, example.width, example.height) == (
        image.view,
        image.width,
        image.height,
      )
      assert example.image == image.truth.image  # a grey JPEG keeps its bytes
      assert example.sentences == (() if image.number == physionet.EMPTY else image.truth.sentences)
      assert (example.text_kind, example.regions) == ("report", ())
      positive = {physionet.LABEL_OF.get(r.label) for r in image.truth.regions} - {None}
      if image.number == physionet.WITHOUT_LABELS:
        assert example.labels == {}
      else:
        assert {name for name, value in example.labels.items() if value} - {
          "No Finding"
        } == positive
  assert not frontal


def test_from_records_to_a_batch(download, tmp_path):
  convert("mimic_cxr", tmp_path / "out", source=str(download[0]), workers=1, progress=False)
  train = records.RecordSource(tmp_path / "out", "train")
  texts = [" ".join(example.sentences) for example in train]
  tokenizer = tokens.train(texts, tmp_path / "tokenizer", vocabulary_size=300)
  encode = loader.Encode(tokenizer, diagnostic_terms.load(), 64, 64, 48, images.Augment())
  batches = loader.batches(train, encode, batch_size=4, seed=0)
  batch = next(batches)
  batches.close()
  assert batch["image"].shape == (4, 64, 64, 1)
  assert batch["word_mask"].any(axis=1).all()
  assert len(set(batch["study_key"].tolist())) == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_readers_go_to_other_processes(tmp_path, zipped):
  physionet.write(tmp_path, patients=8, size_px=64, zipped=zipped)
  for open_source in (mimic_cxr.open_source, ms_cxr.open_source):
    source = open_source(str(tmp_path))
    read, item = pickle.loads(pickle.dumps((source.read, source.items[0])))
    assert repr(read(item)) == repr(source.read(source.items[0]))


def test_the_listing_knows_what_selections_need(download):
  root, images = download
  source = mimic(root)
  check_patients(source.items)
  images = {image.dicom_id: image for image in images}
  for item in source.items:
    image = images[item.image_id]
    assert item.key == image.path
    assert (item.patient_id, item.view, item.split) == (
      image.subject_id,
      image.view,
      SPLIT[image.split],
    )
    example = source.read(item)
    check(example)
    assert example.labels == dict(item.labels)
    assert (example.image_id, example.view) == (item.image_id, item.view)


def test_entities_come_along(download):
  root, images = download
  source = mimic(root)
  assert noted(source, "RadGraph") == "studies with RadGraph's entities: 42 of 42"
  graphs = dict(physionet.graph(image) for image in images if image.truth)
  marked = placed = 0
  for item in source.items:
    example = source.read(item)
    key = f"{physionet.stem(example.patient_id, example.study_id)}.txt"
    entities = [e for e in graphs[key]["entities"].values() if e["label"] != "OBS-U"]
    marked, placed = marked + len(entities), placed + len(example.entities)
    labels = Counter(e["label"] for e in entities)
    assert Counter(e.label for e in example.entities) == labels
  assert placed == marked > 300


def test_sections_of_unusual_reports(download):
  root, images = download
  source = mimic(root, ms_cxr="keep")
  by_number = {image.number: image for image in images if image.truth}
  example_of = {item.image_id: source.read(item) for item in source.items}
  empty = example_of[by_number[physionet.EMPTY].dicom_id]
  assert (empty.sections, empty.sentences, empty.entities) == ({}, (), ())
  bare = example_of[by_number[physionet.WITHOUT_HEADINGS].dicom_id]
  assert list(bare.sections) == ["full report", "last_paragraph"]
  assert bare.sentences == by_number[physionet.WITHOUT_HEADINGS].truth.sentences


def test_views(download):
  root, images = download
  source = mimic(root)
  assert noted(source, "views left aside") == "views left aside: 16 of 64 images (LATERAL 16)"
  everything = mimic(root, views="all", ms_cxr="keep")
  assert [item.image_id for item in everything.items] == [image.dicom_id for image in images]
  lateral = next(item for item in everything.items if item.view == "LATERAL")
  assert everything.read(lateral).sentences


def test_labelers(download):
  root, _ = download
  chexpert, negbio = (
    Counter(value for item in mimic(root, labels=labels).items for _, value in item.labels)
    for labels in ("chexpert", "negbio")
  )
  assert chexpert[-1] > 0 == negbio[-1]
  assert chexpert.total() == negbio.total()
  assert noted(mimic(root), "label") == "studies that chexpert does not label: 1 of 42"


def test_patients_of_ms_cxr_are_left_out_of_training_alone(download):
  root, images = download
  of_ms_cxr = {image.subject_id for image in images if image.ms_cxr}
  kept, source = mimic(root, ms_cxr="keep"), mimic(root)
  gone = {item.image_id for item in kept.items} - {item.image_id for item in source.items}
  expected = {
    image.dicom_id
    for image in images
    if image.truth and image.split == "train" and image.subject_id in of_ms_cxr
  }
  assert gone == expected
  assert len(expected) > len(
    [f for f in images if f.ms_cxr and f.split == "train"]
  )  # whole patients
  assert {item.patient_id for item in source.items if item.split == "test"} & of_ms_cxr
  assert "6 images of 3 patients (ms_cxr=keep" in noted(source, "left out of train")
  train = {item.patient_id for item in source.items if item.split == "train"}
  assert not train & {item.patient_id for item in ms_cxr.open_source(str(root)).items}


def test_without_ms_cxr_and_radgraph(own):
  shutil.rmtree(own / "ms-cxr")
  shutil.rmtree(own / "radgraph")
  source = mimic(own)
  assert len(source.items) == 48
  assert "would leak" in noted(source, "there is no ms-cxr")
  assert source.read(source.items[0]).entities == ()
  assert not any("ms-cxr" in note for note in mimic(own, ms_cxr="keep").notes)
  (own / "ms-cxr").mkdir()
  with pytest.raises(SourceError, match=r"there is no .*MS_CXR_Local_Alignment_v\*\.csv"):
    mimic(own)


@pytest.mark.parametrize(
  "layout",
  [{"zipped": True}, {"versions": False}, {"prefix": "physionet.org/files"}],
  ids=lambda layout: next(iter(layout)),
)
def test_layouts_give_the_same_examples(download, tmp_path, layout):
  physionet.write(tmp_path, size_px=64, **layout)
  for open_source in (mimic_cxr.open_source, ms_cxr.open_source):
    first, second = open_source(str(download[0])), open_source(str(tmp_path))
    assert first.notes == second.notes
    assert [repr(item) for item in first.items] == [repr(item) for item in second.items]
    for a, b in zip(first.items[:9], second.items[:9], strict=True):
      assert repr(first.read(a)) == repr(second.read(b))


def test_projects_may_be_links_but_nothing_leaves_them(own, tmp_path):
  shutil.move(own / "mimic-cxr-jpg", tmp_path / "disk")
  (own / "mimic-cxr-jpg").symlink_to(tmp_path / "disk")
  source = mimic(own)
  source.read(source.items[0])
  image = tmp_path / "disk" / "2.0.0" / source.items[0].key
  shutil.move(image, tmp_path / "elsewhere.jpg")
  image.symlink_to(tmp_path / "elsewhere.jpg")
  assert "leads out of the source folder" in unreadable(source, source.items[0].key)


def test_images_and_reports_that_cannot_be_read(own):
  source = mimic(own)
  a, b, c, d = (item.key for item in source.items[:4])
  (own / JPG / a).unlink()
  (own / JPG / b).write_bytes(b"\xff\xd8 no picture")
  report = own / TEXT / "files" / f"{Path(c).parent.relative_to('files')}.txt"
  report.unlink()
  assert "no such file" in unreadable(source, a)
  assert "not an image" in unreadable(source, b)
  assert f"{report.name}: no such file" in unreadable(source, c)
  latin = own / TEXT / "files" / f"{Path(d).parent.relative_to('files')}.txt"
  latin.write_bytes(" FINDINGS: Small Köhler’s sign.\n".encode("cp1252"))
  (item,) = [item for item in source.items if item.key == d]
  example = source.read(item)
  assert example.sentences == ("Small Köhler’s sign.",)
  assert example.entities == ()  # RadGraph's report says other things
  with pytest.raises(ConvertError, match="4 of|3 of"):
    convert("mimic_cxr", own.parent / "out", source=str(own), workers=1, progress=False)
  summary = convert(
    "mimic_cxr",
    own.parent / "out",
    source=str(own),
    workers=1,
    progress=False,
    max_skipped_fraction=0.2,
  )
  assert summary["skipped"] == 3
  skipped = (own.parent / "out" / "skipped.jsonl").read_text().splitlines()
  assert {json.loads(line)["path"] for line in skipped} == {a, b, c}


def test_zips_that_cannot_be_read(tmp_path):
  physionet.write(tmp_path, size_px=64, zipped=True)
  path = tmp_path / TEXT / "mimic-cxr-reports.zip"
  source = mimic(tmp_path)
  name = f"files/{physionet.stem(source.items[0].patient_id, source.items[0].row.study_id)}.txt"
  with zipfile.ZipFile(path) as archive:
    texts = {entry: archive.read(entry) for entry in archive.namelist() if entry != name}
  other = tmp_path / "other"
  shutil.copytree(tmp_path / "mimic-cxr-jpg", other / "mimic-cxr-jpg")
  path = other / TEXT / "mimic-cxr-reports.zip"
  path.parent.mkdir(parents=True)
  with zipfile.ZipFile(path, "w") as archive:  # in a folder, as some pack it again
    for entry, text in texts.items():
      archive.writestr(f"mimic-cxr-reports/{entry}", text)
  source = mimic(other)
  key = next(i.key for i in source.items if name.removesuffix(".txt") in i.key)
  assert f"holds no mimic-cxr-reports/{name}" in unreadable(source, key)
  assert source.read(source.items[-1]).sentences

  for number, data in enumerate((b"", b"PK no zip", path.read_bytes()[:-40])):
    broken = tmp_path / f"broken{number}"
    shutil.copytree(other, broken)
    (broken / TEXT / "mimic-cxr-reports.zip").write_bytes(data)
    with pytest.raises(SourceError, match=r"mimic-cxr-reports\.zip: cannot be opened"):
      mimic(broken)
  empty = tmp_path / "empty"
  shutil.copytree(other, empty)
  with zipfile.ZipFile(empty / TEXT / "mimic-cxr-reports.zip", "w") as archive:
    archive.writestr("a.txt", "a")
  with pytest.raises(SourceError, match="holds no files/p10"):
    mimic(empty)


@pytest.mark.parametrize("part", ["header", "data"])
def test_a_damaged_report_in_a_zip(tmp_path, part):
  physionet.write(tmp_path, size_px=64, zipped=True)
  path = tmp_path / TEXT / "mimic-cxr-reports.zip"
  with zipfile.ZipFile(path) as archive:
    info = archive.infolist()[0]
  start = info.header_offset + (30 + len(info.filename) if part == "data" else 0)
  data = bytearray(path.read_bytes())
  data[start : start + 20] = b"\xff" * 20
  path.write_bytes(data)
  source = mimic(tmp_path, ms_cxr="keep")
  assert "cannot be read" in unreadable(source, source.items[0].key)


@pytest.mark.parametrize(
  ("options", "problem"),
  [
    ({"views": "lateral"}, "views is 'lateral'; it must be one of frontal, all"),
    ({"labels": "both"}, "labels is 'both'; it must be one of chexpert, negbio"),
    ({"ms_cxr": "no"}, "ms_cxr is 'no'; it must be one of exclude, keep"),
  ],
)
def test_options(download, options, problem):
  with pytest.raises(SourceError, match=problem):
    mimic(download[0], **options)


@pytest.mark.parametrize(
  ("missing", "problem"),
  [
    (JPG / "mimic-cxr-2.0.0-split.csv.gz", r"there is no .*mimic-cxr-\*-split\.csv\.gz"),
    (JPG / "files", "physionet.org/content/mimic-cxr-jpg has it"),
    (TEXT / "files", "there is no mimic-cxr/mimic-cxr-reports.zip or .* mimic-cxr/files"),
    (GRAPHS / "MIMIC-CXR_graphs.json", "there is no radgraph/MIMIC-CXR_graphs.json"),
  ],
)
def test_what_is_missing_is_said(own, missing, problem):
  path = own / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(SourceError, match=problem):
    mimic(own)


def test_no_source():
  for open_source in (mimic_cxr.open_source, ms_cxr.open_source):
    with pytest.raises(SourceError, match="a source is needed"):
      open_source("")


def test_tables_unpacked_and_cut_off(own):
  for name in ("metadata", "split", "chexpert"):
    path = table(own, name)
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    if name == "split":
      path.write_bytes(path.read_bytes()[:-30])
      with pytest.raises(SourceError, match="cannot be read to its end.*download it again"):
        mimic(own)
    path.unlink()
  assert len(mimic(own).items) == 42


def put(number, column, value):
  """Changes one cell of a table's row (1 is the first below the names)."""

  def change(rows):
    rows[number][rows[0].index(column)] = value
    return rows

  return change


@pytest.mark.parametrize(
  ("name", "change", "problem"),
  [
    ("metadata", put(1, "dicom_id", ""), "row 2, column 'dicom_id': is ''; it must be filled"),
    ("metadata", put(2, "subject_id", ""), "row 3, column 'subject_id'"),
    ("metadata", lambda rows: rows[:1], "there is no row below the column names"),
    ("metadata", lambda rows: [r[1:] for r in rows], "no column 'dicom_id'"),
    ("split", put(1, "split", "dev"), "'dev'; it must be one of train, validate, test"),
    ("split", put(1, "study_id", "1"), "of patient 10000032, study 1 by the table of splits"),
    ("chexpert", put(1, "Edema", "2.0"), "row 2, column 'Edema': is '2.0'"),
    ("chexpert", put(1, "Edema", "yes"), "row 2, column 'Edema': is 'yes'"),
    ("chexpert", lambda rows: [r[:-1] for r in rows], "no column 'Support Devices'"),
  ],
)
def test_tables_that_cannot_be_right(own, name, change, problem):
  edit(table(own, name), change)
  with pytest.raises(SourceError, match=problem):
    mimic(own)


def test_rows_that_stand_twice(own):
  wanted = [repr(item) for item in mimic(own).items]
  for name in ("metadata", "split", "chexpert"):
    edit(table(own, name), lambda rows: [*rows, rows[1]])
  assert [repr(item) for item in mimic(own).items] == wanted
  edit(table(own, "split"), lambda rows: [*rows, [*rows[1][:-1], "test"]])
  with pytest.raises(SourceError, match=r"split\.csv\.gz: rows 2 and 67 say different things of"):
    mimic(own)


def test_nan_labels_are_unknown(own):
  edit(table(own, "chexpert"), put(1, "Edema", "nan"))
  item = mimic(own, ms_cxr="keep").items[0]
  assert "Edema" not in dict(item.labels)


def test_images_without_a_split(own):
  edit(table(own, "split"), lambda rows: rows[:-1])
  edit(table(own, "metadata"), lambda rows: [rows[0], *rows[2:]])
  source = mimic(own, views="all")
  ((key, reason),) = source.left_out
  assert "has no row" in reason
  assert key.startswith("files/p10/")
  assert noted(source, "the metadata lacks") == (
    "images in the table of splits that the metadata lacks: 1"
  )


def test_a_patient_in_two_splits(own):
  edit(table(own, "split"), put(1, "split", "test"))
  with pytest.raises(SourceError, match="1 patients sit in two splits"):
    check_patients(mimic(own, ms_cxr="keep").items)


def phrases(root, **more):
  source = ms_cxr.open_source(str(root), **more)
  return source, {item.image_id: source.read(item) for item in source.items}


def test_ms_cxr_from_files_to_records(download, tmp_path):
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
  assert len(mimic(own).items) == 42


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
  _, examples = phrases(own)
  _, wanted = phrases(download[0])
  assert examples.keys() == wanted.keys()
  for image_id, example in examples.items():
    check(example)
    for region, other in zip(example.regions, wanted[image_id].regions, strict=True):
      np.testing.assert_allclose(region.boxes, other.boxes, rtol=1e-6)


def test_a_image_of_other_proportions(own):
  source = ms_cxr.open_source(str(own))
  image = own / JPG / source.items[0].key
  cv2.imwrite(str(image), np.zeros((90, 64), np.uint8))
  assert "it was cut or distorted" in unreadable(source, source.items[0].key)
  image.unlink()
  assert "no such file" in unreadable(source, source.items[0].key)


def only(own, *rows):
  """The source with these rows: changes of the first row of the table."""
  names, first, *_ = rows_of(boxes(own))
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
def test_ms_cxr_tables_that_cannot_be_right(own, change, problem):
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
  with pytest.raises(SourceError, match="JSONDecodeError"):
    ms_cxr.open_source(str(own))
