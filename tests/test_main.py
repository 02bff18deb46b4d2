"""The command as a user gives it, and the errors a user can meet."""

import csv
import errno
import json
import os
import shutil
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import digests, records
from input_pipeline.conversion import convert
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.locks import LockedError, lock
from input_pipeline.phantom import radiograph
from paths import ROOT
from plan_jax import experiment
from plan_jax.results import rows
from plan_jax.runtime.workdir import Workdir
from tiny_runs import flags, tiny, untrained

DEMO = {"train.steps": 4, "evaluation.every_steps": 2}


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "plan_jax.main", *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=300,
    cwd=ROOT,
  )


def test_importing_needs_neither_tensorflow_nor_torch():
  code = (
    "import sys, plan_jax.experiment, plan_jax.main, input_pipeline.conversion.convert;"
    "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """One whole tiny experiment through the real command: its folder, and what it printed."""
  run = Workdir(tmp_path_factory.mktemp("demo") / "run")
  done = command("--config=configs/phantom.py", f"--workdir={run.path}", *flags(**DEMO))
  assert done.returncode == 0, done.stderr + done.stdout
  return run, done.stdout


def test_the_demo_ends_with_metrics_chance_baselines_and_the_report(demo):
  run, output = demo
  assert run.report.exists() and run.report.with_name("overlays.png").exists()
  last = output.strip().splitlines()
  assert last[-1] == f"report: {run.report}"
  assert "mean_box" in output and "chance" in output and "ETA" in output
  assert any(line.startswith("phantom/test") and "mIoU" in line for line in last[-12:])
  assert "(--parameter_table lists them)\n  image_encoder " in output and "| Shape" not in output


def test_evaluation_json(demo):
  run, _ = demo
  evaluation = rows.read(run.evaluation)
  assert evaluation.step == 4
  models = {row.model for row in evaluation.rows if row.task == "grounding"}
  means = {"mean_box", "mean_box_per_finding", "mean_box_per_place"}
  assert models == {"run", "random", "centre", *means}
  assert {row.group for row in evaluation.rows if row.task == "retrieval"} == {"all"}
  written = json.loads(run.evaluation.read_text())
  assert set(written) == {"step", "complete", "data", "rows", "digest"}


def test_metrics_have_training_and_validation(demo):
  run, _ = demo
  points = [json.loads(line) for line in run.metrics.read_text().splitlines()]
  assert any("train/loss_global" in point for point in points)
  assert any("validation/grounding/mIoU" in point for point in points)
  assert list((run.path / "tensorboard").iterdir())


def test_a_second_start_says_that_all_is_complete(demo, capsys):
  run, _ = demo
  before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
  experiment.run(tiny(**DEMO), run, "all")
  output = capsys.readouterr().out
  assert "training is complete: 4 steps" in output and "evaluation is complete" in output
  assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == before


def test_evaluate_again(demo, capsys):
  """On the eight devices of the tests, where the command had one."""
  run, _ = demo
  before = rows.read(run.evaluation).rows
  experiment.run(tiny(**DEMO), run, "evaluate")
  assert "report:" in capsys.readouterr().out
  after = rows.read(run.evaluation).rows
  assert [(r.task, r.model, r.group, r.metric, r.n) for r in after] == [
    (r.task, r.model, r.group, r.metric, r.n) for r in before
  ]
  np.testing.assert_allclose([r.value for r in after], [r.value for r in before], rtol=1e-3)


def test_an_evaluation_asks_for_nothing_that_only_training_needs(tmp_path, capsys):
  """A batch that the eight devices here cannot share, a vocabulary that is kept in the run."""
  folder = str(tmp_path / "records")
  config = untrained(tmp_path, **{"data.records": folder, "train.batch_size": 12})
  run = Workdir(tmp_path / "a")
  config.text.tokenizer = "/gone"
  replace_text(run.config, digests.seal(config.to_dict()))
  replace_text(run.records_note, digests.seal({"fingerprint": records.fingerprint(folder)}))
  experiment.run(run.load_config(), run, "evaluate")
  assert f"report: {run.report}" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"train\.batch_size: is 12; must be a multiple of the 8"):
    experiment.run(run.load_config(), run, "train")


def test_errors_of_the_user_are_one_line(demo):
  run, _ = demo
  done = command("--config=configs/phantom.py", f"--workdir={run.path}", *flags(**DEMO, seed=5))
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "error: " in done.stderr and "seed: 0 there, 5 now" in done.stderr
  assert "--workdir" in done.stderr


def test_a_second_start_is_refused_in_one_line(tmp_path):
  """Both trained, took each other's files, and called it complete."""
  with lock(tmp_path / "run"):
    done = command("--config=configs/phantom.py", f"--workdir={tmp_path / 'run'}", *flags(**DEMO))
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    line = f"error: {tmp_path / 'run'} is in use by {holder}: wait for its end, or name another"
    assert done.returncode == 1 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("mode", ["all", "train", "evaluate"])
def test_no_mode_goes_past_the_lock(demo, mode):
  run, _ = demo
  before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
  with lock(run.path), pytest.raises(LockedError, match="is in use by"):
    experiment.run(tiny(**DEMO), run, mode)
  assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p != run.path} == {
    p: time for p, time in before.items() if p != run.path
  }


