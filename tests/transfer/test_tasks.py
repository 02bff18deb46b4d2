"""The contract of a transfer task, end to end on the phantom: rows, files, going on, refusals."""

import json

import numpy as np
import pytest

from input_pipeline.errors import UserError
from plan_jax import compare
from plan_jax.results import rows as results
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.by_name import TASKS
from plan_jax.transfer.settings import SETTINGS
from tiny_runs import untrained

# Task -> name of its rows, protocols, a metric and its chance baseline, metrics that compare takes.
CONTRACTS = {
  "detection": (
    "detection",
    {"detection-v1"},
    ("mAP .4-.75", "typical box"),
    {"mAP .4-.75", "FROC"},
  ),
  "segmentation": (
    "segmentation",
    {"segmentation-v1"},
    ("Dice", "mean_mask"),
    {"Dice", "IoU", "Dice with empty images"},
  ),
  "classification": (
    "fine-tuned-classification",
    {"fine-tuned-v1"},
    ("AUC", "chance"),
    {"AUC", "average precision"},
  ),
  "linear_probe": (
    "linear-probe",
    {"linear-probe-v1"},
    ("AUC", "chance"),
    {"AUC", "average precision"},
  ),
}
HEADS = [task for task in TASKS if task != "linear_probe"]


def values(rows):
  return [(row.group, row.metric, row.model, row.value, row.n) for row in rows]


def test_settings_and_tasks_have_the_same_names():
  assert list(SETTINGS) == list(TASKS) == list(CONTRACTS)


@pytest.mark.parametrize("task", TASKS)
def test_rows_and_files(done, task):
  out, rows = done(task)
  name, protocols, (metric, chance), compared = CONTRACTS[task]
  assert {row.task for row in rows} == {name} and protocols <= {row.protocol for row in rows}
  assert {row.data for row in rows} == {"phantom/test"} and rows[0].group == "macro"
  macro = {(row.metric, row.model) for row in rows if row.group == "macro"}
  assert {(metric, "run"), (metric, chance)} <= macro
  kept = results.read(Workdir(out).evaluation)
  np.testing.assert_equal(values(kept.rows), values(rows))
  assert kept.step in ((0,) if task == "linear_probe" else (2, 4))
  config = json.loads((out / "config.json").read_text())
  assert (config["task"], config["run_step"], config["encoder"]) == (task, 0, "run")
  assert config["image_px"] == 64 and len(config["run_weights"]) == 12
  differences, left_out = compare.compare(out, out, resamples=10)
  assert compared <= {d.metric for d in differences} and not left_out
  assert not any(d.verdict for d in differences)


@pytest.mark.parametrize("task", HEADS)
def test_the_same_command_only_evaluates_and_another_is_refused(done, learn, task, capsys):
  out, rows = done(task)
  again = learn(task, out)
  assert "training is complete: 4 steps" in capsys.readouterr().out
  np.testing.assert_equal(values(again), values(rows[: len(again)]))
  with pytest.raises(UserError, match="fraction: 1.0 there, 0.5 now.*name another --out"):
    learn(task, out, "--fraction=0.5")


def test_a_finished_probe_is_refused(done, learn):
  with pytest.raises(UserError, match="another --out"):
    learn("linear_probe", done("linear_probe")[0])


@pytest.mark.parametrize(
  ("task", "flag", "message"),
  [
    ("detection", "--findings=mass,ghost", "--findings: .* has no box of ghost"),
    ("segmentation", "--findings=ghost", "--findings: .* has no region of ghost"),
    ("classification", "--findings=ghost", "--findings: .* both present and absent of ghost"),
    ("linear_probe", "--findings=ghost", "--findings: .* both present and absent of ghost"),
    ("detection", "--image_px=72", "--image_px=72 is no multiple of 32"),
    ("segmentation", "--image_px=72", "--image_px=72 is no multiple of 32"),
    ("classification", "--image_px=62", "--image_px=62 is no multiple of 8"),
    ("linear_probe", "--image_px=62", "--image_px=62 is no multiple of 8"),
    ("linear_probe", "--workdir=nowhere", "nowhere holds no run"),
  ],
)
def test_impossible_flags_are_named(learn, tmp_path, task, flag, message):
  fresh = "random" if task in ("detection", "segmentation", "linear_probe") else "supervised"
  with pytest.raises(UserError, match=message):
    learn(task, tmp_path / "out", f"--encoder={fresh}", flag)


