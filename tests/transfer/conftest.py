"""A run that has not learned anything, and tasks learned on its encoder."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline.conversion import convert
from plan_jax.transfer import job
from plan_jax.transfer.__main__ import parse
from plan_jax.transfer.by_name import learn as learn_task
from tiny_runs import mesh_of, untrained

SMALL = {
  "detection": ("--image_px=64", "--channels=8", "--batch_size=8", "--steps=4"),
  "segmentation": ("--channels=4", "--batch_size=8", "--steps=4"),
  "classification": ("--batch_size=8", "--steps=4"),
  "linear_probe": (),
}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  """The folder of a run, "a", and its records."""
  path = tmp_path_factory.mktemp("transfer")
  sizes = {"train_images": 48, "validation_images": 24, "test_images": 24}
  untrained(path, **{f"data.options.{name}": size for name, size in sizes.items()})
  return path


@pytest.fixture(scope="session")
def folder(run):
  return run / "records"


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """Eight devices of two cores take longer to compile for."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(job, "make_mesh", lambda *_: mesh_of())
    yield


@pytest.fixture(scope="session")
def learn(run):
  """Learns a task, small, on the run or on the one in `path`; returns the rows."""

  def learned(task, out, *flags, path: Path = run, folder: Path | None = None):
    places = (f"--workdir={path / 'a'}", f"--records={folder or path / 'records'}", f"--out={out}")
    small = (*SMALL[task], "--resamples=20")
    if task != "linear_probe":
      small += ("--validate_every_steps=2",)
    return learn_task(parse((f"--task={task}", *places, *small, *flags)))

  return learned


@pytest.fixture(scope="session")
def done(learn, tmp_path_factory):
  """Learns a task once for all tests: its folder and its rows."""
  kept = {}

  def learned(task):
    if task not in kept:
      out = tmp_path_factory.mktemp("out") / task
      more = ("--compatibility=True",) if task == "detection" else ()
      kept[task] = out, learn(task, out, *more)
    return kept[task]

  return learned


@pytest.fixture
def make_records(tmp_path):
  """Makes records of images of which (split, label of a mass, whether it has a box) is given."""

  def made(images):
    rng = np.random.default_rng(0)
    lines = ["image,text,split,patient_id,labels,boxes"]
    for i, (split, label, box) in enumerate(images):
      cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (64, 64), np.uint8))
      boxes = '"[{""label"": ""mass"", ""x"": 8, ""y"": 8, ""w"": 20, ""h"": 20}]"' if box else "[]"
      lines.append(f"{i}.png,,{split},p{i},{label},{boxes}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    convert.convert("folder", tmp_path / "r", source=str(tmp_path), workers=0, progress=False)
    return tmp_path / "r"

  return made
