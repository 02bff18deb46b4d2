"""Sweeps: names, commands, running side by side, stopping, submitting, and the tables."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scipy import stats

from input_pipeline.errors import UserError
from launch import collect, study, sweep
from paths import ROOT
from plan_jax.results import example_scores
from plan_jax.results import rows as results
from plan_jax.results.example_scores import ExampleScores, example_id
from tiny_runs import tiny

STEPS = 6  # of tiny


def write_study(path, runs):
  file = path / "study.py"
  file.write_text(
    f"from tiny_runs import tiny\n\ndef get_config():\n  return tiny()\n\n"
    f"def sweep():\n  return {runs!r}\n"
  )
  return str(file)


def load(path, runs, extra=()):
  return study.load(write_study(path, runs), str(path / "out"), extra)


def error_of(capsys, *argv):
  """The one line of the command's error."""
  with pytest.raises(SystemExit) as stopped:
    sweep.main(list(map(str, argv)))
  told = str(stopped.value)
  assert told.startswith("error: ") and "\n" not in told
  return told


# Names and errors


@pytest.mark.parametrize(
  ("overrides", "name"),
  [
    ({}, "base"),
    ({"seed": 3}, "seed=3"),
    ({"seed": 3, "alignment.eta": 0.25}, "alignment.eta=0.25,seed=3"),
    ({"b": 1e-05, "a": True}, "b=1e-05,a=True"),
    ({"t": (0.25, 0.2)}, "t=0.25_0.2"),
    ({"t": ()}, "t=none"),
    ({"s": "validation/grounding/R@5 x"}, "s=validation_grounding_R_5_x"),
  ],
)
def test_names(overrides, name):
  assert study.name(overrides) == name


def test_names_do_not_depend_on_the_other_runs(tmp_path):
  few = [{"alignment.eta": 0.1}, {"alignment.eta": 0.1, "seed": 1}]
  before = [run.workdir.path for run in load(tmp_path, few)]
  more = load(tmp_path, [{}, {"train.steps": 3, "alignment.eta": 0.1}, *few])
  assert [run.workdir.path for run in more[2:]] == before
  assert before[1] == tmp_path / "out" / "alignment.eta=0.1,seed=1"


@pytest.mark.parametrize(
  ("runs", "message"),
  [
    ([{"alignment.etta": 0.1}], r"run alignment\.etta=0\.1: .*etta.*eta"),
    ([{"train.steps": "many"}], r"run train\.steps=many: .*train\.steps.*many"),
    ([{"train.steps": 3.0}], r"train\.steps"),
    ([{"train.steps": True}], r"train\.steps"),
    ([{"alignment.sparsifier": 3}], r"sparsifier.* must be one of"),
    ([{"text.tokenizer": 7}], r"text\.tokenizer"),
    ([{"data.records": 7}], r"config\.data\.records is 7 \(int\).*'7' \(str\)"),
    ([{"data.augment": 1}], r"config\.data\.augment is 1 \(int\).*True \(bool\)"),
    ([{"curriculum.words.tau": [0.1]}], r"\[0\.1\] \(list\).*\(tuple\)"),
    ([{"model.image": {"depth": 18}}], r"model\.image"),
    ([{"alignment.eta": 2.0}], r"config\.alignment\.eta: is 2\.0; must lie in \[0, 1\]"),
    ([{"seed": 1}, {"seed": 1}], r"names the run seed=1 twice"),
    ([{}, {"seed": 0}], r"names the run seed=0 twice \(also as base\)"),
    ([{"data.source": "a/b"}, {"data.source": "a_b"}], r"both be called data\.source=a_b"),
    ([{"data.source": "a/b"}, {"data.source": "a_b", "seed": 1}], r"both be called"),
    ([{"data.source": "a/b"}, {"data.source": "a_b", "alignment.eta": 0.1}], r"share the records"),
    ([{"data.source": "x" * 300}], r"longer than 240"),
    ([], r"sweep\(\) returns \[\], not a list of runs"),
    ([["seed", 3]], r"run 0 of sweep\(\) is \['seed', 3\], not a dict"),
  ],
)
def test_a_study_that_cannot_be_is_one_line(tmp_path, capsys, runs, message):
  file, out = write_study(tmp_path, [{"seed": 9}, *runs] if runs == [{}] else runs), tmp_path / "o"
  told = error_of(capsys, f"--config={file}", f"--out={out}", "--mode=run")
  assert re.search(message, told) and file in told
  assert not out.exists()


