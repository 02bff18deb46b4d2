"""Studies of tiny runs for the tests, and the results that such runs would write."""

import math

import pytest

from configs import base
from input_pipeline import digests
from launch import study, sweep
from plan_jax.results import example_scores, rows
from tiny_runs import tiny

IOU, POINTING, RECALL = rows.HEADLINES[1:4]
AUC = ("terms", "all", "AUC")


def write_study(path, runs, config="tiny_runs.tiny"):
  module, function = config.split(".")
  file = path / "study.py"
  file.write_text(
    f"import {module}\n\ndef get_config():\n  return {module}.{function}()\n\n"
    f"def sweep():\n  return {runs!r}\n"
  )
  return str(file)


def load(path, runs, extra=(), config="tiny_runs.tiny"):
  return study.load(write_study(path, runs, config), str(path / "out"), extra)


WITH_SET = "studies.tiny_with_set"


def convert_sets(monkeypatch, fingerprint="0"):
  """Makes the records of attached sets appear, with a fingerprint."""
  monkeypatch.setattr("input_pipeline.records.is_complete", lambda folder: True)
  monkeypatch.setattr("input_pipeline.records.fingerprint", lambda folder: fingerprint)


def tiny_with_set():
  """Tiny, with an evaluation set that waits for a source."""
  config = tiny()
  with config.unlocked():
    config.evaluation.sets.other = base.evaluation_set("folder")
  return config


def seeds(count):
  return [{"seed": i} for i in range(count)]


def error_of(capsys, *argv):
  """The one line of the command's error."""
  with pytest.raises(SystemExit) as stopped:
    sweep.main(list(map(str, argv)))
  error = str(stopped.value)
  assert error.startswith("error: ") and "\\n" not in error
  return error


def row(column, value, model="run", **more):
  task, group, metric = column
  fields = {"protocol": f"{task}-v1", "data": "phantom/test", "n": 4, "low": math.nan} | more
  return rows.Row(
    task=task, group=group, metric=metric, model=model, value=value, high=math.nan, **fields
  )


def write_run(run, results, scores=None, step=6):
  """`scores` are ExampleScores by task, `SET/TASK` for those of an attached set."""
  data = {row.data: "0" for row in results}
  rows.write(run.workdir.evaluation, rows.Evaluation(step, results, data))
  for task, of_task in (scores or {}).items():
    example_scores.write(run.workdir.example_scores_of(task), of_task)
  digests.write_sums(run.workdir.example_scores)
