"""Several processes as one run: two real ones, on this machine's loopback."""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from input_pipeline.conversion import convert
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.text.tokenizer import Tokenizer
from paths import ROOT
from plan_jax.results import rows as results
from plan_jax.runtime import preemption, processes, workdir
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.logging import read_scalars
from plan_jax.training.assembly import assemble
from tiny_runs import flags, tiny

SETTINGS = {"train.ema_decay": 0.9, "data.workers": 1}
BOUND = 150  # seconds in which the loss of a process must end the other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return draw(tmp_path_factory.mktemp("records") / "phantom")


def draw(out, **more):
  convert.convert("phantom", out, workers=0, progress=False, **tiny().data.options.to_dict() | more)
  return out


@pytest.fixture
def start():
  """Starts processes of one run, each with `devices`; all are ended with the test.

  Without `new` a run goes on by its own config.
  """
  running = []

  def begin(where, *arguments, count=2, devices=1, cwds=None, new=True, **more):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), PYTHONPATH=str(ROOT))
    for index in range(count):
      command = [
        sys.executable,
        "-m",
        "plan_jax.main",
        f"--workdir={where}",
        *arguments,
      ]
      if new:
        command += [f"--config={ROOT}/configs/phantom.py", *flags(**SETTINGS, **more)]
      if count > 1:
        command += ["--distributed", f"--coordinator_address={address}"]
        command += [f"--num_processes={count}", f"--process_id={index}"]
      running.append(
        subprocess.Popen(
          command,
          env=environment,
          cwd=cwds[index] if cwds else ROOT,
          text=True,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          start_new_session=True,
        )
      )
    return running[-count:]

  yield begin
  for process in running:
    # Also where it has ended: a loader's worker may outlive it, and holds its pipe.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=BOUND)


def finish(running, codes=(0, 0), timeout=300):
  deadline = time.monotonic() + timeout
  outputs = [p.communicate(timeout=max(1, deadline - time.monotonic()))[0] for p in running]
  assert tuple(p.returncode for p in running) == tuple(codes[: len(running)]), "\n".join(outputs)
  return outputs