def test_files_that_are_no_study(tmp_path, capsys):
  out = f"--out={tmp_path / 'o'}"
  told = error_of(capsys, "--config=configs/phantom.py", out)
  assert "configs/phantom.py has no function sweep()" in told
  assert "nowhere.py" in error_of(capsys, "--config=nowhere.py", out)
  file = write_study(tmp_path, [{}])
  told = error_of(capsys, f"--config={file}", out, "--", "--mode=train")
  assert "'--mode=train' after --: only --config.KEY=VALUE" in told
  told = error_of(capsys, f"--config={file}", out, "--", "--config.train.stepz=3")
  assert "stepz" in told
  assert "--metrics: 'mIoU' is not" in error_of(capsys, f"--config={file}", out, "--metrics=mIoU")
  told = error_of(capsys, f"--config={file}", out, "--against=x=1")
  assert "--against=x=1: is no row of the study; it has (base)" in told
  file = write_study(tmp_path, [{"train.steps": 3}])
  told = error_of(capsys, f"--config={file}", out, "--", "--config.train.steps=4")
  assert "config.train.steps is 3 (int) in sweep(), but its command would make it 4" in told


# Commands


VALUES = [
  {},
  {
    "curriculum.refine.local_weight": (1.0,), "curriculum.refine.tau": (0.25,),
    "curriculum.refine.gamma": (0,),
  },
  {
    "curriculum.words.local_weight": (), "curriculum.words.tau": (), "curriculum.words.gamma": (),
    "data.augment": False,
  },
  {
    "data.source": "a folder/with 'quotes' $and more", "train.learning_rate": 1,
    "alignment.eta": 0.1 + 0.2, "seed": 7,
  },
]


@pytest.mark.filterwarnings("ignore:.*load_module")
def test_a_printed_command_is_the_config(tmp_path, capsys):
  file, out = write_study(tmp_path, VALUES), tmp_path / "out"
  extra = ["--config.train.steps=20", "--config.mesh.fsdp=2"]
  sweep.main([f"--config={file}", f"--out={out}", "--", *extra])
  *lines, last = capsys.readouterr().out.splitlines()
  assert last == "# 0 of 4 runs are complete"
  assert not out.exists()
  runs = study.load(file, str(out), extra)
  for line, overrides, run in zip(lines, VALUES, runs, strict=True):
    words = shlex.split(line, comments=True)
    assert words[:3] == ["python", "-m", "plan_jax.main"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=words[2:])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(words[2:])
    more = {"train.steps": 20, "mesh.fsdp": 2, "data.records": run.config.data.records}
    expected = tiny(**overrides, **more).to_dict()
    assert values.config.to_dict() == run.config.to_dict() == expected
    assert values.workdir == str(run.workdir.path)
  assert runs[3].config.train.learning_rate == 1.0 and runs[3].config.train.steps == 20


def test_runs_of_the_same_data_share_their_records(tmp_path, monkeypatch):
  noisy, quiet = {"data.options.wrong_sentence_fraction": 0.5}, {"alignment.eta": 0.1}
  own = {"data.records": str(tmp_path / "mine")}
  runs = load(tmp_path, [{}, quiet, noisy, noisy | quiet | {"seed": 1}, own])
  folders = [run.config.data.records for run in runs]
  base = str(tmp_path / "out" / "records" / "base")
  other = str(tmp_path / "out" / "records" / "data.options.wrong_sentence_fraction=0.5")
  assert folders == [base, base, other, other, own["data.records"]]
  assert f"--config.data.records={other}" in runs[3].flags
  assert sum(flag.startswith("--config.data.records") for flag in runs[4].flags) == 1
  made = []
  monkeypatch.setattr(
    "plan_jax.evaluators.datasets.make_records", lambda _, folder, limits: made.append(folder)
  )
  sweep.make_records(runs)
  assert made == [Path(base), Path(other), tmp_path / "mine"]


# What is complete


def row(column, value, model="run", **more):
  task, group, metric = column
  fields = {"protocol": f"{task}-v1", "data": "phantom/test", "n": 4} | more
  return results.Row(
    task=task, group=group, metric=metric, model=model, value=value, low=math.nan, high=math.nan,
    **fields,
  )


IOU, POINTING = results.HEADLINES[1], results.HEADLINES[2]
RECALL = results.HEADLINES[3]
AUC = ("terms", "all", "AUC")


def write_run(run, rows, scores=None, step=STEPS):
  results.write(run.workdir.evaluation, results.Evaluation(step, rows, {"phantom/test": "0"}))
  for task, found in (scores or {}).items():
    example_scores.write(run.workdir.path / "example_scores" / f"{task}.csv", found)


