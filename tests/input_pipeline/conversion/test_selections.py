import csv
import gzip
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from fakes import physionet
from fakes.images import image, manifest
from input_pipeline import records
from input_pipeline.conversion import convert, selections
from input_pipeline.conversion.selection_builders import CLASSES, SELECTIONS, draw, eligible, subset
from input_pipeline.conversion.selections import Selection, SelectionError, cut, load, make, select
from input_pipeline.readers import chexpert, ms_cxr, rsna, siim
from input_pipeline.readers.raw.folders import SourceError
from input_pipeline.readers.source import Item, Listing, check_patients
from paths import ROOT

WHEEL = importlib.util.find_spec("torchxrayvision")
TABLES = Path(WHEEL.submodule_search_locations[0]) / "data" if WHEEL else None
real = pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")


def item(i, split="train", patient=None, view="PA", **labels):
  named = tuple((name.replace("_", " "), value) for name, value in labels.items())
  return Item(f"{i} (row)", split, patient or f"p{i}", None, f"i{i}", view, named)


def images(n, **more):
  return [item(i, patient=f"p{i // 2}", **more) for i in range(n)]


def five_classes(n, **more):
  """Lists `n` eligible images a class, two a patient."""
  return [
    item(f"{name}{i}", patient=f"{name}{i // 2}", **{name.replace(" ", "_"): 1}, **more)
    for name in CLASSES
    for i in range(n)
  ]


def shuffled(items, seed=0):
  return random.Random(seed).sample(items, len(items))


def test_a_draw_depends_on_seed_and_names_alone():
  names = [f"n{i}" for i in range(100)]
  first = draw(names, 30, 0)
  assert draw(shuffled(names), 30, 0) == first == draw(names, 60, 0)[:30]
  assert draw(names, 30, 1) != first and len(set(first)) == 30
  assert draw([*names, *names], 30, 0) == first  # a name that comes twice has one chance


def test_a_draw_is_even():
  names = [f"n{i}" for i in range(20)]
  counts = Counter(name for seed in range(2000) for name in draw(names, 5, seed))
  expected = 2000 * 5 / 20
  # Pearson's statistic, without replacement: 19 degrees of freedom; 43.8 is its 99.9 % quantile.
  assert sum((counts[n] - expected) ** 2 / (expected * 0.75) for n in names) * 19 / 20 < 43.8


def test_what_was_drawn_stays_when_images_leave():
  names = [f"n{i}" for i in range(100)]
  first = draw(names, 30, 0)
  fewer = [name for name in names if name not in first[::3]]
  assert set(first) - set(first[::3]) < set(draw(fewer, 30, 0))


def test_shares_of_patients_are_nested_and_never_empty():
  patients = [f"p{i}" for i in range(300)]
  one, ten = subset(patients, 0.01, 0), subset(patients, 0.1, 0)
  assert (len(one), len(ten)) == (3, 30) and one < ten
  assert len(subset(["a"], 0.01, 0)) == 1 and subset(patients, 1.0, 0) == set(patients)
  assert subset(shuffled(patients), 0.1, 0) == ten != subset(patients, 0.1, 1)
  for fraction in (0, -0.1, 1.01, float("nan")):
    with pytest.raises(SelectionError, match="above 0 and at most 1, not"):
      subset(patients, fraction, 0)
  with pytest.raises(SelectionError, match="no training patients"):
    subset([], 0.1, 0)


def test_who_is_eligible_for_5x200():
  items = [
    item(0, Edema=1),
    item(1, Edema=1, Pneumonia=1),
    item(2, Edema=1, Pneumonia=-1),
    item(3, Edema=1, Pneumonia=0, No_Finding=0),
    item(4, Edema=1, view="LATERAL"),
    item(5, Pneumonia=1),
    item(6, Edema=-1),
    item(7, No_Finding=1),
    item(8, Pleural_Effusion=1, view="AP"),
    item(9, "validation", Edema=1),
    item(10, "test", Edema=1),
    item(11, Edema=1, view=""),
    item(12, Edema=1, No_Finding=1),
    item(13, Edema=1, Support_Devices=1),
    item(14),
  ]
  ids = eligible(items)
  assert ids["Edema"] == ["i0", "i3", "i12"] and ids["Pleural Effusion"] == ["i8"]
  assert sum(map(len, ids.values())) == 4 and tuple(ids) == CLASSES