def await_checkpoint(running, where, step):
  deadline = time.monotonic() + 240
  while not (where / "checkpoints" / str(step)).exists():
    assert all(p.poll() is None for p in running), running[0].communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def leaves(where, **more):
  """The newest checkpoint of a run, on the devices here: its step and {path: array}."""
  run = workdir.Workdir(where)
  parts = assemble(tiny(**SETTINGS, **more), Tokenizer(run.tokenizer))
  checkpoints = Checkpoints(run.checkpoints, create=False)
  state = checkpoints.restore(parts.abstract_state)
  checkpoints.close()
  return int(state.step), {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def assert_same(given, wanted):
  assert given[0] == wanted[0] and given[1].keys() == wanted[1].keys()
  for path in wanted[1]:
    np.testing.assert_array_equal(given[1][path], wanted[1][path], err_msg=path)


def losses(where):
  rows = read_scalars(where / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # each once
  return [row["train/loss"] for row in rows]


@pytest.fixture(scope="module")
def never(folder, tmp_path_factory):
  """A run of two processes that nothing disturbs, and their output."""
  where = tmp_path_factory.mktemp("never") / "run"
  begin = start.__wrapped__()
  running = next(begin)(where, **{"data.records": folder})
  outputs = finish(running)
  begin.close()
  return where, outputs


def test_two_processes_are_one_run(start, never, folder, tmp_path):
  two, (first, second) = never
  finish(start(tmp_path / "one", count=1, devices=2, **{"data.records": folder}))
  np.testing.assert_allclose(losses(two), losses(tmp_path / "one"), rtol=1e-5)
  step, params = leaves(two)
  assert step == 6
  for path, leaf in leaves(tmp_path / "one")[1].items():
    np.testing.assert_allclose(params[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
  # The evaluation is shared, gathers every image and every phrase, and comes to the same.
  rows = results.read(two / "evaluation.json").rows
  wanted = results.read(tmp_path / "one" / "evaluation.json").rows
  assert [(row.task, row.model, row.group, row.metric, row.n) for row in rows] == [
    (row.task, row.model, row.group, row.metric, row.n) for row in wanted
  ]
  values = [(row.value, other.value) for row, other in zip(rows, wanted, strict=True)]
  np.testing.assert_allclose(*zip(*values, strict=True), rtol=1e-3, atol=1e-4)
  # One of them writes and speaks.
  assert "report: " in first and "ETA" in first
  assert "report: " not in second and "ETA" not in second and "image/s" not in second
  events = list((two / "tensorboard").iterdir())
  assert len(events) == 1


def test_two_processes_train_a_run_for_longer(start, never, tmp_path):
  shutil.copytree(never[0], tmp_path / "run")
  running = start(tmp_path / "run", "--mode=train", "--steps=8", new=False)
  outputs = finish(running, timeout=BOUND)
  assert "trains on from step 6 to 8" in outputs[0]
  run = workdir.Workdir(tmp_path / "run")
  assert run.newest_step() == run.load_config().train.steps == 8


@pytest.mark.slow  # minutes, where other tests take the cores; then also the time to meet runs out
def test_a_notice_to_one_saves_in_both_and_no_step_is_lost(start, never, folder, tmp_path):
  where = tmp_path / "run"
  running = start(where, "--mode=train", **{"data.records": folder})
  await_checkpoint(running, where, 2)
  running[1].send_signal(signal.SIGTERM)
  first, _ = finish(running, (preemption.EXIT_CODE,) * 2)
  saved = int(re.search(r"preempted: step (\d) is saved", first)[1])
  assert leaves(where)[0] == saved < 6
  first, _ = finish(start(where, "--mode=train", **{"data.records": folder}))
  assert f"resumed from step {saved}" in first
  assert_same(leaves(where), leaves(never[0]))
  assert losses(where) == losses(never[0])


@pytest.mark.slow  # minutes, where other tests take the cores; then also the time to meet runs out
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_other(start, never, folder, tmp_path, victim):
  where = tmp_path / "run"
  running = start(where, "--mode=train", **{"data.records": folder, "train.steps": 6})
  await_checkpoint(running, where, 2)
  os.killpg(running[victim].pid, signal.SIGKILL)
  other = running[1 - victim]
  other.wait(timeout=BOUND)  # not for its pipe, which a worker of its loader may hold
  assert other.returncode == -signal.SIGABRT or other.returncode >= 128
  finish(start(where, "--mode=train", **{"data.records": folder}))
  assert_same(leaves(where), leaves(never[0]))
  assert losses(where) == losses(never[0])


def test_a_host_that_sees_other_data(start, folder, tmp_path):
  places = [tmp_path / "a", tmp_path / "b"]
  for place, seed in zip(places, (0, 1), strict=True):
    place.mkdir()
    draw(place / "records", seed=seed)
  records = {"data.records": "records", "data.dataset": "folder", "evaluation.split": "test"}
  for output in finish(start(tmp_path / "run", cwds=places, **records), (1, 1)):
    assert "the data in records (its fingerprint) of process 1 is not that of process 0" in output


def test_an_error_of_the_first_ends_both_with_one_line(start, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "stranger").touch()
  first, second = finish(start(tmp_path / "run"), (1, 1))
  assert "error: " in first and "is not empty and holds no config.json" in first
  assert "error: process 0 met an error" in second
  assert "Traceback" not in first + second


def test_a_full_disk_of_the_first_is_an_error_of_all():
  """A system's error would leave the others waiting until they are killed."""

  def work():
    raise OSError(errno.ENOSPC, "No space left on device", "/run/config.json")

  with pytest.raises(DiskError, match="/run/config.json: No space left on device"):
    processes.on_primary(work)


@pytest.mark.parametrize(
  ("place", "message"),
  [
    ((None, 2, None), "go together"),
    (("here", 1, 0), "--coordinator_address=here: must be HOST:PORT"),
    (("h:1", 2, 2), "--process_id=2: must be 0 to 1"),
  ],
)
def test_impossible_places_are_named(place, message):
  with pytest.raises(UserError, match=message):
    processes.start(*place)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--process_id=0", "--process_id is for several processes: give --distributed too"),
    ("--distributed", "give --coordinator_address"),
  ],
)
def test_a_place_that_is_not_given_is_one_line(start, argument, message, tmp_path):
  (output,) = finish(start(tmp_path / "run", argument, count=1), (1,))
  assert output.splitlines()[-1].startswith("error: ") and message in output
  assert "Traceback" not in output


@pytest.mark.slow
def test_a_lone_process_saves_at_a_notice_too(start, folder, tmp_path):
  where = tmp_path / "run"
  (process,) = start(where, "--mode=train", count=1, **{"data.records": folder})
  await_checkpoint([process], where, 2)
  os.killpg(process.pid, signal.SIGTERM)  # to the loader's workers, too
  (output,) = finish([process], (preemption.EXIT_CODE,))
  saved = int(re.search(r"preempted: step (\d) is saved", output)[1])
  assert leaves(where)[0] == saved < 6
  (output,) = finish(start(where, "--mode=train", count=1, **{"data.records": folder}))
  assert f"resumed from step {saved}" in output
  assert len(losses(where)) == 6


def test_a_notice_outside_training_ends_at_once(tmp_path):
  code = (
    "import signal, time; from plan_jax.runtime import preemption;"
    "signal.signal(signal.SIGTERM, preemption.interrupt)\n"
    "try: print('ready', flush=True); time.sleep(60)\n"
    "except preemption.Preempted: raise SystemExit(preemption.EXIT_CODE)"
  )
  process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == preemption.EXIT_CODE
  process.communicate()


@pytest.mark.slow
def test_a_notice_ends_an_evaluation_of_two(start, never, tmp_path, folder):
  where = shutil.copytree(never[0], tmp_path / "run")
  running = start(where, "--mode=evaluate", **{"data.records": folder})
  while "evaluating step 6" not in running[0].stdout.readline():
    assert running[0].poll() is None
  for process in running:
    process.send_signal(signal.SIGTERM)
  finish(running, (preemption.EXIT_CODE,) * 2)


def test_a_notice_ends_a_process_that_waits_for_another(tmp_path):
  """Where the main thread is not in Python, and hears of no signal."""
  code = (
    "import ctypes, threading; from plan_jax.runtime import preemption, processes\n"
    "processes.start('127.0.0.1:{port}', 1, 0); preemption.take_over()\n"
    "wait, lock = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
    "threading.Timer(2, print, ['ready'], {{'flush': True}}).start(); wait(lock); wait(lock)"
  )
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    code = code.format(port=free.getsockname()[1])
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == preemption.EXIT_CODE
  process.communicate()