def test_complete_is_an_evaluation_of_the_last_step(tmp_path):
  (run,) = load(tmp_path, [{}])
  assert not run.complete()
  write_run(run, [row(IOU, 0.5)], step=STEPS - 1)
  assert not run.complete()
  write_run(run, [row(IOU, 0.5)])
  assert run.complete()
  write_run(run, [row(IOU, 0.5, data="phantom/validation")])
  assert not run.complete()
  run.workdir.evaluation.write_text("{")
  with pytest.raises(UserError, match=r"evaluation\.json is not JSON.*delete the file"):
    run.complete()


def test_the_best_checkpoint_may_be_an_earlier_one(tmp_path):
  best = {
    "checkpoint.evaluate": "best", "checkpoint.best_metric": "validation/grounding/mIoU",
    "evaluation.every_steps": 2,
  }
  (run,) = load(tmp_path, [best])
  write_run(run, [row(IOU, 0.5)], step=2)
  assert not run.complete()
  (run.workdir.checkpoints / str(STEPS)).mkdir(parents=True)
  assert run.complete()


def test_figures_of_another_config_are_refused(tmp_path):
  (run,) = load(tmp_path, [{}])
  write_run(run, [row(IOU, 0.5)])
  before = run.config.to_dict()
  before["evaluation"]["resamples"] = 5  # changes nothing that is learned
  del before["train"]["beta2"]  # as before the library had it
  run.workdir.config.write_text(json.dumps(before))
  assert run.complete()
  with_stage = before | {"curriculum": before["curriculum"] | {"early": {"tau": []}}}
  run.workdir.config.write_text(json.dumps(with_stage))
  with pytest.raises(UserError, match=r"curriculum\.early\.tau: .* there, 'absent' now"):
    run.complete()
  before["train"]["learning_rate"] = 0.5
  run.workdir.config.write_text(json.dumps(before))
  with pytest.raises(
    UserError, match=r"another config \(train\.learning_rate: 0\.5 there, 0\.0015"
  ):
    run.complete()


def test_print_marks_what_is_complete(tmp_path, capsys):
  runs = load(tmp_path, [{}, {"seed": 1}])
  write_run(runs[1], [row(IOU, 0.5)])
  sweep.print_commands(runs)
  lines = capsys.readouterr().out.splitlines()
  assert [line.endswith("  # complete") for line in lines[:2]] == [False, True]
  assert lines[2] == "# 1 of 2 runs are complete"


# Running: the command is replaced by one that takes a moment and writes what main would


FAKE = """
import json, os, signal, sys, time
workdir, wait, how = sys.argv[1], float(sys.argv[2]), sys.argv[3]
os.makedirs(workdir, exist_ok=True)
if "deaf" in how:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(workdir + "/pids", "a") as file:
  file.write(f"{os.getpid()}\\n")
start = time.time()
time.sleep(wait)
note = {"start": start, "end": time.time(), "cores": sorted(os.sched_getaffinity(0))}
with open(workdir + "/note.json", "w") as file:
  json.dump(note, file)
print("all the steps")
if "fail" in how:
  print("warming up", file=sys.stderr)
  sys.exit("error: config.x: the disk is full\\n")
if "forget" not in how:
  row = {"task": "grounding", "protocol": "v", "data": "phantom/test", "group": "macro",
         "metric": "mIoU", "model": "run", "value": 0.5, "low": None, "high": None, "n": 1}
  with open(workdir + "/evaluation.json", "w") as file:
    json.dump({"step": 6, "data": {}, "rows": [row]}, file)
"""


def fake(monkeypatch, *, wait=0.0, how=lambda name: ""):
  """Replaces the command and the records; `how`: name of a run -> what becomes of it."""

  def command(run, python=sys.executable):
    return [python, "-c", FAKE, str(run.workdir.path), str(wait), how(run.name)]

  monkeypatch.setattr(study.Run, "command", command)
  monkeypatch.setattr(sweep, "make_records", lambda runs: None)


def seeds(count):
  return [{"seed": i} for i in range(count)]


def notes(runs):
  return [json.loads((run.workdir.path / "note.json").read_text()) for run in runs]


