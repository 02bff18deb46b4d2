"""The loop over a state of one number: what it calls, writes and saves, and when."""

import dataclasses
import math
import re
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.runtime import preemption
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import read_scalars
from plan_jax.training import loop as loops
from plan_jax.training.loop import DivergedError, Loop
from plan_jax.training.state import TrainState
from tiny_runs import mesh_of

METRICS = {"loss": 1.0, "gradient_norm": 1.0, "parameter_norm": 1.0}


def state_of(step):
  return TrainState(jnp.int32(step), {"x": jnp.float32(step)}, {}, ())


class Run:
  """A loop in a folder, with a record of its calls."""

  def __init__(self, path, *, steps=5, broken=(None, None), at_batch=None, **settings):
    self.path, self.calls, self.checkpoints = path, [], Checkpoints(path / "c", best_metric="score")
    self._broken, self._at_batch = broken, at_batch
    settings = dict(log_every_steps=2, evaluate_every_steps=0, save_every_steps=0) | settings
    self.loop = Loop(
      steps=steps,
      batch_size=8,
      mesh=mesh_of(1),
      update=self._update,
      evaluate=self._evaluate,
      remedy="lower the rate",
      **settings,
    )

  def batches(self, step):
    try:
      while True:
        if step == self._at_batch:
          signal.raise_signal(signal.SIGTERM)
        yield {"step": np.full((8,), step)}
        step += 1
    finally:
      self.calls.append("closed")

  def _update(self, step, state, batch):
    assert int(state.step) == step and int(batch["step"][0]) == step
    self.calls.append(f"update {step}")
    name, at = self._broken
    return state_of(step + 1), METRICS | {"loss": step} | ({name: math.nan} if step == at else {})

  def _evaluate(self, state):
    self.calls.append(f"evaluate {int(state.step)}")
    return {"score": 10.0 - int(state.step)}

  def run(self, done=0):
    before = signal.signal(signal.SIGTERM, preemption.interrupt)
    try:
      self.loop.run(state_of(done), done, self.batches(done), self.checkpoints, self.path)
    finally:
      signal.signal(signal.SIGTERM, before)
      self.checkpoints.close()

  def saved(self):
    return sorted(int(p.name) for p in (self.path / "c").iterdir() if p.name.isdigit())


def test_metrics_are_fetched_while_the_next_step_runs(tmp_path, monkeypatch):
  """Rows every two steps and at the end, each the mean of its steps; none is fetched at once."""
  run, fetched = Run(tmp_path), []

  def spy(pending):
    fetched.append((run.calls[-1], len(pending)))
    return pending

  monkeypatch.setattr(loops.jax, "device_get", spy)
  run.run()
  assert fetched == [("update 2", 2), ("update 4", 2), ("update 4", 1)]
  rows = read_scalars(tmp_path / "metrics.jsonl")
  assert [(row["step"], row["train/loss"]) for row in rows] == [(2, 0.5), (4, 2.5), (5, 4.0)]
  assert run.saved() == [5] and run.calls[-1] == "closed"


def test_evaluation_comes_before_the_checkpoint_and_scores_it(tmp_path):
  run = Run(tmp_path, evaluate_every_steps=2, save_every_steps=2)
  run.run()
  assert [call for call in run.calls if "evaluate" in call] == [
    "evaluate 2",
    "evaluate 4",
    "evaluate 5",
  ]
  assert run.saved() == [2, 4, 5]  # the best, and the last two
  rows = read_scalars(tmp_path / "metrics.jsonl")
  assert [(row["step"], row["score"]) for row in rows if "score" in row] == [(2, 8), (4, 6), (5, 5)]


def test_it_goes_on_and_stops_early(tmp_path):
  run = Run(tmp_path, steps=9, evaluate_every_steps=2, stop=lambda step, values: step == 6)
  run.run(done=3)
  updates = [call for call in run.calls if "update" in call]
  assert updates == ["update 3", "update 4", "update 5"] and run.saved() == [6]


@pytest.mark.parametrize("at_batch", [1, 4])
def test_a_notice_is_heard_at_any_step(tmp_path, at_batch):
  """At the last one, too: else what follows begins, and is killed."""
  run = Run(tmp_path, at_batch=at_batch)
  with pytest.raises(preemption.Preempted):
    run.run()
  assert run.saved() == [at_batch + 1] and run.calls[-2] == f"update {at_batch}"


def test_a_notice_while_the_last_checkpoint_is_written_is_heard(tmp_path, monkeypatch):
  wait = Checkpoints.wait

  def noticed(self):
    signal.raise_signal(signal.SIGTERM)
    wait(self)

  monkeypatch.setattr(Checkpoints, "wait", noticed)
  with pytest.raises(preemption.Preempted):
    Run(tmp_path).run()


@pytest.mark.parametrize("name", METRICS)
def test_what_is_no_number_stops_it_unsaved(tmp_path, name):
  run = Run(tmp_path, broken=(name, 2), save_every_steps=3)
  with pytest.raises(DivergedError, match="not finite since step 3: lower the rate"):
    run.run()
  assert all(row["train/loss"] is not None for row in read_scalars(tmp_path / "metrics.jsonl"))
  assert run.saved() == []


def test_the_stage_stands_beside_the_loss(tmp_path, capsys):
  Run(tmp_path, describe=lambda step: f"stage {step}").run()
  lines = [line for line in capsys.readouterr().out.splitlines() if "stage" in line]
  assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
  assert lines[-1].endswith("loss 4.000  stage 4")


def test_rate_and_eta_leave_compilation_out(tmp_path, capsys, monkeypatch):
  """The first step of each of two stages takes a minute, all others a second."""
  clock = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: clock[0])
  run = Run(tmp_path, steps=8, describe=lambda step: f"stage {step // 4}")
  update = run._update

  def slow(step, *args):
    clock[0] += 60 if step in (0, 4) else 1
    return update(step, *args)

  run.loop = dataclasses.replace(run.loop, update=slow)
  run.run()
  lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
  assert lines[0] == "step 1/8  loss 0.000  (rate and ETA follow)"
  rates = [float(re.search(r"([\d.]+) steps/s", line).group(1)) for line in lines[1:]]
  # A line is written a step late: the third knows of two steps, and of the time of one.
  assert rates == pytest.approx([1.0, 2.0, 1.0, 2.0]) and "ETA 0:06" in lines[1]


def test_dropped_sentences_are_explained_once(tmp_path, capsys):
  run = Run(tmp_path, steps=6)
  update = run._update

  def dropping(step, *args):
    state, metrics = update(step, *args)
    return state, metrics | {"dropped_sentences": 3.0 * (step >= 2)}

  run.loop = dataclasses.replace(run.loop, update=dropping)
  run.run()
  lines = capsys.readouterr().out.splitlines()
  (told,) = [line for line in lines if "train/dropped_sentences counts" in line]
  assert "config.text.max_tokens" in told and told.endswith(": 3.0 in the mean")
  assert lines[lines.index(told) - 1].startswith("step 4/6")
