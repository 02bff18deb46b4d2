import pytest

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