def test_what_is_complete_is_not_run_again(tmp_path, monkeypatch, capsys):
  fake(monkeypatch)
  file = write_study(tmp_path, seeds(3))
  argv = [f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run"]
  runs = study.load(file, str(tmp_path / "out"))
  write_run(runs[1], [row(IOU, 0.5)])
  sweep.main(argv)
  first = capsys.readouterr().out
  assert "3 runs: 1 complete, 2 to run, 1 at a time" in first
  assert "done   seed=2 after 0:0" in first and "(2 done, 0 failed, 0 left, ETA 0:00)" in first
  assert "| (base) | 3 | 0.500" in first  # the table at the end
  assert runs[0].log == tmp_path / "out" / "seed=0.log"
  assert runs[0].log.read_text() == "all the steps\n"
  assert not (runs[1].workdir.path / "pids").exists()
  sweep.main(argv)
  assert "3 runs: 3 complete, 0 to run" in capsys.readouterr().out
  assert (runs[0].workdir.path / "pids").read_text().count("\n") == 1


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
  fake(monkeypatch, how={"seed=0": "fail", "seed=1": "", "seed=2": "forget"}.get)
  file = write_study(tmp_path, seeds(3))
  told = error_of(capsys, f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run")
  assert told == "error: 2 of 3 runs failed: seed=0, seed=2"
  output = capsys.readouterr().out
  assert re.search(r"FAILED seed=0 .*exit status 1: error: config\.x: the disk is full  \(", output)
  assert "FAILED seed=2" in output and "exit status 0: all the steps" in output
  assert "(1 done, 2 failed, 0 left" in output
  assert "1 of 3 runs are complete; missing or incomplete: seed=0, seed=2." in output
  # Mended, the same command does what is left.
  fake(monkeypatch)
  sweep.main([f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run"])
  assert "3 runs: 1 complete, 2 to run" in capsys.readouterr().out


def test_all_failed(tmp_path, monkeypatch, capsys):
  fake(monkeypatch, how=lambda name: "fail")
  file = write_study(tmp_path, seeds(1))
  told = error_of(capsys, f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run")
  assert told == "error: 1 of 1 runs failed: seed=0"


def test_two_at_a_time_each_on_its_cores(tmp_path, monkeypatch):
  fake(monkeypatch, wait=0.6)
  runs = load(tmp_path, seeds(4))
  assert sweep.run_all(runs, 2) == []
  found = notes(runs)
  for moment in (note["start"] for note in found):
    assert sum(note["start"] <= moment < note["end"] for note in found) <= 2
  assert found[1]["start"] < found[0]["end"]
  here = sorted(os.sched_getaffinity(0))
  shares = {tuple(note["cores"]) for note in found}
  assert shares == {tuple(here[slot % len(here) :: 2]) for slot in range(2)}
  if len(here) > 1:
    assert not set(found[0]["cores"]) & set(found[1]["cores"])
  assert sorted(os.sched_getaffinity(0)) == here


def test_more_runs_than_cores_share_them(tmp_path, monkeypatch):
  fake(monkeypatch, wait=0.3)
  cores = sorted(os.sched_getaffinity(0))[:1]
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
  runs = load(tmp_path, seeds(3))
  assert sweep.run_all(runs, 3) == []
  assert all(note["cores"] == cores for note in notes(runs))


DRIVER = """
import sys
from launch import study, sweep
sweep._GRACE = 1.0
study.Run.command = lambda run, python=sys.executable: [
  python, "-c", {fake!r}, str(run.workdir.path), {wait!r}, "deaf" if run.name == "seed=1" else ""]
sweep.make_records = lambda runs: None
sweep.main(sys.argv[1:])
"""


def start_sweep(tmp_path, wait):
  """A sweep of three runs, two at a time, in a process of its own; the second is deaf to TERM."""
  file = write_study(tmp_path, seeds(3))
  return subprocess.Popen(
    [sys.executable, "-c", DRIVER.format(fake=FAKE, wait=str(wait)), f"--config={file}",
     f"--out={tmp_path / 'out'}", "--mode=run", "--parallel=2"],
    cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )


def wait_for(test, seconds=60.0):
  deadline = time.monotonic() + seconds
  while not test():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def pids(tmp_path):
  return [
    int(p.read_text()) for p in sorted((tmp_path / "out").glob("seed=*/pids")) if p.read_text()
  ]


def alive(pid):
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_its_runs_and_goes_on_later(tmp_path, number):
  process = start_sweep(tmp_path, 60)
  try:
    wait_for(lambda: len(pids(tmp_path)) == 2)
    children = pids(tmp_path)
    assert all(map(alive, children))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == 1
  assert errors.strip() == "stopped; the same command goes on from here"
  assert not any(map(alive, children))
  assert not (tmp_path / "out" / "seed=2").exists()
  process = start_sweep(tmp_path, 0)
  try:
    output, _ = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == 0 and "3 done, 0 failed, 0 left" in output


def test_a_killed_sweep_takes_its_runs_along(tmp_path):
  process = start_sweep(tmp_path, 20)
  try:
    wait_for(lambda: len(pids(tmp_path)) == 2)
    children = pids(tmp_path)
  finally:
    process.kill()
    process.communicate(timeout=30)
  try:
    wait_for(lambda: not alive(children[0]), 10)
  finally:
    for pid in filter(alive, children):  # the deaf one, at least
      os.kill(pid, signal.SIGKILL)


# SLURM


def fake_sbatch(tmp_path, monkeypatch, text):
  folder = tmp_path / "bin"
  folder.mkdir()
  (folder / "sbatch").write_text(f"#!/bin/sh\n{text}\n")
  (folder / "sbatch").chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_an_array_job_over_what_is_incomplete(tmp_path, monkeypatch, capsys):
  fake(monkeypatch)
  fake_sbatch(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/seen; echo Submitted batch job 7')
  out = tmp_path / "out"
  file = write_study(tmp_path, seeds(4))
  runs = study.load(file, str(out))
  write_run(runs[0], [row(IOU, 0.5)])
  sweep.main(
    [f"--config={file}", f"--out={out}", "--mode=slurm", "--parallel=2",
     "--sbatch=-p gpu --gres gpu:1 --time=4:00:00"]
  )
  assert (tmp_path / "seen").read_text().strip() == str(out / "sweep.sbatch")
  output = capsys.readouterr().out
  assert "Submitted batch job 7" in output and f"{out / 'sweep.sbatch'}: 3 of 4 runs" in output
  script = (out / "sweep.sbatch").read_text().splitlines()
  assert script[0] == "#!/bin/bash"
  options = ("--array=0-2%2", "-p gpu --gres gpu:1 --time=4:00:00", '--job-name="out"', "--requeue")
  for option in options:
    assert f"#SBATCH {option}" in script
  commands = (out / "commands.txt").read_text()
  assert len(shlex.split(commands)) == 3 * 6  # FAKE itself has lines
  # What a task of the array does; a command of one line, as those of plan_jax.main are.
  (out / "commands.txt").write_text("false\necho 'it is' $((6 * 7))\nfalse\n")
  done = subprocess.run(
    ["bash", str(out / "sweep.sbatch")], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
    capture_output=True, text=True, timeout=30, cwd=tmp_path,
  )
  assert done.returncode == 0 and done.stdout == "it is 42\n"
  # What is preempted is requeued; tests/launch/test_launch.py has more of that.
  for tool, said in {"squeue": "RUNNING", "scontrol": "$@"}.items():
    (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\necho "{said}"\n')
    (tmp_path / "bin" / tool).chmod(0o755)
  (out / "commands.txt").write_text("exit\nsh -c 'exit 75'\n")
  task = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
  done = subprocess.run(
    ["bash", str(out / "sweep.sbatch")], env=os.environ | task, capture_output=True, text=True,
    timeout=30, cwd=tmp_path,
  )
  assert done.returncode == 75 and done.stdout == "requeue 7_1\n"


def test_without_sbatch_it_says_how(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sweep, "make_records", lambda runs: None)
  monkeypatch.setattr("shutil.which", lambda name: None)
  runs = load(tmp_path, seeds(2))
  sweep.submit(runs, tmp_path / "out", 1, "")
  assert f"sbatch {tmp_path / 'out' / 'sweep.sbatch'}" in capsys.readouterr().out
  lines = (tmp_path / "out" / "commands.txt").read_text().splitlines()
  assert [shlex.split(line) for line in lines] == [run.command() for run in runs]
  for run in runs:
    write_run(run, [row(IOU, 0.5)])
  sweep.submit(runs, tmp_path / "out", 1, "")
  assert "all 2 runs are complete: nothing to submit" in capsys.readouterr().out


def test_sbatch_that_refuses(tmp_path, monkeypatch):
  monkeypatch.setattr(sweep, "make_records", lambda runs: None)
  fake_sbatch(tmp_path, monkeypatch, "echo 'invalid partition' >&2; exit 1")
  with pytest.raises(UserError, match="sbatch .*sweep.sbatch: invalid partition"):
    sweep.submit(load(tmp_path, seeds(1)), tmp_path / "out", 1, "")


# Tables


GROUPS = ["a", "a", "b", "b", "b", "a"]
PATIENTS = ["p", "q", "p", "r", "s", "s"]


def grounding(iou, ids=range(6)):
  """ExampleScores with the mIoU [6] given, and a pointing of 1 - mIoU."""
  iou = np.asarray(iou, float)
  names = [example_id(f"image{i}", "a phrase") for i in ids]
  return ExampleScores(names, GROUPS, PATIENTS, ("mIoU", "pointing"), np.stack([iou, 1 - iou], 1))


def retrieval(recall):
  names = [example_id(f"image{i}") for i in range(6)]
  return ExampleScores(
    names, ["report"] * 6, PATIENTS, (RECALL[2],), np.asarray(recall, float)[:, None]
  )


def macro(values):
  return np.mean([np.nanmean([v for v, g in zip(values, GROUPS, strict=True) if g == name])
                  for name in "ab"])


def score(run, iou, recall, auc, ids=range(6), data="phantom/test"):
  """Writes what a run scored, with floors."""
  rows = [
    row(IOU, macro(iou), data=data), row(POINTING, macro(1 - iou), data=data),
    row(RECALL, recall.mean(), data=data, gallery=6), row(AUC, auc, data=data),
    row(IOU, 0.1 + run.config.seed / 10, "random", data=data), row(RECALL, 5 / 6, "chance"),
  ]
  write_run(run, rows, {"grounding": grounding(iou, ids), "retrieval": retrieval(recall)})


@pytest.fixture
def scored(tmp_path):
  """Two methods over three seeds (one of the second's is missing) and one on other images."""
  method, noisy = {"alignment.eta": 0.1}, {"data.options.seed": 1}
  runs = load(
    tmp_path,
    [*seeds(3), *({**method, **s} for s in seeds(3)), noisy, noisy | method,
     noisy | {"alignment.eta": 0.3, "data.options.seed": 2}],
  )
  rng = np.random.default_rng(0)
  iou, recall, auc = rng.random((9, 6)), rng.integers(0, 2, (9, 6)).astype(float), rng.random(9)
  for i, run in enumerate(runs):
    ids = {6: range(10, 16), 7: range(10, 16), 8: range(20, 26)}.get(i, range(6))
    if i != 4:
      score(run, iou[i], recall[i], auc[i], ids)
  return runs, iou, recall, auc


def collected(runs, tmp_path, metrics="terms/all/AUC", against=collect.REFERENCE):
  text = collect.write_tables(runs, tmp_path / "out", collect.columns(metrics), against)
  assert (tmp_path / "out" / "table.md").read_text() == text
  return text, json.loads((tmp_path / "out" / "table.json").read_text())


def drawn(values, groups):
  """The interval of values [S, 6] by plain loops, with the bootstrap's draws of patients."""
  names, count = sorted(set(PATIENTS)), 20  # resamples of tiny

  def mean(of_seed, chosen):
    kept = [(g, v) for i in chosen for g, v, p in zip(groups, of_seed, PATIENTS, strict=True)
            if p == names[i]]
    return np.mean([np.mean([v for g, v in kept if g == name]) for name in {g for g, _ in kept}])

  members = np.random.default_rng(0).integers(0, len(names), (count, len(names)))
  figures = [np.mean([mean(of_seed, chosen) for of_seed in values]) for chosen in members]
  each = [mean(of_seed, range(len(names))) for of_seed in values]
  seeds = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each) if len(each) > 1 else 0
  value = np.mean(each)
  return value + np.hypot(np.percentile(figures, [2.5, 97.5]) - value, seeds) * [-1, 1]


def test_means_over_seeds_and_their_intervals(scored, tmp_path):
  runs, iou, recall, auc = scored
  text, content = collected(runs, tmp_path)
  rows = {r["row"]: r for r in content["rows"]}
  assert [r["row"] for r in content["rows"]] == [
    "(base)", "alignment.eta=0.1", "data.options.seed=1", "data.options.seed=1,alignment.eta=0.1",
    "data.options.seed=2,alignment.eta=0.3",
  ]
  for label, at in (("(base)", [0, 1, 2]), ("alignment.eta=0.1", [3, 5])):
    figures = rows[label]["figures"]
    assert len(rows[label]["seeds"]) == len(at)
    got = figures["grounding/macro/mIoU"]
    assert got["value"] == pytest.approx(np.mean([macro(v) for v in iou[at]]))
    assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(iou[at], GROUPS)))
    got = figures["retrieval/all/R@5 image-to-text"]
    assert got["value"] == pytest.approx(recall[at].mean())
    assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(recall[at], ["all"] * 6)))
    got = figures["terms/all/AUC"]
    low, high = stats.t.interval(0.95, len(at) - 1, auc[at].mean(), stats.sem(auc[at]))
    assert (got["value"], got["low"], got["high"]) == pytest.approx((auc[at].mean(), low, high))
  one = rows["data.options.seed=1"]["figures"]
  assert one["terms/all/AUC"]["low"] is None and one["grounding/macro/mIoU"]["low"] is not None
  assert content["seeds_alone"] == ["terms/all/AUC"] and r"| terms AUC \* |" in text
  assert content["missing"] == ["alignment.eta=0.1,seed=1"]
  assert "8 of 9 runs are complete; missing or incomplete: alignment.eta=0.1,seed=1." in text
  assert re.search(r"No run has grounding/macro/signed CNR, .*R@5 text-to-image", text)
  assert "20 bootstrap draws of patients" in text and "phantom/test" in text
  value = rows["(base)"]["figures"]["grounding/macro/mIoU"]["value"]
  assert f"| (base) | 3 | {value:.3f} [" in text


def test_floors_have_rows_of_their_own(scored, tmp_path):
  runs, *_ = scored
  text, content = collected(runs, tmp_path)
  found = {(f["model"], f["data"]): f for f in content["floors"]}
  base = found["random", "(base), phantom/test"]
  # Seeds 0, 1, 2 of the first method, 0 and 2 of the second.
  assert base["runs"] == 5
  got = base["figures"]["grounding/macro/mIoU"]
  assert got["value"] == pytest.approx(np.mean([0.1, 0.2, 0.3, 0.1, 0.3])) and got["low"] is None
  assert ("chance", "data.options.seed=1, phantom/test") in found and len(found) == 6
  assert "| floor: random on (base), phantom/test | - | 0.200 | - |" in text


def test_differences_are_paired_by_seed_and_unit(scored, tmp_path):
  runs, iou, recall, auc = scored
  text, content = collected(runs, tmp_path)
  first, second = content["differences"]
  assert (first["row"], first["against"], first["seeds"]) == ("alignment.eta=0.1", "(base)", [0, 2])
  apart = iou[[3, 5]] - iou[[0, 2]]
  got = first["figures"]["grounding/macro/mIoU"]
  assert got["value"] == pytest.approx(np.mean([macro(v) for v in apart]))
  assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(apart, GROUPS)))
  got = first["figures"]["terms/all/AUC"]
  low, high = stats.t.interval(
    0.95, 1, *(f(auc[[3, 5]] - auc[[0, 2]]) for f in (np.mean, stats.sem))
  )
  assert (got["low"], got["high"]) == pytest.approx((low, high))
  # On other images, against the reference of those images; where there is none, a sentence.
  assert second["row"] == "data.options.seed=1,alignment.eta=0.1"
  assert second["against"] == "data.options.seed=1" and second["seeds"] == [0]
  got = second["figures"]["grounding/macro/mIoU"]["value"]
  assert got == pytest.approx(macro(iou[7] - iou[6]))
  assert len(content["left_out"]) == 2
  assert content["left_out"][0].startswith("data.options.seed=1 is not compared with (base)")
  assert content["left_out"][1].startswith("data.options.seed=2,alignment.eta=0.3 is not compared")
  assert all(sentence in text for sentence in content["left_out"])
  assert "| paired difference | against | seeds |" in text


