"""Suites: what lies in the folder is scored by the suite's rules, what does not is said."""

import functools
import json
import math
import shutil
import subprocess
import sys

import pytest
from absl import flags

from fakes import (
  chestx_det10,
  chexpert,
  nih14,
  openi,
  padchest,
  padchest_gr,
  physionet,
  rsna,
  siim,
)
from input_pipeline.conversion import convert, selection_builders, selections
from input_pipeline.errors import UserError
from input_pipeline.readers import by_name as readers
from input_pipeline.readers.by_name import READERS, default_options
from paths import ROOT
from plan_jax import config as config_lib
from plan_jax import suite
from plan_jax.__main__ import main
from plan_jax.evaluators import stored_scores
from plan_jax.evaluators.by_name import EVALUATORS
from plan_jax.evaluators.suites import SUITES
from plan_jax.inference import prompts
from plan_jax.results import rows
from plan_jax.runtime import run_flags
from plan_jax.runtime.checkpoints import CheckpointError
from plan_jax.runtime.workdir import Workdir
from tiny_runs import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("suite")
  untrained(path, **{"data.records": str(path / "records"), "evaluation.report_images": 1})
  return Workdir(path / "a")


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_what_there_is(name):
  assert flags.FLAGS[run_flags.SUITE.name].parser.enum_values == sorted(SUITES)
  for key, chosen in SUITES[name].items():
    assert chosen.dataset in READERS and (ROOT / f"docs/data/{chosen.dataset}.md").exists()
    assert set(chosen.options) <= set(default_options(chosen.dataset)), key
    prompts.load(chosen.prompts)
    for evaluator, protocols in chosen.evaluators.items():
      assert set(protocols) <= set(EVALUATORS[evaluator].protocols)
    scored = {protocol for protocols in chosen.evaluators.values() for protocol in protocols}
    assert {shown.protocol for shown in chosen.shown} == scored


def _write_radzero(folder, monkeypatch):
  """Makes all sets of "radzero" in small, each with what its rows need."""
  openi.write(folder / "openi")
  nih14.write(folder / "nih14", size_px=64)
  padchest.write(folder / "padchest")
  chestx_det10.write(folder / "chestx_det10")
  names = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
  views = ("view1_frontal", "view2_lateral")
  test = [
    {"Path": f"test/patient6474{i}/study1/{view}.jpg"} | dict.fromkeys(names, f"{i}.0")
    for i in (0, 1)
    for view in views
  ]
  chexpert.write(folder / "chexpert", test=test)
  physionet.write(folder / "ms_cxr", size_px=64)
  images = [f"i{i:02}" for i in range(20)]
  outlined = [f"{name},{130 if i % 2 else -1}{' 10' * (i % 2)}" for i, name in enumerate(images)]
  siim.write(folder / "siim", outlined, images=images, size_px=64)
  boxes = [f"{name},{'8,9,20,30,1' if i % 2 else ',,,,0'}" for i, name in enumerate(images)]
  rsna.write(folder / "rsna", boxes, classes=False, size_px=64, images=images)
  monkeypatch.setattr(selection_builders, "_RSNA_PATIENTS", len(images))
  monkeypatch.setattr(selection_builders, "_RSNA_HELD", 6)


def test_a_run_on_all_sets(run, tmp_path, capsys, monkeypatch):
  _write_radzero(folder := tmp_path / "sets", monkeypatch)
  before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
  lines = suite.evaluate_suite(run.load_config(), run, "radzero", folder)
  assert "is missing" not in capsys.readouterr().out
  assert all(line.row and 0 <= line.row.value <= 1 for line in lines)
  sizes = {(line.data, line.shown.metric, line.shown.group): line.row.n for line in lines}
  assert sizes["siim", "AUC", "macro"] == 3 and sizes["rsna", "AUC", "macro"] == 6
  assert sizes["siim", "Dice", "macro"] + sizes["siim", "specificity", "macro"] == 3
  assert sizes["chexpert", "AUC", "macro"] == 4 * 5  # laterals too
  place = run.path / "suites" / "radzero"
  for key in SUITES["radzero"]:
    workdir = Workdir(place / key)
    evaluation = rows.read(workdir.evaluation)
    assert repr(stored_scores.remake(workdir.example_scores)) == repr((evaluation.rows, []))
    assert {row.data for row in evaluation.rows} == {f"{key}/test"}
  written = (place / "suite.md").read_text()
  assert "highest on the scored images" in written and written.count("\n| ") == len(lines) + 1
  assert {path: path.stat().st_mtime_ns for path in before} == before  # the run's own stay
  # The table says no more than the evaluations do, and is made of their scores again.
  one = next(line.row for line in lines if line.data == "openi")
  assert f"{one.value:.3f}" in written and one.protocol in written and one.n == 5
  main(["tables", str(place)])
  again = capsys.readouterr().out
  cells = [line.strip("| ").split() for line in written.splitlines() if line.startswith("| ")]
  assert [line.split() for line in again.splitlines()][-len(cells) - 1 : -1] == [
    [cell for cell in line if cell != "|"] for line in cells
  ]


