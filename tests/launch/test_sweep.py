"""Sweeps: names, commands, what is complete, running side by side, stopping, submitting."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from studies import IOU, WITH_SET, convert_sets, error_of, load, row, seeds, write_run, write_study

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.locks import lock
from launch import study, sweep
from paths import ROOT
from plan_jax.results import rows
from plan_jax.runtime.logging import configure
from plan_jax.training import pretrained
from tiny_runs import tiny

STEPS = 6  # of tiny


def test_names():
  assert study.name({}) == "base"
  assert study.name({"seed": 3, "alignment.beta": 0.25}) == "alignment.beta=0.25,seed=3"
  assert study.name({"t": (0.25, 1e-05), "u": (), "s": "R@5 x"}) == "t=0.25_1e-05,u=none,s=R_5_x"


@pytest.mark.parametrize(
  ("runs", "message"),
  [
    ([{"alignment.betta": 0.1}], r"run alignment\.betta=0\.1: .*betta.*beta"),
    ([{"train.steps": 3.0}], r"train\.steps"),
    ([{"data.records": 7}], r"config\.data\.records is 7 \(int\).*'7' \(str\)"),
    ([{"alignment.smooth_share": 2.0}], r"alignment\.smooth_share: is 2\.0; must lie in \[0, 1\]"),
    ([{}, {"seed": 0}], r"names the run seed=0 twice \(also as base\)"),
    ([{"data.source": "a/b"}, {"data.source": "a_b", "seed": 1}], r"both be called"),
    ([{"data.source": "a/b"}, {"data.source": "a_b", "alignment.beta": 0.1}], r"share the records"),
    ([{"data.source": "x" * 300}], r"longer than 240"),
    ([], r"sweep\(\) returns \[\], not a list of runs"),
    ([["seed", 3]], r"run 0 of sweep\(\) is \['seed', 3\], not a dict"),
  ],
)
def test_an_impossible_study_is_one_line(tmp_path, capsys, runs, message):
  file, out = write_study(tmp_path, runs), tmp_path / "o"
  error = error_of(capsys, f"--config={file}", f"--out={out}", "--mode=run")
  assert re.search(message, error) and file in error
  assert not out.exists()


def test_flags_that_fit_no_study(tmp_path, capsys):
  out, config = f"--out={tmp_path / 'o'}", f"--config={write_study(tmp_path, [{}])}"
  for argv, message in (
    (["--config=configs/phantom.py", out], "configs/phantom.py has no function sweep()"),
    ([config, out, "--", "--mode=train"], "'--mode=train' after --: only --config.KEY=VALUE"),
    ([config, out, "--", "--config.train.stepz=3"], "stepz"),
    ([config, out, "--metrics=mIoU"], "--metrics: 'mIoU' is not"),
    ([config, out, "--against=x=1"], "--against=x=1: is no row of the study; it has (base)"),
    ([config, out, "--mode=collect"], "none of the 1 runs"),
  ):
    assert message in error_of(capsys, *argv)


VALUES = [
  {},
  {"model.image.mean": (0.25,), "curriculum.words.tau": 1},
  {"evaluation.evaluators.terms.protocols": (), "data.augment": False},
  {"data.source": "a folder/with 'quotes' $and more", "alignment.beta": 0.1 + 0.2, "seed": 7},
  {"train.learning_rate": 1},
]


@pytest.mark.filterwarnings("ignore:.*load_module")
def test_a_printed_command_is_the_config(tmp_path, capsys):
  file, out = write_study(tmp_path, VALUES), tmp_path / "out"
  extra = ["--config.train.steps=20", "--config.mesh.fsdp=2"]
  sweep.main([f"--config={file}", f"--out={out}", "--", *extra])
  *lines, last = capsys.readouterr().out.splitlines()
  assert last == "# 0 of 5 runs are complete"
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


def test_runs_of_the_same_data_share_their_records(tmp_path, monkeypatch):
  noisy, quiet = {"data.options.wrong_sentence_fraction": 0.5}, {"alignment.beta": 0.1}
  own = {"data.records": str(tmp_path / "mine")}
  runs = load(tmp_path, [{}, quiet, noisy, noisy | quiet | {"seed": 1}, own])
  base = tmp_path / "out" / "records" / "base"
  other = tmp_path / "out" / "records" / "data.options.wrong_sentence_fraction=0.5"
  folders = [run.config.data.records for run in runs]
  assert folders == [str(base), str(base), str(other), str(other), own["data.records"]]
  assert f"--config.data.records={other}" in runs[3].flags
  made = []
  monkeypatch.setattr(
    "plan_jax.evaluators.datasets.make_records", lambda _, folder, limits: made.append(folder)
  )
  sweep.make_records(runs)
  assert made == [base, other, tmp_path / "mine"]


def test_the_study_on_real_images(tmp_path):
  given = ["--config.data.source=/images", "--config.model.image.weights=/models/dinov2-small"]
  runs = study.load(str(ROOT / "configs" / "real.py"), str(tmp_path), given)
  seeds_of = Counter(study.name(study.without_seed(run.overrides)) for run in runs)
  assert seeds_of["base"] == seeds_of["alignment.method=gloria"] == 5
  assert seeds_of["alignment.side_weight=0.0"] == 3
  folders = {run.config.data.features for run in runs}
  assert {Path(folder).name for folder in folders} == {"base", "data.flip_fraction=0.0"}


STORED = {
  "data.store_features": True,
  "data.augment": False,
  "train.freeze": ("image_encoder",),
  "model.image.weights": "/models/any",
  "model.image.spread_stage": 0,
}


def test_runs_of_the_same_encoder_share_its_features(tmp_path, monkeypatch):
  runs = load(
    tmp_path,
    [
      STORED,
      STORED | {"alignment.beta": 0.1},
      STORED | {"model.image.weights": "/models/other"},
      STORED | {"data.features": str(tmp_path / "mine")},
      {},
    ],
  )
  folders = [run.config.data.features for run in runs]
  assert len(set(folders)) == 4
  assert folders[0] == folders[1]
  assert folders[0].startswith(str(tmp_path / "out" / "features"))
  assert folders[3:] == [str(tmp_path / "mine"), ""]
  assert f"--config.data.features={folders[2]}" in runs[2].flags
  begun, codes = [], iter([0, 0, 1])

  def run(command, **_):
    begun.append(command)
    return subprocess.CompletedProcess(command, next(codes))

  monkeypatch.setattr(subprocess, "run", run)
  with pytest.raises(UserError, match="mine: the features of .* cannot be stored"):
    sweep.make_features(runs)
  assert begun == [[*runs[i].command(), "--mode=features"] for i in (0, 2, 3)]


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
  with pytest.raises(UserError, match=r"evaluation\.json is no JSON.*delete it, and evaluate"):
    run.complete()


def test_complete_is_on_every_attached_set_too(tmp_path, monkeypatch):
  sets = ["--config.evaluation.sets.other.source=/images"]
  (run,) = load(tmp_path, [{}], sets, WITH_SET)
  results = [row(IOU, 0.5), row(IOU, 0.4, data="other/test")]
  write_run(run, results)
  assert not run.complete()  # there are no records of it
  convert_sets(monkeypatch)
  assert run.complete()
  convert_sets(monkeypatch, "of another source")
  assert not run.complete()
  convert_sets(monkeypatch)
  write_run(run, results[:1])
  assert not run.complete()
  (alone,) = load(tmp_path, [{}], (), WITH_SET)
  assert alone.complete()


def test_runs_share_the_records_and_features_of_attached_sets(tmp_path):
  runs = load(
    tmp_path,
    [
      STORED,
      STORED | {"seed": 1},
      STORED | {"data.flip_fraction": 0.5},  # a set has no mirror images
      STORED | {"model.image.weights": "/models/other"},
      STORED | {"data.stored_px": 256},
    ],
    ["--config.evaluation.sets.other.source=/images"],
    WITH_SET,
  )
  sets = [run.config.evaluation.sets.other for run in runs]
  (folder,) = {Path(chosen.records).parent for chosen in sets[:-1]}
  assert folder.parent == tmp_path / "out" / "sets" and folder.name.startswith("other-")
  assert Path(sets[-1].records).parent != folder  # its images are smaller
  assert sets[0].features == sets[1].features == sets[2].features != sets[3].features
  assert all(chosen.features.startswith(str(folder / "features")) for chosen in sets[:-1])
  assert f"--config.evaluation.sets.other.features={sets[3].features}" in runs[3].flags
  (chosen,) = load(tmp_path, [{}], ["--config.evaluation.sets.other.records=/mine"], WITH_SET)
  other = chosen.config.evaluation.sets.other
  assert (other.records, other.features) == ("/mine", "")


SIZES = {"hidden_size": 24, "max_position_embeddings": 160}


def test_a_run_has_the_sizes_of_its_weights(tmp_path, capsys):
  """As its command gives it them: it need not repeat them to be complete."""
  folder = tmp_path / "bert"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(SIZES))
  (folder / "vocab.txt").touch()
  weights = {"model.text.weights": str(folder)}
  (run,) = load(tmp_path, [weights], ["--config.text.max_tokens=150"])
  assert (run.config.model.text.embed_dim, run.config.model.text.max_position) == (24, 160)
  own = {"data.records": run.config.data.records, "text.max_tokens": 150}
  run.workdir.claim(pretrained.with_settings(tiny(**weights, **own), run.workdir))
  write_run(run, [row(IOU, 0.5)])
  assert run.complete()
  argv = [f"--config={write_study(tmp_path, [weights])}", f"--out={tmp_path / 'out'}"]
  capsys.readouterr()
  sweep.main([*argv, "--", "--config.text.max_tokens=150"])
  assert re.fullmatch("python .*# complete\n# 1 of 1 runs are complete\n", capsys.readouterr().out)
  with pytest.raises(UserError, match=r"run .*: the command .*\.embed_dim=16, 24 in"):
    load(tmp_path, [weights | {"model.text.embed_dim": 16}])


def test_a_vocabulary_that_is_not_there_is_refused_before_any_run(tmp_path):
  with pytest.raises(UserError, match=r"run .*: config\.text\.tokenizer: there is no folder /none"):
    load(tmp_path, [{"text.tokenizer": "/none"}])


def test_a_small_likeness_is_complete_when_it_is(tmp_path):
  (run,) = load(tmp_path, [{"train.batch_size": 4}], ["--config.runlocal=True"])
  assert (run.config.train.steps, run.config.train.batch_size) == (4, 4)
  write_run(run, [row(IOU, 0.5)], step=4)
  assert run.complete()


def test_the_best_checkpoint_may_be_an_earlier_one(tmp_path):
  metric = "validation/grounding/mIoU"
  best = {"checkpoint.evaluate": "best", "checkpoint.best_metric": metric}
  (run,) = load(tmp_path, [best | {"evaluation.every_steps": 2}])
  write_run(run, [row(IOU, 0.5)], step=2)
  assert not run.complete()
  (run.workdir.checkpoints / str(STEPS)).mkdir(parents=True)
  assert run.complete()


def test_results_of_another_config_are_refused(tmp_path):
  (run,) = load(tmp_path, [{}])
  write_run(run, [row(IOU, 0.5)])
  before = run.config.to_dict()
  before["evaluation"]["resamples"] = 5  # changes nothing that is learned
  del before["train"]["beta2"]  # as before the library had it
  run.workdir.config.write_text(digests.seal(before))
  assert run.complete()
  with_stage = before | {"curriculum": before["curriculum"] | {"early": {"tau": []}}}
  run.workdir.config.write_text(digests.seal(with_stage))
  with pytest.raises(UserError, match=r"curriculum\.early\.tau: .* there, 'absent' now"):
    run.complete()
  before["train"]["learning_rate"] = 0.5
  run.workdir.config.write_text(digests.seal(before))
  with pytest.raises(UserError, match=r"config \(train\.learning_rate: 0\.5 there, 0\.0015"):
    run.complete()


# The command is replaced by one that takes a moment and writes an evaluation as main does.
FAKE = """
import json, os, pathlib, sys, time
from input_pipeline import digests
workdir, wait, how = sys.argv[1], float(sys.argv[2]), sys.argv[3]
os.makedirs(workdir, exist_ok=True)
with open(workdir + "/pids", "a") as file:
  file.write(f"{os.getpid()}\\n")
