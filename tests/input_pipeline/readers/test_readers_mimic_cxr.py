import csv
import gzip
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from fakes import physionet, radgraph
from fakes.images import noted
from input_pipeline import records
from input_pipeline.conversion.convert import convert
from input_pipeline.example import UnreadableError
from input_pipeline.readers import mimic_cxr, ms_cxr
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import check_patients

JPG, TEXT = Path("mimic-cxr-jpg/2.0.0"), Path("mimic-cxr/2.0.0")
GRAPHS = Path("radgraph/1.0.0")
SPLIT = {"train": "train", "validate": "validation", "test": "test"}


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


def mimic(root, **options):
  return mimic_cxr.open_source(str(root), **options)


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


def test_the_listing_knows_what_selections_need(download):
  root, images = download
  source = mimic(root)
  images = {image.dicom_id: image for image in images}
  for item in source.items:
    image = images[item.image_id]
    assert item.key == image.path
    assert (item.patient_id, item.view, item.split) == (
      image.subject_id,
      image.view,
      SPLIT[image.split],
    )


def test_entities_come_along(download):
  root, images = download
  source = mimic(root)
  assert noted(source, "RadGraph") == "studies with RadGraph's entities: 42 of 42"
  graphs = {image.study_id: radgraph.entry(image) for image in images if image.truth}
  marked = placed = 0
  for item in source.items:
    example = source.read(item)
    entities = graphs[example.study_id]["entities"].values()
    entities = [entity for entity in entities if entity["label"] != "OBS-U"]
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


def test_reports_that_cannot_be_read(own):
  source = mimic(own)
  c, d = (item.key for item in source.items[:2])
  report = own / TEXT / "files" / f"{Path(c).parent.relative_to('files')}.txt"
  report.unlink()
  assert f"{report.name}: no such file" in unreadable(source, c)
  latin = own / TEXT / "files" / f"{Path(d).parent.relative_to('files')}.txt"
  latin.write_bytes(" FINDINGS: Small Köhler’s sign.\n".encode("cp1252"))
  (item,) = [item for item in source.items if item.key == d]
  example = source.read(item)
  assert example.sentences == ("Small Köhler’s sign.",)
  assert example.entities == ()  # RadGraph's report says other things
  summary = convert(
    "mimic_cxr",
    own.parent / "out",
    source=str(own),
    workers=1,
    progress=False,
    max_skipped_fraction=0.2,
  )
  assert summary["skipped"] == 1
  skipped = (own.parent / "out" / "skipped.jsonl").read_text().splitlines()
  assert {json.loads(line)["path"] for line in skipped} == {c}


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