def test_another_reference(scored, tmp_path):
  runs, iou, *_ = scored
  _, content = collected(runs, tmp_path, against="alignment.eta=0.1")
  found = {d["row"]: d["against"] for d in content["differences"]}
  assert found == {
    "(base)": "alignment.eta=0.1", "data.options.seed=1": "data.options.seed=1,alignment.eta=0.1",
  }


def test_other_training_data_but_the_same_test_units_are_compared(tmp_path):
  runs = load(tmp_path, [{}, {"data.options.wrong_sentence_fraction": 0.5}])
  for run in runs:
    score(run, np.arange(6) / 10, np.ones(6), 0.5)
  _, content = collected(runs, tmp_path)
  (found,) = content["differences"]
  assert found["against"] == "(base)" and not content["left_out"]


def test_a_method_is_compared_with_the_reference_of_its_training_data(tmp_path):
  worse, method = {"data.options.wrong_sentence_fraction": 0.5}, {"alignment.eta": 0.1}
  runs = load(tmp_path, [{}, worse, worse | method])
  for run in runs:
    score(run, np.arange(6) / 10, np.ones(6), 0.5)
  _, content = collected(runs, tmp_path)
  label = "data.options.wrong_sentence_fraction=0.5"
  assert [(d["row"], d["against"]) for d in content["differences"]] == [
    (label, "(base)"), (f"{label},alignment.eta=0.1", label),
  ]