start = time.time()
time.sleep(wait)
with open(workdir + "/note.json", "w") as file:
  json.dump([start, time.time()], file)
print("all the steps", flush=True)  # as the log of a run does
if how == "fail":
  sys.exit("error: config.x: the disk is full\\n")
if how != "forget":
  row = {"task": "grounding", "protocol": "v", "data": "phantom/test", "group": "macro",
         "metric": "mIoU", "model": "run", "value": 0.5, "low": None, "high": None, "n": 1}
  with open(workdir + "/evaluation.json", "w") as file:
    content = {"step": 6, "complete": True, "data": {"phantom/test": "0"}, "rows": [row]}
    file.write(digests.seal(content))
  digests.write_sums(pathlib.Path(workdir, "example_scores"))
"""


def fake(monkeypatch, *, wait=0.0, how=lambda name: ""):
  """Replaces the command and the records; `how`: name of a run -> its ending."""

  def command(run, python=sys.executable):
    return [python, "-c", FAKE, str(run.workdir.path), str(wait), how(run.name)]

  monkeypatch.setattr(study.Run, "command", command)
  monkeypatch.setattr(sweep, "make_records", lambda runs: None)


def test_what_is_complete_is_not_run_again(tmp_path, monkeypatch, capsys):
  fake(monkeypatch)
  runs = load(tmp_path, seeds(3))
  write_run(runs[1], [row(IOU, 0.5)])
  argv = [f"--config={tmp_path / 'study.py'}", f"--out={tmp_path / 'out'}"]
  sweep.main(argv)
  printed = capsys.readouterr().out
  assert printed.count("  # complete\n") == 1 and "# 1 of 3 runs are complete" in printed
  argv.append("--mode=run")
  sweep.main(argv)
  first = capsys.readouterr().out
  assert "3 runs: 1 complete, 2 to run, 1 at a time" in first
  assert "done   seed=2 after 0:0" in first and "(2 done, 0 failed, 0 left, ETA 0:00)" in first
  assert re.search(r"\| \(base\) +\| +3 \| +0\.500", first)  # the table at the end
  assert (tmp_path / "out" / "seed=0.log").read_text() == "all the steps\n"
  assert not (runs[1].workdir.path / "pids").exists()
  sweep.main(argv)
  assert "3 runs: 3 complete, 0 to run" in capsys.readouterr().out
  assert (runs[0].workdir.path / "pids").read_text().count("\n") == 1


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
  fake(monkeypatch, how={"seed=0": "fail", "seed=1": "", "seed=2": "forget"}.get)
  file = write_study(tmp_path, seeds(3))
  error = error_of(capsys, f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run")
  assert error == "error: 2 of 3 runs failed: seed=0, seed=2"
  output = capsys.readouterr().out
  assert re.search(r"FAILED seed=0 .*exit status 1: error: config\.x: the disk is full  \(", output)
  assert "FAILED seed=2" in output and "exit status 0: all the steps" in output
  assert "(1 done, 2 failed, 0 left" in output
  assert "1 of 3 runs are complete; missing or incomplete: seed=0, seed=2." in output


def test_a_second_sweep_is_refused_and_takes_no_log(tmp_path, monkeypatch, capsys):
  fake(monkeypatch)
  file = write_study(tmp_path, seeds(3))
  with lock(tmp_path / "out"):
    error = error_of(capsys, f"--config={file}", f"--out={tmp_path / 'out'}", "--mode=run")
  assert re.match(r"error: .*out is in use by process \d+ on ", error)
  assert not list((tmp_path / "out").glob("*.log"))


def test_two_at_a_time(tmp_path, monkeypatch):
  fake(monkeypatch, wait=0.6)
  runs = load(tmp_path, seeds(4))
  assert sweep.run_all(runs, 2) == []
  times = [json.loads((run.workdir.path / "note.json").read_text()) for run in runs]
  assert all(sum(start <= t < end for start, end in times) <= 2 for t, _ in times)
  assert times[1][0] < times[0][1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_its_runs(tmp_path, monkeypatch, number):
  fake(monkeypatch, wait=60)
  runs = load(tmp_path, seeds(3))
  files = [run.workdir.path / "pids" for run in runs]

  def stop():
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
      time.sleep(0.05)
      if all(file.exists() and file.read_text() for file in files[:2]):
        return os.kill(os.getpid(), number)

  threading.Thread(target=stop).start()
  with pytest.raises(KeyboardInterrupt):
    sweep.run_all(runs, 2)
  for file in files[:2]:
    with pytest.raises(ProcessLookupError):
      os.kill(int(file.read_text()), 0)
  assert not files[2].exists()


def execute(command, **env):
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | env
  return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT, env=env)


def tool(folder, name, text):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/bin/sh\n{text}\n")
  (folder / name).chmod(0o755)


def test_an_array_job_over_what_is_incomplete(tmp_path, monkeypatch, capsys):
  configure()
  monkeypatch.setattr(sweep, "make_records", lambda runs: None)
  tool(tmp_path / "bin", "sbatch", f'echo "$@" > {tmp_path}/sent; echo Submitted batch job 7')
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  runs, out = load(tmp_path, seeds(4)), tmp_path / "out"
  write_run(runs[0], [row(IOU, 0.5)])
  sweep.submit(runs, out, 2, "-p gpu --gres gpu:1 --time=4:00:00")
  assert (tmp_path / "sent").read_text().strip() == str(out / "sweep.sbatch")
  output = capsys.readouterr().out
  assert "Submitted batch job 7" in output and f"{out / 'sweep.sbatch'}: 3 of 4 runs" in output
  script = (out / "sweep.sbatch").read_text().splitlines()
  options = ("--array=0-2%2", "-p gpu --gres gpu:1 --time=4:00:00", '--job-name="out"', "--requeue")
  assert script[0] == "#!/bin/bash" and {f"#SBATCH {option}" for option in options} <= set(script)
  lines = (out / "commands.txt").read_text().splitlines()
  assert [shlex.split(line) for line in lines] == [run.command() for run in runs[1:]]
  # A task of the array executes its line, and is requeued where it is preempted.
  (out / "commands.txt").write_text("false\nsh -c 'echo it is $1; exit 75' sh $((6 * 7))\nfalse\n")
  tool(tmp_path / "bin", "squeue", "echo RUNNING")
  tool(tmp_path / "bin", "scontrol", 'echo "$@"')
  task = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
  done = execute(["bash", str(out / "sweep.sbatch")], **task)
  assert done.stdout == "it is 42\nrequeue 7_1\n" and done.returncode == 75
  tool(tmp_path / "bin", "sbatch", "echo 'invalid partition' >&2; exit 1")
  with pytest.raises(UserError, match="sbatch .*sweep.sbatch: invalid partition"):
    sweep.submit(runs, out, 1, "")
  monkeypatch.setattr("shutil.which", lambda name: None)
  sweep.submit(runs, out, 1, "")
  assert f"there is no sbatch here; where there is: sbatch {out}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_from_records_to_tables(tmp_path):
  runs = load(tmp_path, [{"train.steps": 2}, {"train.steps": 2, "alignment.beta": 0.25}])
  out, against = tmp_path / "out", "--against=train.steps=2"
  command = [sys.executable, "-m", "launch.sweep", "--mode=run", "--parallel=2", against]
  command += [f"--config={tmp_path / 'study.py'}", f"--out={out}"]
  extra = ["--", "--config.train.batch_size=4"]
  done = execute(command + extra)
  assert done.returncode == 0, done.stdout + done.stderr
  assert "2 done, 0 failed, 0 left" in done.stdout
  assert sorted(p.name for p in (out / "records").iterdir()) == ["base"]
  assert all(run.workdir.read_config()["train"]["batch_size"] == 4 for run in runs)
  content = json.loads((out / "table.json").read_text())
  (difference,) = content["differences"]
  assert difference["row"] == "train.steps=2,alignment.beta=0.25" and difference["seeds"] == [0]
  for i, run in enumerate(runs):
    cells = {(r.task, r.group, r.metric): r for r in run.evaluation().rows if r.model == rows.RUN}
    for column, value in content["rows"][i]["values"].items():
      assert value["value"] == pytest.approx(cells[tuple(column.split("/", 2))].value)
  assert "2 complete, 0 to run" in execute(command + extra).stdout
