"""Settings of the tasks: from the command line, and from the entries of a config."""

import subprocess
import sys

import pytest

from configs import base
from input_pipeline.errors import UserError
from paths import ROOT
from plan_jax import config as config_lib
from plan_jax.transfer.__main__ import parse
from plan_jax.transfer.detection import yolo
from plan_jax.transfer.entries import entries, flags_of
from plan_jax.transfer.segmentation import decoder
from plan_jax.transfer.settings import SETTINGS, DetectionSettings, MapSettings
from tiny_runs import tiny

PLACES = ("--workdir=a", "--records=b", "--out=c")


def test_a_command_line_and_a_config_give_the_same_settings():
  flags = ("--findings=mass, edema", "--learning_rate=0.01", "--frozen=False", "--image_px=64")
  parsed = parse(["--task=detection", *PLACES, "--step=7", "--resamples=20", *flags])
  config = tiny().unlock()
  config.evaluation.transfer.x = base.transfer_task(
    "detection", findings=("mass", "edema"), learning_rate=0.01, frozen=False, image_px=64
  )
  places = {"workdir": parsed.workdir, "records": parsed.records, "out": parsed.out}
  assert entries(config)["x"].settings("run", 1.0, step=7, **places) == parsed
  assert parsed.frozen is False and parsed.steps == DetectionSettings.steps == 10_000


@pytest.mark.parametrize(
  ("task", "flags", "message"),
  [
    ("classification", ["--fraction=0"], r"--fraction=0\.0: must lie in \(0, 1\]"),
    ("linear_probe", ["--fraction=2"], r"--fraction=2\.0: must lie in \(0, 1\]"),
    ("segmentation", ["--steps=0"], "--steps=0: must be positive"),
    ("linear_probe", ["--seed=-1"], "--seed=-1: must not be negative"),
    ("detection", ["--learning_rate=inf"], "--learning_rate=inf: must be positive and finite"),
    ("linear_probe", ["--encoder=supervised"], "must be one of run, random"),
    ("detection", ["--anchors=mean"], "--anchors=mean: must be one of boxes, coco"),
    ("detection", ["--encoder=random", "--frozen=False"], "a random encoder is frozen"),
    ("segmentation", ["--encoder=supervised", "--frozen=True"], "a supervised one is not"),
  ],
)
def test_an_impossible_flag_is_refused(task, flags, message):
  with pytest.raises(UserError, match=message):
    parse([f"--task={task}", *PLACES, *flags])


@pytest.mark.parametrize("flags", [["--task=dance"], ["--task=detection", "--frozen=perhaps"]])
def test_what_is_no_flag_ends_the_command(flags, capsys):
  with pytest.raises(SystemExit):
    parse([*flags, *PLACES])
  assert "error:" in capsys.readouterr().err


def test_the_command_ends_with_one_line():
  call = [sys.executable, "-m", "plan_jax.transfer", "--task=linear_probe", *PLACES, "--fraction=2"]
  ended = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
  assert ended.returncode == 1
  assert ended.stderr.strip() == "error: --fraction=2.0: must lie in (0, 1]"


def test_help_without_a_task_names_the_tasks(capsys):
  with pytest.raises(SystemExit, match="^0$"):
    parse(["--help"])
  text = capsys.readouterr().out
  assert all(task in text for task in SETTINGS)


@pytest.mark.parametrize("task", SETTINGS)
def test_help_names_the_flags_and_their_defaults(task, capsys):
  with pytest.raises(SystemExit):
    parse([f"--task={task}", "--help"])
  text = capsys.readouterr().out
  assert all(f"--{name} " in text for name in flags_of(task)) and "(default: 1.0)" in text


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (dict(task="dance"), "transfer.x.task: is 'dance'; must be one of detection, segmentation"),
    (dict(task="linear_probe", of="b"), "transfer.x.of: is 'b'"),
    (dict(task="linear_probe", steps=3), "transfer.x.flags.*must be flags of --task=linear_probe"),
    (dict(task="linear_probe", fractions=(2.0,)), "transfer.x.fractions"),
    (
      dict(task="linear_probe", fractions=("x",)),
      "x.fractions: is .*must be of type tuple",
    ),
    (dict(task="linear_probe", encoders=("run", "supervised")), "must begin with 'run'; there are"),
    (dict(task="detection", encoders=("random",)), "must begin with 'run'"),
    (dict(task="segmentation", empty_images="droop"), "x.flags: --empty_images=droop: must be one"),
    (dict(task="segmentation", steps=0), "x.flags: --steps=0: must be positive"),
    (dict(task="segmentation", steps="many"), "x.flags: --steps=many: must be of type int"),
    (dict(task="detection", frozen=False, encoders=("run", "random")), "random encoder is frozen"),
    (dict(task="classification", learning_rate=0), "x.flags: --learning_rate=0: must be positive"),
    (dict(task="linear_probe", image_px=-64), "x.flags: --image_px=-64: must not be negative"),
    (dict(task="linear_probe", image_px=60), "x.flags.image_px: is 60; must be a multiple of 8"),
    (dict(task="segmentation", image_px=72), "x.flags.image_px: is 72; must be a multiple of 32"),
  ],
)
def test_an_impossible_entry_is_refused(entry, message):
  config = tiny().unlock()
  config.evaluation.transfer.x = base.transfer_task(**entry)
  with pytest.raises(UserError, match=message):
    entries(config)


def test_the_image_of_a_task_has_whole_patches_of_the_run_s_encoder():
  """Found before training: a task that takes the run's side, with patches of 14 pixels."""
  config = tiny(**{"model.image.name": "vit", "model.image_px": 56}).unlock()
  config.model.image.vit.patch_px = 14
  config.evaluation.transfer.x = base.transfer_task("linear_probe")
  assert entries(config).keys() == {"x"}
  config.evaluation.transfer.y = base.transfer_task("segmentation")
  with pytest.raises(UserError, match=r"y\.flags\.image_px: is 56; must be a multiple of 224"):
    entries(config)
  assert MapSettings.STRIDE == yolo.STRIDES[-1] == decoder.STRIDES[-1]


def test_the_config_layer_names_the_key():
  config = tiny().unlock()
  config.evaluation.transfer.x = base.transfer_task("dance")
  with pytest.raises(config_lib.ConfigError, match="config.evaluation.transfer.x.task: is 'dance'"):
    config_lib.check(config)


def test_an_entry_is_scored_on_the_test_split_alone():
  config = tiny(**{"evaluation.split": "validation"}).unlock()
  config.evaluation.transfer.x = base.transfer_task("linear_probe")
  with pytest.raises(UserError, match="evaluation.split: is 'validation'"):
    entries(config)
  config.evaluation.transfer.x.fractions = ()
  assert entries(config)["x"].fractions == ()
