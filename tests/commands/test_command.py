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


@pytest.mark.parametrize("name", sorted(command.COMMANDS.keys() - {"train", "evaluate", "app"}))
def test_help_of_each(name, capsys):
  with pytest.raises(SystemExit) as ended:
    command.main([name, "--help"])
  assert ended.value.code == 0
  assert f"usage: plan-jax {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_of_a_run_shows_the_common_flags_first(name):
  done = run_command(name, "--help")
  lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
  assert done.returncode == 0 and lines[:3] == ["--config", "--workdir", "--mode"]
  assert {"--steps", "--on", "--split", "--distributed", "--config.KEY=VALUE"} < set(lines)


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
    (["evaluate", "--workdir=RUN", "--on=none", "--split=tset"], "<train|validation|test|all>"),
    (["train", "--workdir=NEW", "--config=configs/baselines.py:gloria", "--steps=3"], "a baseline"),
    (["evaluate", "--workdir=RUN", "--config=configs/run.py:RUN", "--on=none"], "no such folder"),
    (["evaluate", "--workdir=NEW", "--config=configs/run.py:RUN", "--on=none"], "run's own config"),
  ],
)
def test_errors_of_a_run_are_one_line(run, tmp_path, arguments, message):
  done = run_command(*[a.replace("RUN", str(run)).replace("NEW", str(tmp_path)) for a in arguments])
  assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
