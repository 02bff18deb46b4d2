import pytest

from input_pipeline import records
from tiny_runs import untrained


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  """The workdir of a run that has learned nothing."""
  path = tmp_path_factory.mktemp("commands")
  untrained(path)
  return path / "a"


@pytest.fixture(scope="session")
def images(run, tmp_path_factory):
  """A folder of three images, a file that is none, and one that is not said to be one."""
  folder = tmp_path_factory.mktemp("images")
  source = records.RecordSource(run.parent / "records", "test")
  for i in range(3):
    (folder / f"{i}.png").write_bytes(source[i].image)
  (folder / "broken.png").write_bytes(b"no image")
  (folder / "notes.txt").write_text("no image by name")
  return folder
