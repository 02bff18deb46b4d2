"""A run, evaluated on data that are not its own."""

import csv
import shutil

import pytest

from configs.base import evaluation_set
from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax import compare, experiment
from plan_jax.evaluators import datasets
from plan_jax.results import rows
from plan_jax.runtime.workdir import Workdir
from tiny_runs import untrained

COLUMNS = ("image", "text", "labels")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("on")
  untrained(path, **{"data.records": str(path / "records"), "evaluation.report_images": 1})
  return Workdir(path / "a")


def given(source, split="", dataset="folder"):
  chosen = evaluation_set(dataset, split=split)
  chosen.source = str(source)
  return chosen


def make_folder(run, path, **more):
  path.mkdir()
  source = records.RecordSource(run.path.parent / "records", "test", where="text")
  with (path / "manifest.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, [*COLUMNS, *more])
    writer.writeheader()
    for i in range(len(source)):
      (path / f"{i}.png").write_bytes(source[i].image)
      text = " ".join(source[i].sentences)
      writer.writerow(dict(zip(COLUMNS, (f"{i}.png", text, "edema"), strict=True)) | more)
  return len(source)


def test_a_folder_without_splits_is_evaluated_whole(run, tmp_path, capsys):
  count = make_folder(run, tmp_path / "=other")
  before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
  experiment.evaluate_on(run.load_config(), run, given(tmp_path / "=other"))
  printed = capsys.readouterr().out
  (place,) = (run.path / "on").iterdir()
  assert place.name.startswith("_other-test-")
  evaluation = rows.read(Workdir(place).evaluation)
  assert {row.data for row in evaluation.rows} == {"_other/test"}
  assert {row.n for row in evaluation.rows if row.task == "retrieval"} == {count}
  assert f"report: {Workdir(place).report}" in printed.splitlines()[-1]
  assert "synthetic" not in Workdir(place).report.read_text()
  assert {path: path.stat().st_mtime_ns for path in before} == before  # the run's own stay
  twin = shutil.copytree(place, tmp_path / "twin")
  assert compare.compare(place, twin)[0]
  with pytest.raises(UserError, match="holds an evaluation already"):
    experiment.evaluate_on(run.load_config(), run, given(tmp_path / "=other"), str(twin))


def test_the_runs_own_sets_and_tasks_take_no_part(run, monkeypatch):
  config, taken = run.load_config(), []
  config.evaluation.sets = {"other": given("somewhere")}
  config.evaluation.transfer = {"probe": {"task": "linear_probe"}}
  monkeypatch.setattr(
    experiment, "evaluate_set", lambda model, config, *_, **__: taken.append(config)
  )
  experiment.evaluate_on(config, run, given(run.path.parent / "records", "validation"))
  assert not taken[0].evaluation.sets and not taken[0].evaluation.transfer


def test_records_are_taken_as_they_are(run, tmp_path):
  folder, out = run.path.parent / "records", tmp_path / "out"
  before = records.fingerprint(folder)
  experiment.evaluate_on(run.load_config(), run, given(folder, "validation"), str(out))
  assert set(rows.read(Workdir(out).evaluation).data.values()) == {before}
  assert not (out / "records").exists()


def test_splits(run, tmp_path):
  make_folder(run, tmp_path / "images", split="validation")
  chosen = given(tmp_path / "images")
  assert datasets.settle(chosen) == "images" and chosen.split == "test" and not chosen.selection
  with pytest.raises(UserError, match=r"--split 'test' is not in .*validation"):
    experiment.evaluate_on(run.load_config(), run, chosen, str(tmp_path / "out"))
  chosen = given(tmp_path / "images", "all")
  datasets.settle(chosen)
  assert (chosen.split, chosen.selection) == ("test", "all_test")


@pytest.mark.parametrize("source", ["..", "x/..", "."])
def test_a_folder_has_its_own_name(tmp_path, monkeypatch, source):
  (tmp_path / "images" / "x").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "images" / ("x" if source == ".." else ""))
  assert datasets.settle(given(source)) == "images"


def test_no_foreign_folder_is_written_to_and_no_baseline_taken(run, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  chosen = given(run.path.parent / "records", "validation")
  with pytest.raises(UserError, match="not empty and holds no config.json: name an empty --out"):
    experiment.evaluate_on(run.load_config(), run, chosen, str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
  baseline = run.load_config()
  baseline.baseline = {"name": "gloria"}
  with pytest.raises(UserError, match="is of a baseline"):
    experiment.evaluate_on(baseline, run, chosen)


@pytest.mark.parametrize(
  ("folder", "split", "message"),
  [
    ("none", "", "--on=.*none: there is no such folder"),
    ("empty", "", "manifest.csv"),
    ("../records", "all", "--split=all: .* holds records"),
  ],
)
def test_errors_name_the_folder(run, folder, split, message):
  (run.path / "empty").mkdir(exist_ok=True)
  with pytest.raises(UserError, match=message):
    experiment.evaluate_on(run.load_config(), run, given(run.path / folder, split))
