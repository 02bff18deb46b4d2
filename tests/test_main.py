"""The command as a user gives it, and the errors a user can meet."""

import csv
import importlib
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from paths import ROOT
from plan_jax import config as config_lib
from plan_jax import experiment
from plan_jax.results import rows as results
from plan_jax.runtime.workdir import Workdir
from tiny_runs import flags, tiny


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
  """One whole tiny experiment through the real command."""
  where = tmp_path_factory.mktemp("demo") / "run"
  arguments = [
    "--config=configs/phantom.py",
    f"--workdir={where}",
    *flags(**{"train.steps": 4, "evaluation.every_steps": 2}),
  ]
  done = command(*arguments)
  assert done.returncode == 0, done.stderr + done.stdout
  return where, arguments, done.stdout


def test_the_demo_ends_with_figures_floors_and_the_report(demo):
  where, _, output = demo
  report = where / "report" / "index.html"
  assert report.exists() and (where / "report" / "overlays.png").exists()
  last = output.strip().splitlines()
  assert last[-1] == f"report: {report}"
  assert "mean_box" in output and "chance" in output and "ETA" in output
  assert any(line.startswith("phantom/test") and "mIoU" in line for line in last[-12:])


def test_evaluation_json(demo):
  where, _, _ = demo
  found = results.read(where / "evaluation.json")
  step, rows = found.step, found.rows
  assert step == 4
  models = {row.model for row in rows if row.task == "grounding"}
  assert models == {"run", "random", "centre", "mean_box", "mean_box_per_finding"}
  assert {row.group for row in rows if row.task == "retrieval"} == {"all"}
  written = json.loads((where / "evaluation.json").read_text())
  assert set(written) == {"step", "complete", "data", "rows"}


def test_metrics_have_training_and_validation(demo):
  where, _, _ = demo
  rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  assert any("train/loss_global" in row for row in rows)
  assert any("validation/grounding/mIoU" in row for row in rows)
  assert list((where / "tensorboard").iterdir())


def test_a_second_start_says_that_all_is_complete(demo):
  where, arguments, _ = demo
  before = {p: p.stat().st_mtime_ns for p in where.rglob("*") if p.is_file()}
  done = command(*arguments)
  assert done.returncode == 0
  assert "training is complete: 4 steps" in done.stdout and "evaluation is complete" in done.stdout
  assert {p: p.stat().st_mtime_ns for p in where.rglob("*") if p.is_file()} == before


def test_evaluate_again(demo):
  where, arguments, _ = demo
  before = (where / "evaluation.json").read_bytes()
  done = command(*arguments, "--mode=evaluate")
  assert done.returncode == 0 and "report:" in done.stdout
  assert (where / "evaluation.json").read_bytes() == before


def test_workdir_of_another_config(demo):
  where, arguments, _ = demo
  done = command(*arguments, "--config.train.learning_rate=0.5")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "train.learning_rate: 0.0015 there, 0.5 now" in done.stderr and "--workdir" in done.stderr


def test_unknown_key(tmp_path):
  done = command("--config=configs/phantom.py", f"--workdir={tmp_path}", "--config.train.stepz=3")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "error:" in done.stderr and "stepz" in done.stderr and "steps" in done.stderr
  assert not list(tmp_path.iterdir())


def test_no_checkpoint_to_evaluate(tmp_path):
  config, run = tiny(), Workdir(tmp_path / "run")
  with pytest.raises(UserError, match="holds no run.*train first"):
    experiment.run(config, run, "evaluate")
  run.claim(config)
  with pytest.raises(UserError, match="train first"):
    experiment.run(config, run, "evaluate")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(UserError, match="is not empty"):
    experiment.run(tiny(), Workdir(tmp_path), "all")
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def folder_config(source, **more):
  config = tiny(**more)
  config.unlock()
  config.data.dataset = "folder"
  config.data.options = {}
  config.data.source = str(source)
  config.evaluation.split = "validation"
  return config


