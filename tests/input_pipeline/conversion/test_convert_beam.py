"""The converter under Apache Beam; `make test-beam` runs it where Beam is installed."""

import importlib.util
import json
import subprocess
import sys

import pytest

from fakes.images import manifest
from fakes.records import SMALL, content, image_folder
from input_pipeline import records
from input_pipeline.conversion.convert import convert
from paths import ROOT

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
)


def flags(**options):
  return [f"--{name}={value}" for name, value in options.items()]


def under_beam(out, *runner_flags, **options):
  from launch import convert_beam

  convert_beam.main([*flags(out=out, **options), "--", "--runner=DirectRunner", *runner_flags])


@needs_beam
def test_the_phantom_has_the_same_bytes_and_a_deleted_shard_comes_back(tmp_path, capsys):
  options = SMALL | {"shard_size": 6}
  convert("phantom", tmp_path / "local", workers=1, progress=False, **options)
  out = tmp_path / "beam"
  under_beam(out, dataset="phantom", **options)
  assert content(out) == content(tmp_path / "local")
  assert "train 20, validation 6" in capsys.readouterr().out

  shards = sorted(out.glob("*-of-?????"))
  kept = {path: path.stat().st_mtime_ns for path in shards[1:]}
  shards[0].unlink()
  under_beam(out, dataset="phantom", **options)
  assert content(out) == content(tmp_path / "local")
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  under_beam(out, dataset="phantom", **options)
  assert "complete already" in capsys.readouterr().out


@needs_beam
def test_bad_images_are_listed_alike_and_repairs_go_in(tmp_path, capsys):
  (tmp_path / "raw").mkdir()
  source = image_folder(tmp_path / "raw", broken=(3, 7))
  options = {"source": source, "shard_size": 5, "max_skipped_fraction": 0.2}
  convert("folder", tmp_path / "local", workers=2, progress=False, **options)
  under_beam(tmp_path / "beam", dataset="folder", **options)
  assert content(tmp_path / "beam") == content(tmp_path / "local")
  listed = (tmp_path / "beam" / "skipped.jsonl").read_text().splitlines()
  paths = [json.loads(line)["path"] for line in listed]
  assert paths == ["3.jpg (manifest.csv row 5)", "7.jpg (manifest.csv row 9)"]
  assert "skipped 2 images" in capsys.readouterr().out

  with pytest.raises(SystemExit, match="error: 1 of 12 images cannot be read so far"):
    under_beam(tmp_path / "strict", dataset="folder", **options | {"max_skipped_fraction": 0})
  image_folder(tmp_path / "raw")
  under_beam(tmp_path / "beam", dataset="folder", **options)  # complete: nothing is tried again
  assert len(records.RecordSource(tmp_path / "beam", "train")) == 10
  from launch import convert_beam

  convert_beam.main([*flags(out=tmp_path / "beam", dataset="folder", **options), "--retry_skipped"])
  assert len(records.RecordSource(tmp_path / "beam", "train")) == 12


@needs_beam
def test_a_source_that_contradicts_itself_ends_in_one_line_and_the_cure_goes_on(tmp_path):
  (tmp_path / "raw").mkdir()
  source = image_folder(tmp_path / "raw", count=4)
  rows = [{"image": f"{i}.jpg", "text": "", "split": "train", "boxes": ""} for i in range(4)]
  rows[2]["boxes"] = '[{"label": "nodule", "x": 60, "y": 4, "w": 9, "h": 4}]'
  manifest(tmp_path / "raw", rows)
  options = {"dataset": "folder", "source": source, "shard_size": 2}
  with pytest.raises(SystemExit, match=r"error: .*row 4 \(2\.jpg\), column 'boxes'.*outside"):
    under_beam(tmp_path / "beam", **options)
  assert not list((tmp_path / "beam").glob(".plan-*"))
  assert not list((tmp_path / "beam").glob("*.tmp-*"))
  rows[2]["boxes"] = ""
  manifest(tmp_path / "raw", rows)
  under_beam(tmp_path / "beam", **options)
  assert records.splits(tmp_path / "beam") == {"train": 4}


@needs_beam
def test_a_pipeline_that_ends_early_is_an_error(tmp_path, monkeypatch):
  from launch import convert_beam

  monkeypatch.setattr(convert_beam.WriteShard, "process", lambda self, shard: None)
  with pytest.raises(SystemExit, match="00000-of-00004: the pipeline ended without writing it"):
    under_beam(tmp_path / "beam", dataset="phantom", **SMALL | {"shard_size": 6})
  with pytest.raises(records.RecordError, match="has not finished"):
    records.splits(tmp_path / "beam")


@needs_beam
def test_several_worker_processes_have_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "raw").mkdir()
  image_folder(tmp_path / "raw", broken=(3,))
  options = {"shard_size": 2, "max_skipped_fraction": 0.2}
  command = [sys.executable, "-m", "launch.convert_beam", "--dataset=folder", *flags(**options)]
  command += ["--source=raw", "--out=beam", "--", "--direct_num_workers=2"]
  command += ["--direct_running_mode=multi_processing"]
  environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  convert("folder", tmp_path / "local", source="raw", workers=1, progress=False, **options)
  assert content(tmp_path / "beam") == content(tmp_path / "local")


@pytest.mark.parametrize("name", ["__main__", "imported"])
def test_without_beam_one_error_tells_the_remedy(name):
  code = (
    "import runpy, sys; sys.modules['apache_beam'] = None;"
    f" runpy.run_module('launch.convert_beam', run_name='{name}')"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 1
  last = done.stderr.rstrip().splitlines()[-1]
  assert last.endswith("in an environment of its own: pip install '.[beam]'")
  if name == "__main__":
    assert done.stderr.startswith("error: Apache Beam is missing")
  else:
    assert last.startswith("ImportError: Apache Beam is missing")