def test_5x200():
  items = five_classes(250)
  selection = make("5x200", items, 3)
  assert {s: len(ids) for s, ids in selection.splits.items()} == {"test": 1000}
  assert make("5x200", shuffled(items), 3) == selection
  assert make("5x200", items, 4).hash != selection.hash
  chosen = select(items, selection)
  assert {i.split for i in chosen} == {"test"} and len({i.image_id for i in chosen}) == 1000
  assert Counter(name for i in chosen for name, _ in i.labels) == dict.fromkeys(CLASSES, 200)
  held_elsewhere = [item(f"x{i}", "validation", Edema=1) for i in range(50)]
  assert make("5x200", items + held_elsewhere, 3) == selection
  with pytest.raises(SelectionError, match="eligible are Atelectasis 250, .* Pleural Effusion 139"):
    make("5x200", [i for i in items if not i.image_id.startswith("iPleural Effusion1")], 0)


def test_training_without_the_patients_of_5x200():
  more = [item(f"m{i}", patient=f"Edema{i}") for i in range(100)]  # of the same patients
  held_out = [item(f"h{i}", split) for i, split in enumerate(("validation", "test", "test"))]
  items = five_classes(250) + more + held_out
  evaluated = select(items, make("5x200", items, 0))
  trained = select(items, make("without_5x200", items, 0))
  check_patients(evaluated + trained)
  patients = {i.patient_id for i in evaluated}
  assert trained == [i for i in items if i.patient_id not in patients]
  assert make("without_5x200", shuffled(items), 0).hash == make("without_5x200", items, 0).hash
  # A listing that lacks images, such as of MIMIC without MS-CXR's patients, trains on none either.
  fewer = [i for i in items if i.patient_id not in sorted(patients)[::20]]
  check_patients(evaluated + select(fewer, make("without_5x200", fewer, 0)))


def test_rsna_splits_have_their_sizes():
  items = [item(i) for i in range(26684)]
  ours, mgca = make("rsna_detection", items, 0), make("rsna_detection_mgca", items, 0)
  sizes = {"train": 16010, "validation": 5337, "test": 5337}
  for selection in (ours, mgca):
    assert {s: len(ids) for s, ids in selection.splits.items()} == sizes
    assert len(set().union(*selection.splits.values())) == 26684
  assert make("rsna_detection", items[::-1], 0).hash == ours.hash
  assert make("rsna_detection", items, 1).hash != ours.hash
  assert make("rsna_detection_mgca", items[::-1], 1).hash == mgca.hash  # it has one seed
  for wrong in (items[1:], items[1:] + items[-1:], items + images(1), images(26684)):
    for name in ("rsna_detection", "rsna_detection_mgca"):
      with pytest.raises(SelectionError, match="of 26684 patients .* lists 266"):
        make(name, wrong, 0)


def test_mgca_split_is_scikit_learns():
  model_selection = pytest.importorskip("sklearn.model_selection")
  items = [item(i) for i in range(26684)]
  ids = sorted(i.image_id for i in items)
  train, held = model_selection.train_test_split(ids, test_size=5337 * 2, random_state=0)
  test, validation = model_selection.train_test_split(held, test_size=0.5, random_state=0)
  splits = make("rsna_detection_mgca", items, 0).splits
  drawn = [set(splits[s]) for s in ("train", "validation", "test")]
  assert drawn == [set(train), set(validation), set(test)]


def test_shares_of_training_leave_the_rest_whole():
  items = [item(i, "train", f"p{i // 3}") for i in range(600)] + [
    item(i, split) for i, split in ((900, "validation"), (901, "test"))
  ]
  one, ten = make("train_1pct", items, 0).splits, make("train_10pct", items, 0).splits
  assert (len(one["train"]), len(ten["train"])) == (6, 60) and set(one["train"]) < set(ten["train"])
  assert one["validation"] == ("i900",) and one["test"] == ("i901",)
  chosen = {i.patient_id for i in items if i.image_id in one["train"]}
  assert {i.image_id for i in items if i.patient_id in chosen} == set(one["train"])
  with pytest.raises(SelectionError, match="no training patients"):
    make("train_10pct", items[600:], 0)
  assert make("all_test", items, 0).splits["test"] == tuple(i.image_id for i in items)
  assert make("own_test", items, 0).splits == {"test": ("i901",)}
  thirds = make("siim_images", images(100), 0).splits
  assert [len(thirds[s]) for s in ("train", "validation", "test")] == [70, 15, 15]