def make_folder(path, images=12):
  path.mkdir()
  rows = []
  for i in range(images):
    example = radiograph.example(0, i, 64)
    pixels = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path / f"{i}.jpg"), pixels)
    x0, y0, x1, y1 = example.regions[0].boxes[0].tolist() if example.regions else (1, 2, 9, 12)
    box = {"label": "finding", "x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0}
    rows.append(
      {
        "image": f"{i}.jpg",
        "text": " ".join(example.sentences),
        "boxes": json.dumps([box]),
        "split": "validation" if i % 3 == 0 else "train",
      }
    )
  write(path, rows)
  return rows


def write(path, rows):
  with (path / "manifest.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def test_a_folder_of_images_end_to_end(tmp_path):
  make_folder(tmp_path / "images")
  run = Workdir(tmp_path / "run")
  experiment.run(folder_config(tmp_path / "images", **{"train.steps": 2}), run, "all")
  rows = results.read(run.evaluation).rows
  assert {row.task for row in rows} == {
    "grounding",
    "grounding-by-phrase",
    "retrieval",
    "reranked-retrieval",
  }
  assert {row.data for row in rows} == {"folder/validation"}
  assert run.report.exists()


def test_missing_source(tmp_path):
  with pytest.raises(UserError, match="nowhere"):
    experiment.run(folder_config(tmp_path / "nowhere"), Workdir(tmp_path / "run"), "all")


def test_missing_evaluation_split_is_said_before_training(tmp_path):
  make_folder(tmp_path / "images")
  config = folder_config(tmp_path / "images")
  config.evaluation.split = "test"
  run = Workdir(tmp_path / "run")
  with pytest.raises(UserError, match=r"evaluation\.split 'test'.*there: "):
    experiment.run(config, run, "all")
  assert not run.checkpoints.exists()


def test_manifest_without_image(tmp_path):
  rows = make_folder(tmp_path / "images")
  write(tmp_path / "images", [{k: v for k, v in row.items() if k != "image"} for row in rows])
  with pytest.raises(UserError, match="manifest.csv.*image"):
    experiment.run(folder_config(tmp_path / "images"), Workdir(tmp_path / "run"), "all")


def test_box_outside_its_image(tmp_path):
  rows = make_folder(tmp_path / "images")
  rows[4]["boxes"] = json.dumps([{"label": "finding", "x": 50, "y": 2, "w": 40, "h": 9}])
  write(tmp_path / "images", rows)
  with pytest.raises(UserError, match="row 6.*boxes"):
    experiment.run(folder_config(tmp_path / "images"), Workdir(tmp_path / "run"), "all")


def test_truncated_image_is_counted_and_too_many_stop(tmp_path):
  make_folder(tmp_path / "images")
  image = tmp_path / "images" / "4.jpg"
  image.write_bytes(image.read_bytes()[:-200])
  with pytest.raises(UserError, match="4.jpg"):
    experiment.run(folder_config(tmp_path / "images"), Workdir(tmp_path / "run"), "all")
  # Both remedies, in the same workdir: raise the bound, or repair the image.
  run = Workdir(tmp_path / "run")
  config = folder_config(
    tmp_path / "images", **{"data.max_skipped_fraction": 0.2, "train.steps": 1}
  )
  experiment.run(config, run, "train")
  assert "4.jpg" in (run.records / "skipped.jsonl").read_text()


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


def test_a_config_that_failed_before_training_can_be_mended(tmp_path):
  run = Workdir(tmp_path / "run")
  with pytest.raises(UserError, match=r"config\.evaluation\.split"):
    experiment.run(tiny(**{"data.options.test_images": 0}), run, "all")
  shutil.rmtree(run.records)
  experiment.run(tiny(**{"train.steps": 1, "train.batch_size": 16}), run, "train")
  assert run.read_config()["train"]["batch_size"] == 16
  with pytest.raises(UserError, match=r"train\.batch_size: 16 there, 8 now"):
    experiment.run(tiny(**{"train.steps": 1}), run, "train")


def test_records_that_changed_under_a_run(tmp_path):
  run = Workdir(tmp_path / "run")
  experiment.run(tiny(**{"train.steps": 1}), run, "train")
  other = Workdir(tmp_path / "other")
  experiment.run(tiny(**{"train.steps": 1, "data.options.seed": 1}), other, "train")
  shutil.rmtree(run.records)
  shutil.copytree(other.records, run.records)
  (run.records / "convert.json").write_text(
    (run.records / "convert.json").read_text().replace('"seed": 1', '"seed": 0')
  )
  with pytest.raises(UserError, match="was trained on records"):
    experiment.run(tiny(**{"train.steps": 1}), run, "train")


def test_flipped_byte_in_a_shard(tmp_path):
  run = Workdir(tmp_path / "run")
  experiment.run(tiny(**{"train.steps": 1}), run, "train")
  shard = next(run.records.glob("*train.tfrecord-*-of-*[0-9]"))
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  shutil.rmtree(run.checkpoints)
  with pytest.raises(UserError, match=rf"{shard.name}.*record \d+"):
    experiment.run(tiny(), run, "train")


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.image.depth", 19, r"config\.model\.image\.depth: is 19; must be one of 18, 34, 50"),
    ("model.image.name", "swin", r"config\.model\.image\.name: .*resnet, vit"),
    ("model.image.mean", (0.5, 0.5), r"config\.model\.image\.mean.*1 or 3 values"),
    ("model.image.std", (0.2, 0.2, 0.2), r"config\.model\.image\.std.*1 positive values"),
    ("model.image.vit.num_heads", 5, r"config\.model\.image\.vit\.size.*multiple of 5 heads"),
    ("model.text.last_layers", 2, r"config\.model\.text\.last_layers.*1 layers"),
    ("train.freeze", ("text_encoder",), r"train\.freeze: 'text_encoder' is in no parameter's path"),
    ("train.freeze", ("(",), r"train\.freeze: '\(' is no regular expression"),
    ("train.freeze", ("^", "image"), r"train\.freeze: leaves nothing to learn"),
    ("train.layer_decay", 1.2, r"train\.layer_decay.*\(0, 1\]"),
    ("train.text_rate", 0.0, r"train\.text_rate.*positive"),
    ("model.image_px", 66, r"config\.model\.image_px.*multiple of 8"),
    ("model.text.num_heads", 3, r"config\.model\.text\.size.*multiple of 3 heads"),
    ("model.image.output_stride", 16, r"output_stride.*reach a stride of 8 only"),
    ("train.batch_size", 1, r"config\.train\.batch_size.*at least two pairs"),
    ("model.text.num_heads", 0, r"config\.model\.text\.heads.*positive"),
    ("checkpoint.best_metric", "loss", r"best_metric.*validation/grounding/mIoU"),
    ("model.scale_init", 200.0, r"config\.model\.scale_init.*1 to 100"),
    ("data.threads", 0, r"config\.data\.threads.*positive"),
    ("evaluation.split", "tset", r"config\.evaluation\.split.*validation, test"),
    ("train.steps", 0, r"config\.train\.steps.*positive"),
    ("alignment.method", "magic", r"alignment\.method: is 'magic'; must be one of plan, none"),
    ("alignment.beta", float("inf"), r"alignment\.beta.*finite"),
    ("text.max_tokens", 2, r"text\.max_tokens.*room"),
    ("alignment.method", "gloria", r"curriculum\.refine\.local_weight.*'gloria' has one round"),
    ("alignment.evidence", "gut", r"alignment\.evidence.*soft_maximum, cosine"),
    ("alignment.word_weight", -1.0, r"alignment\.word_weight.*negative"),
    ("text.terms", "nowhere.txt", r"text\.terms: nowhere\.txt cannot be read"),
    ("alignment.sparsifier", "hardmax", r"alignment\.sparsifier.*softmax, threshold"),
    ("alignment.eta", 1.5, r"config\.alignment\.eta.*\[0, 1\]"),
    ("evaluation.max_tokens", 4000, r"max_position.*4000"),
    ("checkpoint.evaluate", "best", r"needs config\.checkpoint\.best_metric"),
    ("curriculum.words.tau", (0.1, 0.2), r"config\.curriculum\.words: local_weight, tau and gamma"),
    ("text.tokenizer", "/nowhere", r"config\.text\.tokenizer: there is no folder /nowhere"),
  ],
)
def test_impossible_configs_are_named(key, value, message):
  config = tiny()
  config.unlock()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    config_lib.check(config)


def test_batch_that_does_not_divide_over_the_devices():
  with pytest.raises(UserError, match=r"train\.batch_size: is 12; .* the 8 devices"):
    config_lib.check_devices(tiny(**{"train.batch_size": 12}))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"train.micro_batches": 2},
      r"train\.micro_batches: is 2; must divide the 1 pairs of a device",
    ),
    ({"alignment.implementation": "chunked"}, r"alignment\.evaluation: .* not on 8; use \"ring\""),
    (
      {"train.batch_size": 800, "alignment.tile_images": 100, "alignment.tile_reports": 100},
      r"config\.alignment\.tile_mib: is 16; a tile of 100 images x 100 reports",
    ),
  ],
)
def test_what_the_devices_cannot_do_is_named(change, message):
  with pytest.raises(UserError, match=message):
    config_lib.check_devices(tiny(**change))


@pytest.mark.parametrize("name", ["phantom", "folder", "base", "ablation", "transfer"])
def test_shipped_configs_are_possible(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  if config.data.dataset == "folder":
    with pytest.raises(config_lib.ConfigError, match=r"config\.data\.source: is empty"):
      config_lib.check(config)
    config.data.source = "images"
  config_lib.check(config)
