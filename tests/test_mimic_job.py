"""The main job, from a folder as PhysioNet ships it to the report: `configs/mimic.py`, small."""

import json
import shutil
import string
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers

from configs import mimic
from configs.local import localised
from fakes import physionet
from foreign_weights import small_dinov2
from input_pipeline.errors import UserError
from paths import ROOT
from plan_jax import experiment
from plan_jax.models import freezing
from plan_jax.models.two_towers import build
from plan_jax.results import rows
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import assembly


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("physionet")
  physionet.write(folder)
  return folder


@pytest.mark.parametrize("variant", [pytest.param("", marks=pytest.mark.slow), ":vit"])
def test_the_main_job(source, tmp_path, variant):
  command = [
    *(sys.executable, "-m", "plan_jax.main"),
    f"--config=configs/mimic.py{variant}",
    f"--config.data.source={source}",
    "--config.runlocal=True",
    "--config.train.steps=3",  # wins over the 4 of runlocal
    f"--workdir={tmp_path / 'run'}",
  ]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
  assert done.returncode == 0, done.stdout + done.stderr
  evaluation = rows.read(tmp_path / "run" / "evaluation.json")
  assert evaluation.step == 3
  assert set(evaluation.data) == {"mimic_cxr/test", "mimic_5x200/test", "ms_cxr/test"}
  tasks = {
    data: {row.task for row in evaluation.rows if row.data == data} for data in evaluation.data
  }
  assert {"retrieval", "presence", "terms"} <= tasks["mimic_cxr/test"]
  assert {"grounding", "grounding-by-phrase", "retrieval"} <= tasks["ms_cxr/test"]
  assert "evaluation set rsna is left out: give config.evaluation.sets.rsna.source" in done.stdout
  assert "left out of train, for MS-CXR has images of theirs" in done.stdout
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["model"]["image"]["name"] == ("vit" if variant else "resnet")
  assert (tmp_path / "run" / "report" / "index.html").exists()


def sentence_encoder(folder):
  """Writes a small random MPNet as sentence-transformers lays it out; its words are letters."""
  transformers = pytest.importorskip("transformers")
  letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
  words = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    *letters,
    *(f"##{letter}" for letter in letters),
    "<mask>",
  ]
  sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
  # As the published ones have it, and not the class by itself.
  sizes |= dict(max_position_embeddings=514, vocab_size=len(words), layer_norm_eps=1e-5)
  transformers.MPNetModel(transformers.MPNetConfig(**sizes)).save_pretrained(folder)
  vocabulary = {word: number for number, word in enumerate(words)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "1_Pooling").mkdir()
  (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


def test_the_main_job_on_a_frozen_encoder(source, tmp_path):
  small_dinov2(tmp_path / "rad-dino", 9, std=0.2, size={"shortest_edge": 56})
  sentence_encoder(tmp_path / "mpnet")
  command = [
    *(sys.executable, "-m", "plan_jax.main"),
    "--config=configs/mimic.py:frozen",
    f"--config.model.text.weights={tmp_path / 'mpnet'}",
    f"--config.data.source={source}",
    f"--config.model.image.weights={tmp_path / 'rad-dino'}",
    "--config.model.image_px=56",
    "--config.runlocal=True",
    f"--workdir={tmp_path / 'run'}",
  ]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
  assert done.returncode == 0, done.stdout + done.stderr
  evaluation = rows.read(tmp_path / "run" / "evaluation.json")
  assert set(evaluation.data) == {"mimic_cxr/test", "mimic_5x200/test", "ms_cxr/test"}
  assert "1 kB each (16 x 24 values of 2 bytes)" in done.stdout
  assert list((tmp_path / "run" / "features_ms_cxr").glob("*.index.json"))
  assert (
    json.loads((tmp_path / "run" / "config.json").read_text())["model"]["text"]["name"] == "mpnet"
  )


def test_what_the_frozen_job_keeps_for_the_backward_pass():
  """Of full size, by shapes alone: docs/weights.md predicts the memory from it."""
  config = mimic.get_config("frozen")
  config.model.image_px = 518
  config.model.image.vit.update(variant="dinov2", patch_px=14, grid=37)
  batch = {"image": jax.ShapeDtypeStruct((7, 37 * 37, 768), np.float16)}
  names = ("tokens", "sentence_index", "position", "word_index")
  batch |= {name: jax.ShapeDtypeStruct((7, 192), np.int32) for name in names}
  batch["word_mask"] = jax.ShapeDtypeStruct((7, 96), bool)
  params = assembly.abstract_params(config)

  def megabytes(remat):
    config.model.remat = remat
    model = build(config.model, config.text.vocabulary_size, freeze=config.train.freeze)

    def encode(params, batch):
      params = freezing.without_gradient(params, config.train.freeze)
      rngs = {"dropout": jax.random.key(0)}
      return model.apply({"params": params}, batch, train=True, rngs=rngs)

    kept = jax.eval_shape(lambda params, batch: jax.vjp(encode, params, batch)[1], params, batch)
    kept = [x for x in jax.tree.leaves(kept) if x.shape[:1] == (7,)]  # what grows with the pairs
    return sum(x.size * x.dtype.itemsize for x in kept) / 7e6

  assert megabytes(mimic.get_config("frozen").model.remat) < 30 < 400 < megabytes("none")


def test_without_ms_cxr_the_key_and_the_remedy_are_named(tmp_path):
  physionet.write(tmp_path / "raw")
  shutil.rmtree(tmp_path / "raw" / "ms-cxr")
  config = mimic.get_config()
  config.data.source = str(tmp_path / "raw")
  config.runlocal = True
  run = Workdir(tmp_path / "run")
  with pytest.raises(UserError, match=r"evaluation\.sets\.ms_cxr\.source='' does without the set"):
    experiment.run(localised(config), run, "all")
  assert not run.checkpoints.exists()