def test_a_workdir_that_is_read_only_is_one_line_before_any_work(tmp_path, monkeypatch):
  def refuse(path, *_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  monkeypatch.setattr(os, "open", refuse)
  monkeypatch.setattr(experiment.config_lib, "check", lambda _: pytest.fail("this is work"))
  with pytest.raises(DiskError, match="Read-only file system; name a path that can be written"):
    experiment.run(tiny(), Workdir(tmp_path), "all")


def test_unknown_key(tmp_path):
  done = command("--config=configs/phantom.py", f"--workdir={tmp_path}", "--config.train.stepz=3")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "error:" in done.stderr and "stepz" in done.stderr and "steps" in done.stderr
  assert "\\n" not in done.stderr
  assert not list(tmp_path.iterdir())


def test_no_checkpoint_to_evaluate(tmp_path):
  config, run = tiny(), Workdir(tmp_path / "run")
  with pytest.raises(UserError, match="holds no run.*train first"):
    experiment.run(config, run, "evaluate")
  run.claim(config)
  with pytest.raises(UserError, match="train first"):
    experiment.run(config, run, "evaluate")


def test_flags_that_the_weights_contradict_are_one_line(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "dinov2", "num_hidden_layers": 2}')
  given = flags(**{"model.image.weights": tmp_path, "model.image.vit.depth": 5})
  done = command("--config=configs/phantom.py", f"--workdir={tmp_path / 'run'}", *given)
  assert done.returncode == 1 and not (tmp_path / "run").exists()
  assert done.stderr.strip() == (
    f"error: the command line contradicts the weights: config.model.image.vit.depth=5, 2 in"
    f" {tmp_path}: leave these keys out, or name other weights"
  )


def folder_config(source, **more):
  config = tiny(**more)
  config.unlock()
  config.data.dataset = "folder"
  config.data.options = {}
  config.data.source = str(source)
  config.evaluation.split = "validation"
  return config


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("configs/nowhere.py", "No such file or directory: 'configs/nowhere.py'"),
    ("configs/mimic.py:vitt,512", "no variant 'vitt' of mimic.py; there are resnet50, vit"),
  ],
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, config, message):
  done = command(f"--config={config}", f"--workdir={tmp_path / 'run'}")
  (line,) = done.stderr.strip().splitlines()
  assert done.returncode == 1 and line.startswith("error: in the flags: ") and message in line


def make_folder(path, images=12):
  path.mkdir()
  lines = []
  for i in range(images):
    example = radiograph.example(0, i, 64)
    pixels = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path / f"{i}.jpg"), pixels)
    x0, y0, x1, y1 = example.regions[0].boxes[0].tolist() if example.regions else (1, 2, 9, 12)
    box = {"label": "finding", "x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0}
    lines.append(
      {
        "image": f"{i}.jpg",
        "text": " ".join(example.sentences),
        "boxes": json.dumps([box]),
        "split": "validation" if i % 3 == 0 else "train",
      }
    )
  write(path, lines)
  return lines


def write(path, lines):
  with (path / "manifest.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)


def test_a_folder_of_images_end_to_end(tmp_path):
  make_folder(tmp_path / "images")
  run = Workdir(tmp_path / "run")
  experiment.run(folder_config(tmp_path / "images", **{"train.steps": 2}), run, "all")
  found = rows.read(run.evaluation).rows
  assert {row.task for row in found} == {
    "grounding",
    "grounding-by-phrase",
    "mass-inside",
    "retrieval",
    "reranked-retrieval",
  }
  assert {row.data for row in found} == {"folder/validation"}
  assert run.report.exists()


def test_a_folder_that_is_not_fit_stops_before_training(tmp_path):
  """The source, the split, a column, a box: each by its name."""
  run, images = Workdir(tmp_path / "run"), tmp_path / "images"
  config = folder_config(images)
  with pytest.raises(UserError, match=f"{images}"):
    experiment.run(config, run, "all")
  lines = make_folder(images)
  write(images, [{k: v for k, v in line.items() if k != "image"} for line in lines])
  with pytest.raises(UserError, match="manifest.csv.*image"):
    experiment.run(config, run, "all")
  box = {"boxes": json.dumps([{"label": "finding", "x": 50, "y": 2, "w": 40, "h": 9}])}
  write(images, [*lines[:4], lines[4] | box, *lines[5:]])
  with pytest.raises(UserError, match="row 6.*boxes"):
    experiment.run(config, run, "all")
  write(images, lines)
  config.evaluation.split = "test"
  with pytest.raises(UserError, match=r"evaluation\.split 'test'.*its splits: "):
    experiment.run(config, run, "all")
  assert not run.checkpoints.exists()


def test_a_repaired_image_is_read_again(tmp_path):
  make_folder(tmp_path / "images")
  image = tmp_path / "images" / "4.jpg"
  whole = image.read_bytes()
  image.write_bytes(whole[:-200])
  config, run = folder_config(tmp_path / "images", **{"train.steps": 1}), Workdir(tmp_path / "run")
  with pytest.raises(UserError, match="4.jpg"):
    experiment.run(config, run, "train")
  image.write_bytes(whole)
  experiment.run(config, run, "train")
  assert (run.records / "skipped.jsonl").read_text() == ""


def test_records_that_changed_under_a_run(demo, tmp_path):
  run = Workdir(shutil.copytree(demo[0].path, tmp_path / "run"))
  shutil.rmtree(run.records)
  options = tiny().data.options.to_dict() | {"seed": 1}
  convert.convert("phantom", run.records, workers=0, progress=False, **options)
  note = run.records / "convert.json"
  note.write_text(digests.seal(digests.unseal(note.read_text()) | {"seed": 0}))
  with pytest.raises(UserError, match="was trained on records"):
    experiment.run(tiny(**DEMO), run, "train")


def test_flipped_byte_in_a_shard(demo, tmp_path):
  run = Workdir(shutil.copytree(demo[0].path, tmp_path / "run"))
  shard = next(run.records.glob("*train.tfrecord-*-of-*[0-9]"))
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  shutil.rmtree(run.checkpoints)
  with pytest.raises(UserError, match=rf"{shard.name}.*record \d+"):
    experiment.run(tiny(**DEMO), run, "train")