def test_all_of_ms_cxr_is_test(tmp_path):
  physionet.write(tmp_path)
  items = ms_cxr.open_source(str(tmp_path)).items
  assert len({i.split for i in items}) > 1  # its own splits, without a selection
  chosen = select(items, make("all_test", items, 0))
  assert {i.split for i in chosen} == {"test"}
  assert [i.image_id for i in chosen] == [i.image_id for i in items]


@pytest.mark.parametrize("name", [s for s in SELECTIONS if "rsna" not in s])
def test_the_listings_order_does_not_count(name):
  items = five_classes(201) + [item(i, ("train", "validation")[i % 2]) for i in range(50)]
  first = make(name, items, 5)
  assert first.name == name and first.seed == 5
  assert make(name, shuffled(items), 5).hash == first.hash
  assert {i.image_id: i.split for i in select(shuffled(items), first)} == {
    i: split for split, ids in first.splits.items() for i in ids
  }


def test_a_file_comes_back_and_changes_are_noticed(tmp_path):
  selection = Selection("mine", 1, {"test": ("a", "b"), "train": ("c",)})
  path = tmp_path / "s.json"
  path.write_text(selection.to_json())
  assert load(path) == selection and make(str(path), [], 0) == selection
  turned = Selection("x", 2, {"train": ("c",), "test": ("b", "a"), "validation": ()})
  assert turned.hash == selection.hash  # neither name nor order is content
  assert Selection("mine", 1, {"test": ("a", "c"), "train": ("b",)}).hash != selection.hash
  content = json.loads(path.read_text())
  content["splits"]["test"].append("d")
  path.write_text(json.dumps(content))
  with pytest.raises(SelectionError, match="changed by hand"):
    load(path)
  content["splits"]["test"].pop()
  content["splits"]["train"].append(content["splits"]["test"].pop())
  path.write_text(json.dumps(content))
  with pytest.raises(SelectionError, match="changed by hand"):
    load(path)
  content["splits"] = {"dev": ["a"]}
  path.write_text(json.dumps(content))
  with pytest.raises(SelectionError, match="'dev'"):
    load(path)
  endless = selection.to_json().replace('"seed": 1', '"seed": Infinity')
  for wrong in ("", "{}", "[]", '{"splits": []}', '{"splits": {"test": 1}}', "\xff", endless):
    path.write_text(wrong, encoding="latin-1")
    with pytest.raises(SelectionError, match="no selection file"):
      load(path)
  with pytest.raises(SelectionError, match="no selection file"):
    load(tmp_path / "none.json")


def test_what_does_not_fit_the_source():
  items = images(4)
  with pytest.raises(SelectionError, match="1 of 2 images are not in the source, the first is 'x'"):
    select(items, Selection("s", 0, {"test": ("i1", "x")}))
  with pytest.raises(SelectionError, match="'i1' is chosen twice"):
    select(items, Selection("s", 0, {"test": ("i1",), "train": ("i1",)}))
  with pytest.raises(SelectionError, match="no selection 'none'"):
    make("none", items, 0)
  with pytest.raises(SelectionError, match="does not list"):
    make("all_test", [Item("k", "test", "p", None)], 0)