def test_what_is_missing_is_said(run, tmp_path, capsys):
  folder = tmp_path / "sets"
  openi.write(folder / "openi")
  lines = suite.evaluate_suite(run.load_config(), run, "radzero", folder, str(tmp_path / "out"))
  printed, written = capsys.readouterr().out, (tmp_path / "out" / "suite.md").read_text()
  assert {line.data for line in lines if line.row} == {"openi"}
  for key in SUITES["radzero"].keys() - {"openi"}:
    text = f"put its folder at {folder / key} (docs/data/{key}.md)"
    assert printed.count(f"{key} is missing: {text}") == 1 and text in written
  # What lies in a folder that was not scored, of an earlier evaluation say, is in no table.
  (tmp_path / "out" / "siim" / "example_scores").mkdir(parents=True)
  main(["tables", str(tmp_path / "out")])
  again = capsys.readouterr().out
  assert again.count("put its folder") == printed.count("put its folder") - 7
  main(["tables", "--json", str(tmp_path / "out")])
  given = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert {row["data"] for row in given} == {"openi/test"}


def test_the_best_checkpoint_of_a_run_may_be_asked_for(run, tmp_path):
  openi.write(tmp_path / "openi")
  config = run.load_config()
  config.checkpoint.update(evaluate="best", best_metric="validation/retrieval/R@5_image-to-text")
  config.evaluation.every_steps = 2
  config_lib.check(config)
  # Not that the metric would be none of the suite's: no checkpoint of this run has it.
  with pytest.raises(CheckpointError, match="was scored by 'validation/retrieval"):
    suite.evaluate_suite(config, run, "radzero", tmp_path, str(tmp_path / "out"))


def test_records_of_other_rules_are_refused(run, tmp_path):
  siim.write(tmp_path / "siim")
  whole = {"selection": "all_test", "image_px": 64, "workers": 0, "progress": False}
  folder = tmp_path / "sets"
  convert.convert("siim", folder / "siim", source=str(tmp_path / "siim"), **whole)
  words = "selection='all_test' instead of 'siim_images'.*--dataset=siim --selection=siim_images"
  with pytest.raises(UserError, match=words):
    suite.evaluate_suite(run.load_config(), run, "radzero", folder)
  (folder / "siim" / "convert.json").unlink()
  with pytest.raises(UserError, match="nobody knows how it was converted: convert it anew"):
    suite.evaluate_suite(run.load_config(), run, "radzero", folder)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({}, ""),
    ({"selection_seed": 3}, "selection_seed=3 instead of 0"),
    ({"limit": 1}, "limit=1 instead of None"),
    ({"labels": "all"}, "labels='all' instead of 'physician'"),
  ],
)
def test_all_that_decides_the_records_counts(tmp_path, change, words):
  padchest.write(tmp_path / "raw")
  small = {"image_px": 64, "workers": 0, "progress": False, "selection": "all_test"} | change
  convert.convert("padchest", tmp_path / "records", source=str(tmp_path / "raw"), **small)
  check = functools.partial(
    suite._check_records, SUITES["radzero"]["padchest"], tmp_path / "records"
  )
  if not words:
    return check()
  with pytest.raises(UserError, match=words):
    check()


def test_records_by_a_file_of_the_suite_s_selection(tmp_path):
  padchest.write(tmp_path / "raw")
  source = str(tmp_path / "raw")
  items = readers.open_reader("padchest", source, {}).items
  (tmp_path / "all.json").write_text(selections.make("all_test", items, 0).to_json())
  small = {"image_px": 64, "workers": 0, "progress": False}
  chosen = {"selection": str(tmp_path / "all.json")}
  convert.convert("padchest", tmp_path / "records", source=source, **small, **chosen)
  suite._check_records(SUITES["radzero"]["padchest"], tmp_path / "records")


def test_findings_limit_what_is_scored(run, tmp_path):
  folder = tmp_path / "sets"
  padchest_gr.write(folder / "padchest_gr")
  physionet.write(folder / "ms_cxr", size_px=64)
  lines = suite.evaluate_suite(run.load_config(), run, "aep", folder, str(tmp_path / "out"))
  found = {line.data: {row.group for row in _rows(tmp_path / "out" / line.data)} for line in lines}
  limited = set(SUITES["aep"]["padchest_gr"].findings)
  assert found["padchest_gr"] <= {*limited, "macro"} and len(found["ms_cxr"]) > 2
  by_metric = {
    (line.data, line.shown.protocol, line.shown.metric): line.row.value
    for line in lines
    if line.row
  }
  own, sharp = (
    {metric: by_metric["ms_cxr", name, metric] for metric in ("mIoU", "P@1")}
    for name in ("compat-aep-v2", "compat-aep-sharpened-v1")
  )
  assert own["P@1"] == sharp["P@1"] and own["mIoU"] != sharp["mIoU"]
  assert not any(math.isnan(value) for value in by_metric.values())


def _rows(path):
  return rows.read(Workdir(path).evaluation).rows


def test_an_empty_folder_is_one_line(run, tmp_path):
  with pytest.raises(UserError, match="holds none of the folders openi, nih14"):
    suite.evaluate_suite(run.load_config(), run, "radzero", tmp_path)
  shutil.copytree(run.path.parent / "records", tmp_path / "openi")
  (tmp_path / "openi" / "dataset_info.json").unlink()
  with pytest.raises(UserError, match="ecgen-radiology"):
    suite.evaluate_suite(run.load_config(), run, "radzero", tmp_path, str(tmp_path / "out"))


@pytest.mark.parametrize(
  ("given", "words"),
  [
    (("--suite=radzero",), "--suite=NAME and --sets=FOLDER go together"),
    (("--suite=radzero", "--sets=none", "--on=x"), "leave out --on"),
    (("--suite=radzero", "--sets=none"), "--sets=none holds none of the folders"),
  ],
)
def test_flags_that_do_not_go_together_are_one_line(run, given, words):
  command = [sys.executable, "-m", "plan_jax.main", "--mode=evaluate", f"--workdir={run.path}"]
  done = subprocess.run([*command, *given], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr
