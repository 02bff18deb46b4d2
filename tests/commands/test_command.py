"""The command plan-jax: its table, and what it hands on."""

import importlib
import subprocess
import sys

import pytest

import plan_jax
from paths import ROOT
from plan_jax import __main__ as command


def run_command(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "plan_jax", *arguments], capture_output=True, text=True, cwd=cwd
  )


def test_help_lists_the_commands_without_jax(capsys):
  for arguments in ([], ["--help"]):
    command.main(arguments)
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in command.COMMANDS)
  command.main(["--version"])
  assert capsys.readouterr().out == f"plan-jax {plan_jax.__version__}\n"
  code = "import sys, plan_jax.__main__ as c; c.main(['--help']); assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("name", sorted(command.COMMANDS))
def test_help_of_each_needs_no_heavy_library(name, monkeypatch):
  monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # lists the imports, those of `start` too
  done = run_command(name, "--help")
  assert done.returncode == 0 and done.stdout.startswith(f"usage: plan-jax {name}")
  imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
  assert "input_pipeline.terminal" in imported
  assert not imported & {"jax", "transformers", "orbax", "orbax.checkpoint", "flax", "torch"}


def test_help_of_a_run_shows_what_it_takes_the_common_flags_first():
  flags = {}
  for name in ("train", "evaluate"):
    lines = run_command(name, "--help").stdout.splitlines()
    flags[name] = [line.split()[0] for line in lines if line.startswith("  --")]
  assert flags["train"][:3] == ["--workdir", "--config", "--steps"]
  assert flags["evaluate"][:4] == ["--workdir", "--on", "--dataset", "--split"]
  assert not {"--on", "--split"} & set(flags["train"]) and "--steps" not in flags["evaluate"]
  both = set(flags["train"]) & set(flags["evaluate"])
  assert both >= {"--workdir", "--config", "--distributed", "--config.KEY=VALUE"}


def test_an_unknown_command_is_one_line(capsys):
  with pytest.raises(SystemExit) as ended:
    command.main(["trian\x1b"])
  assert ended.value.code == 2
  assert capsys.readouterr().err.startswith("error: no command '") and "\x1b" not in str(capsys)


def test_the_modules_are_there():
  for name, (module, _) in command.COMMANDS.items():
    if name != "app":
      assert callable(importlib.import_module(module).main), name


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--workdir=none"], "none holds no run: name its folder, or begin one by --config"),
    (["evaluate", "--workdir=RUN", "--config.evaluation.sets.x.source=y"], "--on=FOLDER"),
    (["train", "--workdir=RUN", "--config=configs/none.py"], "configs/none.py"),
    (["train", "--workdir=NEW", "--config=README.md"], "SyntaxError: "),
    (["sweep", "--out=NEW", "--config=README.md"], "--config=README.md: SyntaxError: "),
    (["evaluate", "--workdir=RUN", "--on="], "--on is empty"),
    (["compare", "NEW", "NEW"], "holds no evaluation"),
    (["train", "--workdir=RUN", "--on=RUN"], "--on is of plan-jax evaluate"),
    (["train", "--workdir=RUN", "--config.foo=3"], "there is no key 'foo' (configs/base.py has"),
    (["train", "--workdir=NEW", "--config=configs/baselines.py:gloria", "--steps=3"], "a baseline"),
    (["evaluate", "--workdir=RUN", "--config=configs/run.py:RUN", "--on=none"], "no such folder"),
    (["evaluate", "--workdir=NEW", "--config=configs/run.py:RUN", "--on=none"], "run's own config"),
  ],
)
def test_errors_of_a_run_are_one_line(run, tmp_path, arguments, message):
  done = run_command(*[a.replace("RUN", str(run)).replace("NEW", str(tmp_path)) for a in arguments])
  assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train"], "--workdir is missing: name the folder of the run"),
    (["evaluate", "--on=RUN"], "--workdir is missing"),
    (["train", "--workdir=RUN", "--foo=1"], "Unknown command line flag 'foo'"),
    (["train", "--workdir=RUN", "--steps=0"], "flag --steps=0: 0 is not a positive integer"),
    (["train", "--workdir=RUN", "RUN"], "flags begin with --"),
    (["evaluate", "--workdir=RUN", "--on=none", "--split=tset"], "<train|validation|test|all>"),
    (["ground", "--foo\x1b=1"], "--workdir, --image"),
    (["ground", "--workdir=RUN", "--image=x", "--foo\x1b\n=1"], "unrecognized arguments: --foo"),
    (["convert", "--dataset=none", "--out=x"], "invalid choice: 'none'"),
    (["convert", "--dataset=phantom", "--out=x", "--workers=-1"], "'-1' is not 0 or more"),
    (["convert", "--dataset=phantom", "--out=x", "--image_px=0"], "--image_px: '0' is not 1 or"),
    (["convert", "--dataset=phantom", "--out=x", "--shard_size=-2"], "--shard_size: '-2' is not 1"),
    (["convert", "--dataset=phantom", "--out=x", "--limit=0"], "--limit: '0' is not 1 or more"),
    (["convert", "--dataset=phantom", "--out=x", "--max_decoded_px=0"], "'0' is not 1 or more"),
    (["convert", "--dataset=phantom", "--out=x", "--selection_seed=-1"], "'-1' is not 0 or more"),
    (["check", "--work=2"], "--records"),
    (["check", "--records=x", "--workers=-1"], "argument --workers: '-1' is not 0 or more"),
    (["compare", "RUN"], "the following arguments are required: b"),
    (["compare", "RUN", "RUN", "--resamples=0"], "'0' is not 1 or more"),
    (["compare", "RUN", "RUN", "--seed=-1"], "'-1' is not 0 or more"),
    (["ground", "--dicom-out="], "argument --dicom-out: the path is empty"),
    (["transfer", "--task=none"], "invalid choice: 'none'"),
    (["export", "--workdir=RUN"], "--out"),
    (["sweep", "--out=x"], "--config"),
  ],
)
def test_mistakes_in_the_flags_are_one_line_that_names_help(run, arguments, message):
  done = run_command(*[a.replace("RUN", str(run)) for a in arguments])
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2 and line.startswith("error: ") and message in line
  assert f"plan-jax {arguments[0]} --help lists the flags)" in line and "\x1b" not in line