TRAINING = [("train", f"mass={i % 2}", i % 2) for i in range(8)]


@pytest.mark.parametrize("task", TASKS)
def test_a_test_split_with_nothing_to_score_is_refused_before_training(
  learn, make_records, tmp_path, monkeypatch, task
):
  def never(*_):
    raise AssertionError("nothing may be learned")

  monkeypatch.setattr(TASKS[task], "fit", never)
  folder = make_records([*TRAINING, ("test", "mass=0", 0), ("test", "mass=0", 0)])
  with pytest.raises(UserError, match="test split of .* has no .*: nothing to score"):
    learn(task, tmp_path / "out", "--image_px=64", folder=folder)


@pytest.mark.parametrize(
  "task",
  [
    pytest.param("detection", marks=pytest.mark.slow),
    pytest.param("segmentation", marks=pytest.mark.slow),
    pytest.param("classification", marks=pytest.mark.slow),
    "linear_probe",
  ],
)
def test_a_validation_split_that_cannot_be_scored_is_not_used(
  learn, make_records, tmp_path, capsys, task
):
  rest = [("validation", "mass=0", 0)] * 2 + [("test", f"mass={i}", i) for i in (0, 1)]
  folder = make_records([*TRAINING, *rest])
  more = ("--patience=1",) if task in HEADS else ()
  rows = learn(task, tmp_path / "out", "--image_px=64", *more, folder=folder)
  output = capsys.readouterr().out
  assert "the validation split has no" in output
  assert ("trained steps 1 to 4" in output) == (task in HEADS)
  assert any(row.metric.endswith(" at .5") for row in rows) == (task != "detection")


def test_no_finding_may_be_called_macro(make_records):
  with pytest.raises(UserError, match="a finding is called 'macro'.*rename it"):
    make_records([("train", "macro=1", 0), ("test", "macro=0", 0)])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("task", "flags"),
  [
    ("detection", ("--channels=16", "--findings=cardiomegaly,edema,effusion", "--steps=400")),
    ("segmentation", ("--channels=64", "--findings=effusion,pneumothorax", "--steps=300")),
    ("classification", ("--findings=cardiomegaly,edema", "--steps=300")),
  ],
)
def test_a_supervised_encoder_learns(learn, tmp_path, task, flags):
  """From scratch on 600 images, 1,200 for boxes: well above the chance baselines."""
  train, test = (1200, 100) if task == "detection" else (600, 60)
  sizes = {"train_images": train, "validation_images": 60, "test_images": test}
  untrained(tmp_path, **{f"data.options.{name}": size for name, size in sizes.items()})
  more = ("--encoder=supervised", "--batch_size=16", "--learning_rate=0.003")
  every = "--validate_every_steps=400" if task == "detection" else "--validate_every_steps=100"
  rows = learn(task, tmp_path / "out", *more, *flags, every, path=tmp_path)
  cells = {(row.group, row.metric, row.model): row.value for row in rows}
  if task == "detection":
    assert cells["macro", "AP50", "run"] > 0.45
    assert cells["macro", "AP50", "run"] > 4 * cells["macro", "AP50", "typical box"]
  elif task == "segmentation":
    assert cells["macro", "Dice", "run"] > cells["macro", "Dice", "mean_mask"] + 0.05
  else:
    assert cells["macro", "AUC", "run"] > cells["macro", "AUC", "chance"] + 0.05