def folder(path, images=6, a_patient=1):
  rows = []
  for i in range(images):
    image(path / f"{i}.png", seed=i)
    patient = f"p{i // a_patient}"
    rows.append({"image": f"{i}.png", "text": "", "patient_id": patient, "split": "train"})
  manifest(path, rows)
  return path


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command line in this process; returns its output and its error, None for none."""

  def run(*flags):
    monkeypatch.setattr(sys, "argv", ["selections", "--dataset=folder", *flags])
    try:
      selections.main()
    except SystemExit as error:
      return capsys.readouterr().out, error.code
    return capsys.readouterr().out, None

  return run


def converted(source, out, selection, **options):
  """Converts the images of a folder that a selection names."""
  options |= {"source": str(source), "workers": 1, "progress": False}
  return convert.convert("folder", out, selection=str(selection), **options)


def test_conversion_of_a_selection(tmp_path, command):
  source = folder(tmp_path / "images")
  summary = converted(source, tmp_path / "out", "all_test")
  assert summary["images"] == {"test": 6}
  note = "selection all_test: 6 of 6 images, hash "
  assert any(text.startswith(note) for text in summary["notes"])
  written = load(tmp_path / "out" / "selection.json")
  few = Selection("few", 0, {"train": ("1", "4"), "test": ("2",)})
  (tmp_path / "few.json").write_text(few.to_json())
  flags = f"--source={source}", f"--selection={tmp_path / 'few.json'}", f"--out={tmp_path}/f.json"
  out, error = command(*flags)
  assert error is None and few.hash in out and "train: 2 images of 2 patients" in out
  assert load(tmp_path / "f.json").hash == few.hash != written.hash
  summary = converted(source, tmp_path / "few", tmp_path / "f.json")
  assert summary["images"] == {"train": 2, "test": 1}
  assert {s.image_id for s in records.RecordSource(tmp_path / "few", "train")} == {"1", "4"}
  with pytest.raises(convert.ConvertError, match="begun with selection"):
    converted(source, tmp_path / "few", "")


def test_the_note_on_splits_stays_only_where_the_splits_do():
  listing = Listing()
  for i in range(6):
    item = Item(str(i), "test" if i > 3 else "train", f"p{i}", None, image_id=str(i))
    listing.add(str(i), item)
  listing.note("another")
  listing.note_split("no column split: drawn by patient_id")
  source = listing.source("folder", read=None)
  note = "no column split: drawn by patient_id (train 4, validation 0, test 2)"
  assert source.notes == ("another", note)
  anew = cut(source, make("all_test", source.items, 0))
  assert anew.notes == ("another",) and {item.split for item in anew.items} == {"test"}
  same = cut(source, Selection("few", 0, {"train": ("1",), "test": ("4",)}))
  assert same.notes == ("another", note) and len(same.items) == 2


def test_a_selection_file_that_changed_is_another_conversion(tmp_path):
  source, file, out = folder(tmp_path / "images"), tmp_path / "s.json", tmp_path / "out"
  first = Selection("s", 0, {"train": ("1",), "test": ("2",)})
  other = Selection("s", 0, {"train": ("3",), "test": ("2",)})
  file.write_text(first.to_json())
  assert not converted(source, out, file)["already"]
  elsewhere = tmp_path / "elsewhere.json"
  elsewhere.write_text(first.to_json())
  assert converted(source, out, elsewhere)["already"]
  file.write_text(other.to_json())
  message = f"selection='hash {first.hash}', not 'hash {other.hash}'"
  with pytest.raises(convert.ConvertError, match=message):
    converted(source, out, file)


def test_a_patient_in_two_splits_is_refused(tmp_path, command):
  source, file = folder(tmp_path / "images", a_patient=2), tmp_path / "torn.json"
  file.write_text(Selection("torn", 0, {"train": ("0", "2"), "test": ("3",)}).to_json())
  with pytest.raises(SourceError, match="'p1': train by .*, test by"):
    converted(source, tmp_path / "out", file)
  out, error = command(f"--source={source}", f"--selection={file}", f"--out={tmp_path}/copy.json")
  assert error.startswith("error: ") and "'p1'" in error and out == ""
  assert not (tmp_path / "copy.json").exists()


def test_a_selection_from_the_command_line_to_records(tmp_path):
  source, out = folder(tmp_path / "images", images=20, a_patient=2), tmp_path / "tenth.json"
  flags = f"--source={source}", "--selection=train_10pct", "--selection_seed=7", f"--out={out}"
  line = [sys.executable, "-m", "input_pipeline.conversion.selections", "--dataset=folder", *flags]
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "note: rows without text: 20 of 20" in done.stdout
  assert "train_10pct, seed 7: hash " in done.stdout
  assert "train: 2 images of 1 patients (no labels)" in done.stdout
  summary = converted(source, tmp_path / "out", out)
  assert summary["images"] == {"train": 2}
  assert any(load(out).hash in note for note in summary["notes"])
  assert load(tmp_path / "out" / "selection.json") == load(out)
  named = converted(source, tmp_path / "named", "train_10pct", selection_seed=7)
  assert named["fingerprint"] == summary["fingerprint"]


def test_the_command_line_tells_its_errors(tmp_path, command):
  source = folder(tmp_path / "images", images=2)
  _, error = command(f"--source={source}", "--selection=5x200")
  assert error.startswith("error: 5x200 needs 200 training images a class; eligible are Atel")
  (tmp_path / "file").write_text("")
  flags = f"--source={source}", "--selection=all_test", f"--out={tmp_path}/file/x.json"
  _, error = command(*flags)
  assert error.startswith(f"error: {tmp_path}/file: File exists; name another path")
  assert command("--selection=all_test", "--selection_seed=-1") == ("", 2)


@real
def test_5x200_of_the_real_chexpert(tmp_path):
  table = tmp_path / "train.csv"
  with gzip.open(TABLES / "chexpert_train.csv.gz") as source, open(table, "wb") as target:
    shutil.copyfileobj(source, target)
  items = chexpert.open_source(str(tmp_path)).items
  ours = {name: set(ids) for name, ids in eligible(items).items()}
  assert [len(ids) for ids in ours.values()] == [1087, 1034, 536, 2257, 2423]

  theirs, views = {name: set() for name in CLASSES}, {}  # by the columns, as GLoRIA reads them
  pathologies = [name for name in chexpert.LABELS if name != "No Finding"]
  with open(table, newline="") as file:
    for row in csv.DictReader(file):
      if row["Frontal/Lateral"] != "Frontal":
        continue
      values = {name: float(row[name] or 0) for name in pathologies}
      for name in CLASSES:
        if values == dict.fromkeys(pathologies, 0) | {name: 1}:
          image_id = row["Path"].split("/", 1)[1].removesuffix(".jpg")
          theirs[name].add(image_id)
          views[image_id] = row["AP/PA"]
  assert [len(ids) for ids in theirs.values()] == [1087, 1034, 537, 2257, 2425]
  assert all(ours[name] <= theirs[name] for name in CLASSES)
  aside = set().union(*theirs.values()) - set().union(*ours.values())
  assert sorted(views[image_id] for image_id in aside) == ["LL", "LL", "RL"]

  selection = make("5x200", items, 0)
  assert selection.hash == "0964ff24a7ded2e2"
  without = make("without_5x200", items, 0)
  assert without.hash == "b5d7108e9ba02f95" and len(without.splits["train"]) == 185_138
  patient_of = {i.image_id: i.patient_id for i in items}
  held, trained = (
    {patient_of[i] for ids in s.splits.values() for i in ids} for s in (selection, without)
  )
  assert (len(held), len(trained)) == (961, 63_573) and not held & trained


@real
def test_splits_of_the_real_rsna(tmp_path):
  with zipfile.ZipFile(TABLES / "kaggle_stage_2_train_labels.csv.zip") as archive:
    archive.extract("stage_2_train_labels.csv", tmp_path)
  items = rsna.open_source(str(tmp_path)).items
  facts = {}
  for name in ("rsna_detection", "rsna_detection_mgca"):
    selection = make(name, items, 0)
    chosen = select(items, selection)
    check_patients(chosen)
    positive = Counter(i.split for i in chosen if ("Lung Opacity", 1) in i.labels)
    facts[name] = selection.hash, [positive[s] for s in ("train", "validation", "test")]
  assert facts == {
    "rsna_detection": ("118e921cf25f33fe", [3666, 1206, 1140]),
    "rsna_detection_mgca": ("30ddaf2faf4205e8", [3579, 1182, 1251]),
  }


@real
def test_split_of_the_real_siim(tmp_path):
  with gzip.open(TABLES / "siim-pneumothorax-train-rle.csv.gz") as source:
    (tmp_path / "train-rle.csv").write_bytes(source.read())
  items = siim.open_source(str(tmp_path)).items
  selection = make("siim_images", items, 0)
  sizes = [len(selection.splits[split]) for split in ("train", "validation", "test")]
  assert (selection.hash, sizes) == ("3f4eb0ab756471f6", [8433, 1807, 1807])
