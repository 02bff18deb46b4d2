import shutil

import pytest

from configs.run import get_config
from input_pipeline.errors import UserError
from plan_jax import experiment
from plan_jax.alignment import curriculum
from plan_jax.results import rows
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.training import extension
from tiny_runs import tiny, two_stages

STEPS = {"train.steps": 4, "evaluation.report_images": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  run = Workdir(tmp_path_factory.mktemp("extension") / "run")
  experiment.run(tiny(**STEPS), run, "all")
  return run


def copy(trained, path):
  return Workdir(shutil.copytree(trained.path, path / "run"))


def test_a_run_trains_on_beyond_its_end_and_is_evaluated_anew(trained, tmp_path, capsys):
  run = copy(trained, tmp_path)
  assert rows.read(run.evaluation).step == 4
  experiment.run(get_config(str(run.path)), run, "all", steps=6)
  printed = capsys.readouterr().out
  assert "trains on from step 4 to 6" in printed and "resumed from step 4" in printed
  assert rows.read(run.evaluation).step == 6
  assert extension.read(run) == {"4": 4}
  assert "to step 4 by a schedule of 4" in run.report.read_text()
  config = run.load_config()
  assert config.train.steps == 6
  experiment.run(config, run, "all", steps=6)  # the same command again
  assert "training is complete: 6 steps" in capsys.readouterr().out
  with pytest.raises(WorkdirError, match=r"train\.steps: 6 there, 4 now.*leave out --config"):
    experiment.run(tiny(**STEPS), run, "all")


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_grows_only(trained, steps):
  with pytest.raises(UserError, match=f"--steps={steps}: .* trains to step 4, and .* grows only"):
    experiment.run(get_config(str(trained.path)), trained, "all", steps=steps)


@pytest.mark.parametrize("fraction", [0.02, 0.07, 0.1, 0.3, 0.55, 0.6, 0.65, 0.9, 1 / 3])
def test_stages_begin_at_the_very_steps(trained, fraction):
  for steps in (4, 10, 23, 100, 720, 30_000):
    config = two_stages(**{"train.steps": steps, "curriculum.late.start_fraction": fraction})
    before = curriculum.stages(config.curriculum)
    begin = next(i for i in range(steps + 1) if curriculum.stage_at(before, i, steps) == before[1])
    for longer in (steps + 1, steps + 9, 2 * steps, 17 * steps):
      now = extension.extended(extension.extended(config, trained, longer), trained, longer + 1)
      after = curriculum.stages(now.curriculum)
      names = [curriculum.stage_at(after, i, longer + 1).name for i in (begin - 1, begin)]
      assert names == ["words", "late"], (steps, longer)


def test_other_overrides_are_refused_and_free_ones_are_not_kept(trained, tmp_path):
  run = copy(trained, tmp_path)
  before = run.config.read_bytes()
  config = run.load_config()
  config.model.embed_dim, config.seed, config.evaluation.resamples = 32, 5, 7
  with pytest.raises(WorkdirError, match="--steps=6: .*model.embed_dim: 8 .* 32 now; seed") as told:
    experiment.run(config, run, "train", steps=6)
  assert "resamples" not in str(told.value) and "train.steps" not in str(told.value)
  assert run.config.read_bytes() == before and not run.extended.exists()
  config.model.embed_dim, config.seed = 8, 0
  extension.extend(extension.extended(config, run, 6), run)
  assert run.load_config().evaluation.resamples == 20


def test_a_second_extension_keeps_the_schedule_that_led_to_the_step(trained, tmp_path):
  run = copy(trained, tmp_path)
  for steps in (6, 9):
    extension.extend(extension.extended(run.load_config(), run, steps), run)
  assert run.load_config().train.steps == 9 and extension.read(run) == {"4": 4}


def test_before_the_first_checkpoint_it_is_another_config(trained, tmp_path):
  run = copy(trained, tmp_path)
  shutil.rmtree(run.checkpoints)
  longer = extension.extended(run.load_config(), run, 9)
  assert longer.train.steps == 9 and longer.curriculum == run.load_config().curriculum
  extension.extend(longer, run)
  assert extension.read(run) == {}
