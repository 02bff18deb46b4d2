"""The main job, from a folder as PhysioNet ships it to the report: `configs/mimic.py`, small."""

import json
import shutil
import subprocess
import sys

import pytest

from configs import chexpert, mimic, openi
from configs.local import localised
from fakes import physionet
from paths import ROOT
from plan_jax import config as config_lib
from plan_jax.results import rows


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("physionet")
  physionet.write(folder)
  return folder


def job(config, *flags):
  call = [sys.executable, "-m", "plan_jax.main", f"--config={config}", *flags]
  return subprocess.run(call, capture_output=True, text=True, cwd=ROOT, timeout=400)


@pytest.mark.parametrize("variant", [pytest.param("", marks=pytest.mark.slow), ":vit"])
def test_the_main_job(source, tmp_path, variant):
  done = job(
    f"configs/mimic.py{variant}",
    f"--config.data.source={source}",
    "--config.runlocal=True",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = rows.read(tmp_path / "run" / "evaluation.json")
  assert found.step == 4
  assert set(found.data) == {"mimic_cxr/test", "mimic_5x200/test", "ms_cxr/test"}
  tasks = {data: {row.task for row in found.rows if row.data == data} for data in found.data}
  assert {"retrieval", "presence", "terms"} <= tasks["mimic_cxr/test"]
  assert {"grounding", "grounding-by-phrase", "retrieval"} <= tasks["ms_cxr/test"]
  assert "evaluation set rsna is left out: give config.evaluation.sets.rsna.source" in done.stdout
  assert "left out of train, for MS-CXR has images of theirs" in done.stdout
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["model"]["image"]["name"] == ("vit" if variant else "resnet")
  assert (tmp_path / "run" / "report" / "index.html").exists()


def test_without_ms_cxr_the_key_and_the_way_out_are_told(tmp_path):
  physionet.write(tmp_path / "raw")
  shutil.rmtree(tmp_path / "raw" / "ms-cxr")
  done = job(
    "configs/mimic.py",
    f"--config.data.source={tmp_path / 'raw'}",
    "--config.runlocal=True",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 1 and "step" not in done.stdout
  assert "config.evaluation.sets.ms_cxr.source='' does without the set" in done.stderr


@pytest.mark.parametrize(
  "config",
  [mimic.get_config(v) for v in ("", "vit", "512", "vit,512", "resnet50,224")]
  + [chexpert.get_config(), chexpert.get_config("vit"), openi.get_config()],
)
def test_full_size_configs_are_possible(config):
  config.data.source = "somewhere"
  config_lib.check(config)
  assert all(one.source in ("", "somewhere") for one in config.evaluation.sets.values())
  config.runlocal = True
  config_lib.check(localised(config))


def test_boxes_are_detected_at_the_size_of_the_variant():
  for variant, side in (("512", 512), ("vit", None)):
    learned = mimic.get_config(variant).evaluation.transfer
    assert learned.rsna_detection.flags.get("image_px") == side
    assert learned.object_cxr_detection.flags.get("image_px") == side


def test_unknown_variants_are_told():
  with pytest.raises(ValueError, match="no variant 'swin' of mimic.py; there are resnet50, vit"):
    mimic.get_config("swin")
  done = job("configs/mimic.py:swin", "--workdir=unused")
  assert done.returncode == 1 and "no variant 'swin'" in done.stderr


def test_a_source_is_asked_for(tmp_path):
  done = job("configs/mimic.py", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 1 and "config.data.source: is empty" in done.stderr
