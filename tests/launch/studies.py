"""Studies of tiny runs for the tests, and the results that such runs would write."""

import math

import pytest

from input_pipeline import digests
from launch import study, sweep
from plan_jax.results import example_scores, rows

IOU, POINTING, RECALL = rows.HEADLINES[1:4]
AUC = ("terms", "all", "AUC")


def write_study(path, runs):
  file = path / "study.py"
  file.write_text(
    f"from tiny_runs import tiny\n\ndef get_config():\n  return tiny()\n\n"
    f"def sweep():\n  return {runs!r}\n"
  )
  return str(file)


def load(path, runs, extra=()):
  return study.load(write_study(path, runs), str(path / "out"), extra)


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
  rows.write(run.workdir.evaluation, rows.Evaluation(step, results, {"phantom/test": "0"}))
  for task, of_task in (scores or {}).items():
    example_scores.write(run.workdir.example_scores_of(task), of_task)
  digests.write_sums(run.workdir.example_scores)