def test_without_units_the_interval_is_of_the_seeds(tmp_path):
  runs = load(tmp_path, [*seeds(2), {"data.options.seed": 1}, {"alignment.eta": 0.1, "seed": 5}])
  for i, run in enumerate(runs):
    write_run(run, [row(IOU, i / 10)])
  text, content = collected(runs, tmp_path, metrics="")
  assert content["seeds_alone"] == ["grounding/macro/mIoU"]
  got = content["rows"][0]["figures"]["grounding/macro/mIoU"]
  assert (got["low"], got["high"]) == pytest.approx(stats.t.interval(0.95, 1, 0.05, 0.05))
  assert content["differences"] == []
  assert "no seed in common with (base)" in text  # alignment.eta=0.1
  assert "data.options.seed=1 is not compared with (base)" in text


def test_a_figure_that_only_one_method_has(tmp_path):
  runs = load(tmp_path, [{}, {"alignment.eta": 0.1}])
  write_run(runs[0], [row(IOU, 0.25), row(AUC, 0.5)])
  write_run(runs[1], [row(IOU, 0.5)])
  text, content = collected(runs, tmp_path)
  assert "| alignment.eta=0.1 | 1 | 0.500 | - |" in text
  (found,) = content["differences"]
  assert found["figures"]["grounding/macro/mIoU"]["value"] == 0.25
  assert found["figures"]["terms/all/AUC"]["value"] is None


