"""The code of docs/python.md, the notebook, and the docstrings of the public face run."""

import inspect
import json
import re
import textwrap

import numpy as np
import PIL.Image
import pytest

import plan_jax
from fakes import dicom
from input_pipeline import images
from input_pipeline.phantom import radiograph
from paths import ROOT
from plan_jax.inference import load
from plan_jax.inference.grounding import Grounding
from plan_jax.inference.predictor import Predictor
from tiny_runs import untrained

DOCUMENTED = (plan_jax, load.load, Predictor.ground, Predictor.classify, Grounding.boxes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a run and two images, as the examples name them."""
  path = tmp_path_factory.mktemp("examples")
  untrained(path)
  (path / "runs").mkdir()
  (path / "a").rename(path / "runs" / "phantom")
  (path / "runs" / "a").symlink_to("phantom")
  example = radiograph.example(1, 0, 64)
  (path / "image.png").write_bytes(example.image)
  pixels = images.decode(example.image)
  encoded = dicom.image(pixels, WindowCenter=128, WindowWidth=256)  # its values as they are
  (path / "image.dcm").write_bytes(encoded)
  return path


def test_the_page_runs(folder, monkeypatch):
  monkeypatch.chdir(folder)
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
  names = {}
  for block in blocks:
    exec(block, names)
  assert names["result"].map.shape == (64, 64) and len(names["results"]) == 2
  with PIL.Image.open("overlay.png") as overlay:
    assert overlay.size == (64, 64)
  assert names["images"].shape[0] == names["texts"].shape[0] == 2
  assert names["table"].shape == (2, 2) and set(names["scores"]) == {"pneumothorax", "effusion"}
  np.testing.assert_allclose(names["results"][0].map, names["results"][1].map, atol=1e-3)


def test_the_notebook_runs(folder):
  """Cell by cell, as Jupyter does, on another run."""
  cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
  cells = [cell for cell in cells if cell["cell_type"] == "code"]
  assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
  place, *blocks = ("".join(cell["source"]) for cell in cells)
  assert place == 'run = "../runs/phantom"'
  names = {"run": str(folder / "runs" / "phantom")}
  for block in blocks:
    exec(block, names)
  assert names["result"].map.shape == (128, 128) and names["sheet"].size == (384, 128)
  assert "no word that the model knows" in names["nonsense"].warning
  assert set(names["scores"]) == {"pneumothorax", "effusion", "cardiomegaly"}
  assert names["table"].shape == (4, 4)


def test_the_docstrings_run(folder, monkeypatch):
  monkeypatch.chdir(folder)
  names = {"plan_jax": plan_jax}
  for owner in DOCUMENTED:
    (block,) = re.findall(r"\n\n((?:  .*\n)+)", inspect.getdoc(owner))
    exec(textwrap.dedent(block), names)
  assert isinstance(names["model"], Predictor) and isinstance(names["grounding"], Grounding)
