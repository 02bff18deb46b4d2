"""The wheel: configs and launch lie inside of plan_jax in it, and commands find them."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from paths import ROOT

pytest.importorskip("setuptools", "77")
PARTS = ("plan_jax", "input_pipeline", "configs", "launch", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder that holds what the wheel installs."""
  source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
  for name in (*PARTS, "requirements.txt", "README.md", "LICENSE"):
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
    copy(ROOT / name, source / name)
  code = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
  subprocess.run(
    [sys.executable, "-c", code, str(out)], check=True, cwd=source, capture_output=True
  )
  (wheel,) = out.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    file.extractall(out)
  wheel.unlink()
  return out


def test_top_level_names(installed):
  names = {path.name.partition("-")[0] for path in installed.iterdir()}
  assert names == {"plan_jax", "input_pipeline"}


def test_every_file_is_in_it(installed):
  def files(folder):
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}

  for name, inside in (
    ("configs", "plan_jax/bundled/configs"),
    ("launch", "plan_jax/bundled/launch"),
  ):
    assert files(installed / inside) == files(ROOT / name)
  package = {p for p in files(installed / "plan_jax") if p.parts[0] != "bundled"}
  assert package == files(ROOT / "plan_jax")
  assert files(installed / "input_pipeline") == files(ROOT / "input_pipeline")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--config=configs/phantom.py", "--workdir=r", "--config.train.stepz=3"], "stepz"),
    (["train", "--config=configs/mimic.py:vitt", "--workdir=r"], "no variant 'vitt' of mimic.py"),
    (["sweep", "--config=configs/phantom.py", "--out=o"], "phantom.py has no function sweep()"),
  ],
)
def test_commands_find_the_configs_of_the_wheel(installed, tmp_path, arguments, message):
  done = subprocess.run(
    [sys.executable, "-m", "plan_jax", *arguments],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(installed)},
  )
  assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
