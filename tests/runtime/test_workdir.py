import pytest
from ml_collections import ConfigDict

from plan_jax.runtime.workdir import Workdir, WorkdirError
from tiny_runs import tiny


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  with pytest.raises(WorkdirError, match="is not empty"):
    Workdir(tmp_path).claim(tiny())
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_bucket_is_no_workdir():
  with pytest.raises(WorkdirError, match="gs:.*must be a folder"):
    Workdir("gs://bucket/run")


def test_a_config_that_failed_before_training_can_be_mended(tmp_path):
  """Until there is a checkpoint; then a key that differs is named, unless it is free."""
  run = Workdir(tmp_path / "run")
  run.claim(tiny())
  run.tokenizer.mkdir()
  run.claim(tiny(**{"train.batch_size": 16}))
  assert run.load_config().to_dict() == tiny(**{"train.batch_size": 16}).to_dict()
  assert not run.tokenizer.exists()
  (run.checkpoints / "1").mkdir(parents=True)
  with pytest.raises(WorkdirError, match=r"train\.batch_size: 16 there, 8 now"):
    run.claim(tiny())
  run.claim(tiny(**{"train.batch_size": 16, "evaluation.resamples": 7, "data.workers": 3}))


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"baseline": {"name": "gloria"}}, "the evaluation of a baseline, and no model to load"),
    ({"on": {"dataset": "folder"}}, "on other data, and no model to load: name the run's own"),
  ],
)
def test_a_folder_of_an_evaluation_alone_has_no_model(tmp_path, config, message):
  run = Workdir(tmp_path / "run")
  run.claim(ConfigDict(config))
  with pytest.raises(WorkdirError, match=message):
    run.load_model_config()


def test_the_newest_checkpoint_is_the_one_of_the_highest_number(tmp_path):
  run = Workdir(tmp_path / "run")
  assert run.newest_step() is None and not run.begun()
  for name in ("8", "10", "12.orbax-checkpoint-tmp"):
    (run.checkpoints / name).mkdir(parents=True)
  assert run.newest_step() == 10 and run.begun()
