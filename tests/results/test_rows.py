"""Rows of an evaluation, their file, their tables, and the standing of a run."""

import json
import math
from dataclasses import replace

import pytest

from input_pipeline import digests
from plan_jax.results import rows, tables
from plan_jax.results.rows import Evaluation, Row


def _rows():
  grounding = ("grounding", "grounding-v1", "toy/test")
  retrieval_all = ("retrieval", "retrieval-v1", "toy/test", "all", "R@5 image-to-text")
  nan = math.nan
  return [
    Row(*grounding, "effusion", "mIoU", "run", 0.25, 0.2, 0.31, 40),
    Row(*grounding, "effusion", "mIoU", "centre", 0.125, 0.1, 0.15, 40),
    Row(*grounding, "macro", "mIoU", "run", 0.5, 0.45, 0.55, 90),
    Row(*grounding, "macro", "mIoU", "centre", 0.111, 0.1, 0.12, 90),
    Row(*grounding, "macro", "signed CNR", "run", nan, nan, nan, 0),
    Row(*retrieval_all, "run", 0.4, 0.3, 0.5, 500, 500),
    Row(*retrieval_all, "chance", 0.01, nan, nan, 500, 500),
  ]


def test_results_come_back_as_written(tmp_path):
  path = tmp_path / "deep" / "evaluation.json"
  rows.write(path, Evaluation(1200, _rows(), {"toy/test": "ab"}))
  raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
  assert raw["step"] == 1200 and raw["rows"][4]["value"] is None
  assert set(raw["rows"][0]) == {
    "task",
    "protocol",
    "data",
    "group",
    "metric",
    "model",
    "value",
    "low",
    "high",
    "n",
  }
  assert raw["rows"][5]["gallery"] == 500
  evaluation = rows.read(path)
  assert evaluation.step == 1200 and repr(evaluation.rows) == repr(_rows())
  assert evaluation.data == {"toy/test": "ab"}
  assert list(path.parent.iterdir()) == [path]
  with pytest.raises(ValueError, match="infinite"):
    row = Row("t", "p", "d", "g", "m", "run", math.inf, 0, 0, 1)
    rows.write(path, Evaluation(1, [row], {}))
  assert rows.read(path).step == 1200  # a failed write leaves the old file


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.pop("step"), "another version .'step'"),
    (lambda c: c.pop("data"), "another version .'data'"),
    (lambda c: c.update(rows=[3]), "another version"),
    (lambda c: c["rows"][2].pop("value"), "another version .'value'"),
    (lambda c: c["rows"][2].update(more=1), "another version .*'more'"),
  ],
)
def test_results_of_another_version_are_named(tmp_path, change, message):
  path = tmp_path / "evaluation.json"
  rows.write(path, Evaluation(1, _rows(), {}))
  content = digests.unseal(path.read_text())
  change(content)
  path.write_text(digests.seal(content))
  with pytest.raises(digests.DamagedError, match=f"evaluation.json.*{message}.*evaluate again"):
    rows.read(path)


def test_table_shows_the_run_beside_its_chance_baselines():
  lines = tables.table(_rows()).splitlines()
  assert lines[0] == "grounding on toy/test (grounding-v1)"
  assert lines[1].split() == ["group", "metric", "run", "[95", "%", "interval]", "centre", "n"]
  assert lines[2].split() == ["macro", "mIoU", "0.500", "[0.450,", "0.550]", "0.111", "90"]
  assert lines[3].split() == ["signed", "CNR", "-", "-", "0"]
  assert lines[4].split()[0] == "effusion"
  assert lines[7].split()[-2:] == ["n", "gallery"]
  assert lines[8].split()[-3:] == ["0.010", "500", "500"]
  assert tables.table([]) == ""


def test_a_group_cannot_forge_lines_of_a_table():
  forged = "\x1b[2K\rmacro\nmacro  mIoU  .99"
  row = Row("grounding", "grounding-v1", "toy/test", forged, "mIoU", "run", 0.1, 0.1, 0.1, 3)
  lines = tables.table([row]).split("\n")
  assert len(lines) == 3 and all(line.isprintable() for line in lines)


def test_headline_is_short_and_has_chance_baselines():
  lines = tables.headline(_rows()).splitlines()
  assert len(lines) == 3
  assert lines[0].split()[2:] == ["macro", "signed", "CNR", "-", "(n", "0)"]
  assert "macro mIoU" in lines[1] and "0.500 [0.450, 0.550]" in lines[1]
  assert "centre 0.111" in lines[1] and "n 90" in lines[1]
  assert "R@5 image-to-text" in lines[2] and "gallery 500" in lines[2]
  assert lines[2].endswith("chance 0.010")
  assert tables.headline([]) == ""


@pytest.mark.parametrize(
  ("metric", "low", "high", "expected"),
  [
    ("mIoU", 0.3, 0.4, "better"),
    ("mIoU", 0.1, 0.3, "level"),
    ("mIoU", 0.0, 0.1, "worse"),
    ("median rank text-to-image", 0.0, 0.05, "better"),
    ("median rank text-to-image", 0.3, 0.4, "worse"),
    ("mIoU", math.nan, math.nan, ""),
  ],
)
def test_standing_to_the_best_chance_baseline(metric, low, high, expected):
  def row(model, value, low=math.nan, high=math.nan):
    return Row("t", "p", "d", "g", metric, model, value, low, high, 9)

  cells = {"run": row("run", (low + high) / 2, low, high)}
  assert tables.standing(cells) == ""
  cells |= {"none": row("none", math.nan), "good": row("good", 0.2), "bad": row("bad", 0.15)}
  if "rank" in metric:
    assert tables.best_chance(cells).model == "bad"
  else:
    assert tables.best_chance(cells).model == "good"
  assert tables.standing(cells) == expected
  assert tables.standing(cells, 19) == ""
  # A radiologist is none: no verdict compares with one, and a metric may have no other.
  best = tables.best_chance(cells)
  for name, value in (("radiologist 1", 0.99), ("mean radiologist", -0.99)):
    cells[name] = row(name, value)
  assert tables.best_chance(cells) == best and tables.standing(cells) == expected
  assert tables.best_chance({"run": cells["run"], "radiologist 1": cells["radiologist 1"]}) is None


def test_patients_behind_a_row():
  row = Row("t", "p", "d", "nodule", "mIoU", "run", 0.5, 0.4, 0.6, 90)
  assert tables.patients_of(row, {}) == 90
  assert tables.patients_of(row, {("other", "t"): {"macro": 5}}) == 90
  known = {("d", "t"): {"macro": 40, "nodule": 7}, ("d", "u"): {"macro": 60, "nodule": 8}}
  assert tables.patients_of(row, known) == 7
  assert tables.patients_of(replace(row, group="view PA"), known) == 40
  assert tables.patients_of(replace(row, task="v"), known) == 60
  assert tables.patients_of(replace(row, task="v", n=3), known) == 3
