"""plan-jax tables: tables of an evaluation from its scores alone."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from paths import ROOT
from plan_jax.__main__ import main
from plan_jax.evaluate import evaluate
from plan_jax.evaluators import datasets
from plan_jax.inference.load import load
from plan_jax.results import rows, tables
from plan_jax.runtime.workdir import Workdir


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
  """The run's workdir, copied, with its evaluation; the records are gone."""
  path = tmp_path_factory.mktemp("tables")
  shutil.copytree(run, path / "a")
  shutil.copytree(run.parent / "records", path / "records")
  workdir = Workdir(path / "a")
  config = workdir.load_config()
  config.evaluation.compatibility = True
  evaluate(load(workdir), config, workdir, [datasets.own(config, path / "records")])
  shutil.rmtree(path / "records")
  shutil.rmtree(workdir.checkpoints)
  return workdir


def test_the_tables_are_those_of_the_evaluation(evaluated, tmp_path, capsys):
  written = rows.read(evaluated.evaluation).rows
  copied = shutil.copytree(evaluated.example_scores, tmp_path / "scores")
  main(["tables", str(evaluated.path), str(copied)])
  text = capsys.readouterr().out
  assert text.count(tables.table(written)) == 2 and "left out" not in text
  main(["tables", str(copied), "--json"])
  got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert got == [{"scores": str(copied)} | rows.as_json(row) for row in written]
  main(["tables", str(copied), "--json", "--resamples=0"])
  without = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row["value"] for row in without] == [row["value"] for row in got]
  assert {row["low"] for row in without} == {None}


def test_a_folder_without_whole_scores_is_one_line(evaluated, tmp_path):
  for folder, words in ((tmp_path / "none", "there is no folder"), (tmp_path, "no tables.json")):
    with pytest.raises(SystemExit, match=words):
      main(["tables", str(folder)])
  copied = shutil.copytree(evaluated.example_scores, tmp_path / "scores")
  (copied / "grounding@centre.csv").write_text("damaged")
  with pytest.raises(SystemExit, match=r"grounding@centre\.csv is not as it was written"):
    main(["tables", str(copied)])
  (copied / "grounding@centre.csv").unlink()
  with pytest.raises(SystemExit, match=r"grounding@centre\.csv is missing; evaluate again"):
    main(["tables", str(copied)])


@pytest.mark.parametrize("is_read", [False, True])
def test_a_reader_that_goes_away_ends_the_command_in_silence(tmp_path, is_read):
  """As `plan-jax tables RUN --json | head -1`; a broken pipe of something else is an error."""
  (tmp_path / "other.py").write_text(
    "def main(rest):\n  print('x' * 10**6)\n  raise BrokenPipeError\n"
  )
  code = "from plan_jax import __main__ as m; m.COMMANDS['x'] = ('other', ''); m.main(['x'])"
  environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, "-c", code],
    stdout=subprocess.DEVNULL if is_read else write,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
  )
  os.close(write)
  assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError\n" * is_read)
  assert bool(done.stderr) is is_read