def test_what_cannot_be_collected_is_named(scored, tmp_path):
  runs, iou, recall, _ = scored
  with pytest.raises(UserError, match=r"no run has x/y/z; there are grounding/macro/mIoU, "):
    collected(runs, tmp_path, metrics="x/y/z")
  before = results.read(runs[1].workdir.evaluation).rows
  write_run(runs[1], [*before, row(IOU, 0.6, protocol="compat-other")])
  collected(runs, tmp_path)  # a protocol of others may have a figure of the same name
  score(runs[1], iou[1], recall[1], 0.5, ids=range(1, 7))
  with pytest.raises(UserError, match=r"seed=1 and .*seed=0 do not rest on the same grounding"):
    collected(runs, tmp_path)
  broken = runs[1].workdir.path / "example_scores" / "grounding.csv"
  broken.write_text("image_id\n")
  with pytest.raises(UserError, match=r"grounding\.csv, line 1.*--mode=evaluate"):
    collected(runs, tmp_path)
  write_run(runs[1], [row(IOU, 0.5), row(IOU, 0.6, protocol="v2")])
  with pytest.raises(UserError, match="run has grounding/macro/mIoU on several data"):
    collected(runs, tmp_path)


def test_nothing_to_collect(tmp_path, capsys):
  file = write_study(tmp_path, seeds(2))
  told = error_of(capsys, f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=collect")
  assert "none of the 2 runs" in told and "--mode=run" in told


def test_a_missing_reference_leaves_the_first_table(scored, tmp_path):
  runs, *_ = scored
  text, content = collected(runs[3:6], tmp_path)
  assert content["differences"] == []
  assert "No paired differences: the reference row (base) has no complete run." in text


# The real thing


@pytest.mark.slow
def test_a_study_from_records_to_tables(tmp_path):
  file = write_study(tmp_path, [{"train.steps": 2}, {"train.steps": 2, "alignment.eta": 0.25}])
  command = [
    sys.executable, "-m", "launch.sweep", f"--config={file}", f"--out={tmp_path / 'out'}",
    "--mode=run", "--parallel=2", "--against=train.steps=2", "--", "--config.train.batch_size=4",
  ]
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env=env)
  assert done.returncode == 0, done.stdout + done.stderr
  assert "2 done, 0 failed, 0 left" in done.stdout
  out = tmp_path / "out"
  assert sorted(p.name for p in (out / "records").iterdir()) == ["base"]
  runs = study.load(file, str(out), ["--config.train.batch_size=4"])
  assert not any((run.workdir.path / "records").exists() for run in runs)
  assert all(run.workdir.read_config()["train"]["batch_size"] == 4 for run in runs)
  content = json.loads((out / "table.json").read_text())
  (found,) = content["differences"]
  assert found["row"] == "train.steps=2,alignment.eta=0.25" and found["seeds"] == [0]
  for i, run in enumerate(runs):
    rows = {(r.task, r.group, r.metric): r for r in run.results().rows if r.model == results.RUN}
    for column, figure in content["rows"][i]["figures"].items():
      assert figure["value"] == pytest.approx(rows[tuple(column.split("/", 2))].value)
  again = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=env)
  assert again.returncode == 0 and "2 complete, 0 to run" in again.stdout
