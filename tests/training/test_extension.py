import shutil

import pytest

from configs.run import get_config
from input_pipeline.errors import UserError
from plan_jax import experiment
from plan_jax.alignment import curriculum
from plan_jax.results import rows
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.training import extension
from tiny_runs import tiny

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
  before, now = (curriculum.stages(c.curriculum) for c in (tiny(**STEPS), config))
  starts = [
    [round(stage.start_fraction * steps, 9) for stage in stages]
    for stages, steps in ((before, 4), (now, 6))
  ]
  assert config.train.steps == 6 and starts[0] == starts[1]
  experiment.run(config, run, "all", steps=6)  # the same command again
  assert "training is complete: 6 steps" in capsys.readouterr().out
  with pytest.raises(WorkdirError, match=r"train\.steps: 6 there, 4 now.*leave out --config"):
    experiment.run(tiny(**STEPS), run, "all")


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_grows_only(trained, steps):
  with pytest.raises(UserError, match=f"--steps={steps}: .* trains to step 4, and .* grows only"):
    experiment.run(get_config(str(trained.path)), trained, "all", steps=steps)


def test_before_the_first_checkpoint_it_is_another_config(trained, tmp_path):
  run = copy(trained, tmp_path)
  shutil.rmtree(run.checkpoints)
  longer = extension.extended(run.load_config(), run, 9)
  assert longer.train.steps == 9 and longer.curriculum == run.load_config().curriculum
  extension.extend(longer, run)
  assert extension.read(run) == {}
