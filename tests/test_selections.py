import gzip
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline import convert, records
from input_pipeline.selection_builders import CLASSES, draw, eligible, subset
from input_pipeline.selections import Selection, SelectionError, load, make, select
from input_pipeline.source import Item
from test_folder import film, manifest

WHEEL = importlib.util.find_spec("torchxrayvision")


def item(i, split="train", patient=None, view="PA", **labels):
  named = tuple((name.replace("_", " "), value) for name, value in labels.items())
  return Item(f"{i} (row)", split, patient or f"p{i}", None, f"i{i}", view, named)


def films(n, **more):
  return [item(i, patient=f"p{i // 2}", **more) for i in range(n)]


def test_a_draw_depends_on_seed_and_names_alone():
  names = [f"n{i}" for i in range(100)]
  first = draw(names, 30, 0)
  shuffled = names[:]
  random.Random(0).shuffle(shuffled)
  assert draw(shuffled, 30, 0) == first == draw(names, 60, 0)[:30]
  assert draw(names, 30, 1) != first and len(set(first)) == 30


def test_shares_of_patients_are_nested_and_never_empty():
  patients = [f"p{i}" for i in range(300)]
  one, ten = subset(patients, 0.01, 0), subset(patients, 0.1, 0)
  assert (len(one), len(ten)) == (3, 30) and one < ten
  assert len(subset(["a"], 0.01, 0)) == 1 and subset(patients, 1.0, 0) == set(patients)


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
  ]
  found = eligible(items)
  assert found["Edema"] == ["i0", "i3"] and found["Pleural Effusion"] == ["i8"]
  assert sum(map(len, found.values())) == 3


def test_5x200(tmp_path):
  items = [
    item(f"{name}{i}", **{name.replace(" ", "_"): 1}) for name in CLASSES for i in range(250)
  ]
  selection = make("5x200", items, 3)
  assert {s: len(ids) for s, ids in selection.splits.items()} == {"test": 1000}
  random.Random(0).shuffle(items)
  assert make("5x200", items, 3).hash == selection.hash != make("5x200", items, 4).hash
  chosen = select(items, selection)
  assert {i.split for i in chosen} == {"test"} and len({i.image_id for i in chosen}) == 1000
  with pytest.raises(SelectionError, match="eligible are Atelectasis 250, .* Pleural Effusion 139"):
    make("5x200", [i for i in items if not i.image_id.startswith("iPleural Effusion1")], 0)


def test_rsna_splits_have_their_sizes():
  items = films(26684)
  ours, mgca = make("rsna_detection", items, 0), make("rsna_detection_mgca", items, 0)
  for one in (ours, mgca):
    assert {s: len(ids) for s, ids in one.splits.items()} == {
      "train": 16010, "validation": 5337, "test": 5337
    }  # fmt: skip
    assert len(set().union(*one.splits.values())) == 26684
  assert make("rsna_detection", items[::-1], 0).hash == ours.hash
  assert make("rsna_detection", items, 1).hash != ours.hash
  assert make("rsna_detection_mgca", items[::-1], 1).hash == mgca.hash  # it has one seed
  with pytest.raises(SelectionError, match="the source lists 99"):
    make("rsna_detection", films(99), 0)


def test_mgca_split_is_scikit_learns():
  model_selection = pytest.importorskip("sklearn.model_selection")
  items = films(26684)
  ids = sorted(i.image_id for i in items)
  train, held = model_selection.train_test_split(ids, test_size=5337 * 2, random_state=0)
  test, validation = model_selection.train_test_split(held, test_size=0.5, random_state=0)
  splits = make("rsna_detection_mgca", items, 0).splits
  assert [set(splits[s]) for s in ("train", "validation", "test")] == [
    set(train), set(validation), set(test)
  ]  # fmt: skip


