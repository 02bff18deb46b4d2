"""Every task on real images, where the private folder of them is at hand."""

import subprocess
import sys

import pytest

import real_images
from paths import ROOT
from plan_jax.results import rows as results
from tiny_runs import TINY

FOLDER = ROOT.parent / "shared" / "data" / "cxr_mini"
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not FOLDER.is_dir(), reason="the private images are not here"),
]


def job(module, *flags):
  call = [sys.executable, "-m", module, *flags]
  done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of a few steps on some of the images."""
  path = tmp_path_factory.mktemp("real")
  rows = real_images.rows(FOLDER)
  chosen = [row for row in rows if row["split"] == "test"]
  chosen += [row for row in rows if row["split"] == "validation" and row["text_kind"] == "report"]
  chosen += [row for row in rows if row["split"] == "train" and row["boxes"] != "[]"][:32]
  chosen += [row for row in rows if row["split"] == "train" and row["text"]][:96]
  kept = {row["image_id"]: row for row in chosen}
  real_images.write(FOLDER, path / "images", list(kept.values()))
  keys = {key: value for key, value in TINY.items() if "options" not in key}
  job(
    "plan_jax.main",
    "--config=configs/folder.py",
    f"--config.data.source={path / 'images'}",
    f"--workdir={path / 'a'}",
    "--config.evaluation.split=test",
    "--config.evaluation.compatibility=True",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  )
  return path / "a"


def test_every_task_has_metrics_beside_chance_baselines(run):
  rows = results.read(run / "evaluation.json").rows
  tasks = {row.task for row in rows}
  wanted = ("grounding", "retrieval", "reranked-retrieval", "presence", "zero-shot-ours")
  assert {*wanted, "grounding-by-phrase"} <= tasks
  models = {task: {row.model for row in rows if row.task == task} for task in wanted}
  assert all("run" in names and len(names) > 1 for names in models.values())
  assert "mean_box" in models["grounding"] and "chance" in models["zero-shot-ours"]


def test_the_class_is_scored_in_one_pool_and_by_view(run):
  rows = results.read(run / "evaluation.json").rows
  scored = [row for row in rows if row.task == "zero-shot-ours" and row.model == "run"]
  assert {row.group for row in scored} == {"macro", "lung opacity", "view AP", "view PA"}
  images = sum(row["split"] == "test" for row in real_images.rows(FOLDER))
  assert {row.n for row in scored if row.group == "lung opacity"} == {images}
  assert sum(row.n for row in scored if row.group.startswith("view")) == images


def test_real_reports_are_retrieved_apart_from_sentences_made_of_labels(run, tmp_path):
  keys = [f"--config.{key}={value}" for key, value in TINY.items() if "options" not in key]
  source = run.parent / "images"
  job(
    "plan_jax.main",
    "--config=configs/folder.py",
    f"--config.data.source={source}",
    f"--workdir={run}",
    "--mode=evaluate",
    *keys,
    "--config.evaluation.split=validation",
  )
  rows = results.read(run / "evaluation.json").rows
  sizes = {row.n for row in rows if row.task == "retrieval" and row.group == "all"}
  validation = [row for row in real_images.rows(FOLDER) if row["split"] == "validation"]
  assert sizes == {sum(row["text_kind"] == "report" for row in validation)}


@pytest.fixture(scope="module")
def records(run):
  """All the images with lungs, boxes or labels that may be compared; few of them to learn from."""
  rows = real_images.task_rows(FOLDER)
  chosen = [row for row in rows if row["split"] != "train" or row["mask"]]
  chosen += [row for row in rows if row["split"] == "train" and row["labels"]][:64]
  images = run.parent / "task images"
  real_images.write(FOLDER, images, list({row["image_id"]: row for row in chosen}.values()))
  out = run.parent / "task records"
  job("input_pipeline.conversion", "--dataset=folder", f"--source={images}", f"--out={out}")
  return out


@pytest.mark.parametrize(
  ("task", "flags", "chance"),
  [
    ("detection", ["--channels=8"], "typical box"),
    ("segmentation", ["--channels=8", "--findings=lungs", "--empty_images=drop"], "mean_mask"),
    ("classification", ["--findings=effusion,edema"], "chance"),
    ("linear_probe", ["--findings=effusion,edema"], "chance"),
  ],
)
def test_tasks_that_are_learned_on_the_encoder(run, records, tmp_path, task, flags, chance):
  if task != "linear_probe":
    flags = [*flags, "--batch_size=8", "--steps=2", "--validate_every_steps=2"]
  job(
    "plan_jax.transfer",
    f"--task={task}",
    f"--workdir={run}",
    f"--records={records}",
    "--resamples=20",
    f"--out={tmp_path / 'out'}",
    "--image_px=64",
    *flags,
  )
  rows = results.read(tmp_path / "out" / "evaluation.json").rows
  assert {"run", chance} <= {row.model for row in rows}
  assert (tmp_path / "out" / "overlays.png").exists() == (task in ("detection", "segmentation"))
