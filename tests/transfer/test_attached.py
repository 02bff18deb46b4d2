"""Tasks that a config attaches: learned once, kept, learned anew on other weights."""

import shutil

import numpy as np
import pytest

from configs import base
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.locks import LockedError
from input_pipeline.text import tokenizer
from plan_jax.evaluators import datasets
from plan_jax.inference.load import load
from plan_jax.results import example_scores
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from plan_jax.transfer import attached, drawing
from tiny_runs import tiny

SMALL = {"batch_size": 8, "steps": 2, "validate_every_steps": 2}


@pytest.fixture(scope="module")
def model(run):
  return load(run / "a")


def own(path):
  return datasets.EvaluationSet("phantom", "phantom", path / "records", "test", True)


def learned(path, model, **tasks):
  config = tiny().unlock()
  config.evaluation.transfer = tasks
  return list(attached.learn(config, Workdir(path / "a"), model, [own(path)]))


def test_tasks_are_learned_once(run, model, capsys):
  both = ("run", "random")
  tasks = {
    "probe": base.transfer_task("linear_probe", fractions=(0.001, 0.5, 1.0), encoders=both),
    "elsewhere": base.transfer_task("detection", of="b"),
  }
  config = tiny().unlock()
  config.evaluation.sets.b = base.evaluation_set("folder")
  config.evaluation.transfer = tasks
  arguments = (config, Workdir(run / "a"), model, [own(run)])
  first = list(attached.learn(*arguments))
  output = capsys.readouterr().out
  assert "transfer task elsewhere is left out: evaluation set b is not given" in output
  assert "transfer task probe-0.001, encoder run, is left out" in output
  assert [task for _, task, _, _ in first] == ["probe-0.5", "probe-1"]
  for dataset, task, rows, files in first:
    assert dataset == own(run) and {row.task for row in rows} == {task}
    assert {row.data for row in rows} == {"phantom/test"}
    others = [row for row in rows if row.model == "random encoder"]
    assert any(row.low < row.value < row.high for row in others), others
    (file,) = files
    assert set(example_scores.read(file).groups) <= {row.group for row in rows}
  second = list(attached.learn(*arguments))
  assert capsys.readouterr().out.count("transfer: complete in") == 4
  for (_, _, before, _), (_, _, after, _) in zip(first, second, strict=True):
    np.testing.assert_equal([r.value for r in after], [r.value for r in before])


@pytest.mark.slow
def test_other_weights_are_learned_on_anew(run, learn, tmp_path, capsys):
  """Even where the same step of the same folder holds them; and --out belongs to one encoder."""
  shutil.copytree(run / "a", tmp_path / "a", ignore=shutil.ignore_patterns("transfer"))
  shutil.copytree(run / "records", tmp_path / "records")

  def probed(step):
    probe = base.transfer_task("linear_probe", fractions=(1.0,))
    ((_, _, rows, _),) = learned(tmp_path, load(tmp_path / "a", step=step), probe=probe)
    return next(r.value for r in rows if (r.group, r.metric, r.model) == ("macro", "AUC", "run"))

  before = probed(0)
  learn("segmentation", tmp_path / "out", path=tmp_path)
  checkpoints = Checkpoints(tmp_path / "a" / "checkpoints", keep_last=2)
  parts = assemble(tiny(seed=9), tokenizer.Tokenizer(tmp_path / "a" / "tokenizer"))
  state = parts.initial_state()
  checkpoints.save(3, state.replace(step=state.step + 3))
  checkpoints.close()
  assert probed(0) == before
  assert "transfer: complete in" in capsys.readouterr().out
  after = probed(3)
  output = capsys.readouterr().out
  assert "transfer: complete in" not in output and "at step 3" in output
  assert after != before
  with pytest.raises(UserError, match="run_weights: .* there, .* now.*another --out"):
    learn("segmentation", tmp_path / "out", path=tmp_path)
  learn("segmentation", tmp_path / "out", "--step=0", path=tmp_path)


@pytest.mark.slow
def test_a_task_that_was_killed_while_it_wrote_is_not_complete(run, model, monkeypatch, capsys):
  boxes = base.transfer_task("detection", fractions=(1.0,), channels=8, image_px=64, **SMALL)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(drawing, "write_boxes", killed)
    with pytest.raises(KeyboardInterrupt):
      learned(run, model, boxes=boxes)
  ((_, _, _, files),) = learned(run, model, boxes=boxes)
  assert "training is complete" in capsys.readouterr().out
  assert [file.name for file in files] == ["detection.csv", "detection.npz"]


@pytest.mark.parametrize("kind", [DiskError, LockedError])
def test_a_task_that_the_same_command_can_still_learn_is_not_left_out(
  run, model, monkeypatch, kind
):
  def learn(_):
    raise kind("mine")

  monkeypatch.setattr(attached, "learn_task", learn)
  with pytest.raises(kind, match="mine"):
    learned(run, model, new=base.transfer_task("linear_probe", fractions=(0.75,)))