def test_shares_of_training_leave_the_rest_whole():
  items = [item(i, "train", f"p{i // 3}") for i in range(600)] + [
    item(i, split) for i, split in ((900, "validation"), (901, "test"))
  ]
  one, ten = make("train_1pct", items, 0).splits, make("train_10pct", items, 0).splits
  assert (len(one["train"]), len(ten["train"])) == (6, 60) and set(one["train"]) < set(ten["train"])
  assert one["validation"] == ("i900",) and one["test"] == ("i901",)
  assert make("all_test", items, 0).splits["test"] == tuple(i.image_id for i in items)
  thirds = make("siim_images", films(100), 0).splits
  assert [len(thirds[s]) for s in ("train", "validation", "test")] == [70, 15, 15]


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
  content["splits"] = {"dev": ["a"]}
  path.write_text(json.dumps(content))
  with pytest.raises(SelectionError, match="'dev'"):
    load(path)
  path.write_text("{}")
  with pytest.raises(SelectionError, match="no selection file"):
    load(path)
  with pytest.raises(SelectionError, match="no selection file"):
    load(tmp_path / "none.json")


def test_what_does_not_fit_the_source():
  items = films(4)
  with pytest.raises(SelectionError, match="1 of 2 films are not in the source, the first is 'x'"):
    select(items, Selection("s", 0, {"test": ("i1", "x")}))
  with pytest.raises(SelectionError, match="'i1' is chosen twice"):
    select(items, Selection("s", 0, {"test": ("i1",), "train": ("i1",)}))
  with pytest.raises(SelectionError, match="no selection 'none'"):
    make("none", items, 0)
  with pytest.raises(SelectionError, match="does not list"):
    make("all_test", [Item("k", "test", "p", None)], 0)


def folder(path):
  rows = []
  for i in range(6):
    film(path / f"{i}.png", seed=i)
    rows.append({"image": f"{i}.png", "text": "", "patient_id": f"p{i}", "split": "train"})
  manifest(path, rows)
  return path


def test_conversion_of_a_selection(tmp_path):
  source = folder(tmp_path / "films")
  summary = convert.convert(
    "folder", tmp_path / "out", source=str(source), selection="all_test", workers=1, progress=False
  )
  assert summary["films"] == {"test": 6}
  assert any(
    note.startswith("selection all_test: 6 of 6 films, hash ") for note in summary["notes"]
  )
  written = load(tmp_path / "out" / "selection.json")
  few = Selection("few", 0, {"train": ("1", "4"), "test": ("2",)})
  (tmp_path / "few.json").write_text(few.to_json())
  call = [sys.executable, "-m", "input_pipeline.selections", "--dataset=folder"]
  call += [f"--source={source}", f"--selection={tmp_path / 'few.json'}", f"--out={tmp_path}/f.json"]
  done = subprocess.run(call, capture_output=True, text=True, check=True)
  assert few.hash in done.stdout and "train: 2 films of 2 patients" in done.stdout
  assert load(tmp_path / "f.json").hash == few.hash != written.hash
  summary = convert.convert(
    "folder", tmp_path / "few", source=str(source), selection=str(tmp_path / "f.json"), workers=1,
    progress=False,
  )  # fmt: skip
  assert summary["films"] == {"train": 2, "test": 1}
  assert {s.image_id for s in records.RecordSource(tmp_path / "few", "train")} == {"1", "4"}
  with pytest.raises(convert.ConvertError, match="begun with selection"):
    convert.convert("folder", tmp_path / "few", source=str(source), workers=1, progress=False)
  call[-2] = "--selection=5x200"
  done = subprocess.run(call, capture_output=True, text=True)
  assert done.returncode == 1 and "5x200 needs 200 films a class" in done.stderr


@pytest.mark.skipif(WHEEL is None, reason="the label files of torchxrayvision are not there")
def test_eligible_films_of_the_real_chexpert(tmp_path):
  table = Path(WHEEL.submodule_search_locations[0]) / "data" / "chexpert_train.csv.gz"
  with gzip.open(table) as source, open(tmp_path / "train.csv", "wb") as target:
    shutil.copyfileobj(source, target)
  from input_pipeline.readers import chexpert

  items = chexpert.open_source(str(tmp_path)).items
  # Three films more are called frontal, but their view is LL or RL.
  assert [len(ids) for ids in eligible(items).values()] == [1087, 1034, 536, 2257, 2423]
  assert len(make("5x200", items, 0).splits["test"]) == 1000
