"""A PhysioNet download, written once for the readers of MIMIC-CXR and MS-CXR."""

import shutil

import pytest

from fakes import physionet


@pytest.fixture(scope="session")
def download(tmp_path_factory):
  """A download that tests only read, and the images written there."""
  folder = tmp_path_factory.mktemp("physionet")
  return folder, physionet.write(folder, size_px=64)


@pytest.fixture
def own(download, tmp_path):
  """A copy that a test may spoil."""
  shutil.copytree(download[0], tmp_path / "raw")
  return tmp_path / "raw"
