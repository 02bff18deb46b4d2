"""A run with low-rank updates, from a folder of weights to an exported one."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from foreign_weights import small_dinov2
from input_pipeline import images
from input_pipeline.phantom import radiograph
from plan_jax import config as config_lib
from plan_jax import experiment, export
from plan_jax.inference.load import load
from plan_jax.models import lora
from plan_jax.models.weights.load import load_image
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import assembly, features, pretrained
from plan_jax.transfer.encoder import run_encoder
from tiny_runs import mesh_of, tiny

IMAGES = [images.decode(radiograph.example(1, i, 64).image) for i in range(3)]


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    for module in (assembly, config_lib):
      patch.setattr(module, "make_mesh", lambda *_: mesh_of(1))
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A config, and the folder of its run of three steps."""
  path = tmp_path_factory.mktemp("lora")
  small_dinov2(path / "dinov2", 3)
  given = tiny(
    **{
      "model.image.weights": str(path / "dinov2"),
      "model.image.vit.layers": (2,),
      "model.image.lora_rank": 3,
      "model.image.lora_blocks": 1,
      "train.freeze": ("^image_encoder/",),
      "train.steps": 3,
      "train.warmup_fraction": 0.0,
      "train.learning_rate": 0.05,
      "train.ema_decay": 0.5,
    }
  )
  config = pretrained.with_settings(given, Workdir(path / "none"))
  experiment.run(config, Workdir(path / "run"), "train")
  return config, path / "run"


def encoder_of(run):
  return flatten_dict(jax.device_get(load(run).variables["params"]["image_encoder"]), sep="/")


def test_updates_learn_and_the_base_stays(trained):
  config, run = trained
  base = flatten_dict(pretrained.load_encoders(config.model)["image_encoder"].params, sep="/")
  after = encoder_of(run)  # the running mean
  updates = {f"block2/lora_{name}_{factor}" for name in ("query", "value") for factor in "ab"}
  assert after.keys() - base.keys() == updates and base.keys() < after.keys()
  for name, x in base.items():
    np.testing.assert_array_equal(after[name], x)
  for name in updates:
    assert (np.abs(after[name]) > 1e-3).mean() > 0.9, name


def test_a_run_goes_on_to_the_same_bits(trained, tmp_path):
  config, run = trained
  again = shutil.copytree(run, tmp_path / "run")
  shutil.rmtree(again / "checkpoints" / "3")
  experiment.run(config, Workdir(again), "train")
  jax.tree.map(np.testing.assert_array_equal, encoder_of(again), encoder_of(run))


def test_an_export_is_a_plain_encoder(trained, tmp_path):
  config, run = trained
  out = export.write(Workdir(run), tmp_path / "out")
  about = json.loads((out / "config.json").read_text())["run"]["model"]["image"]
  assert (about["lora_rank"], about["lora_blocks"]) == (0, 0)
  assert not [name for name in load_file(out / "model.safetensors") if "lora" in name]
  before, after = load(run), load(out)
  np.testing.assert_allclose(after.embed_images(IMAGES), before.embed_images(IMAGES), atol=1e-5)
  phrases = ["small left effusion"] * 3
  maps = [model.maps_on_grid(IMAGES, phrases) for model in (after, before)]
  np.testing.assert_allclose(*maps, atol=1e-4)
  # Another run starts from it, with updates of its own.
  loaded = load_image(out, features.image_encoder(config.model.image))
  plain = lora.merged(before.variables["params"]["image_encoder"])
  jax.tree.map(np.testing.assert_array_equal, loaded.params, plain)


def test_transfer_reads_the_merged_encoder(trained):
  """So that a head's frozen encoder has nothing that learns."""
  config, run = trained
  encoder = run_encoder(run, config)
  square = np.stack([images.fit(image, 56) for image in IMAGES])[..., None]
  model = features.image_encoder(config.model.image)
  params = load(run).variables["params"]["image_encoder"]
  want = model.apply({"params": params}, square)
  np.testing.assert_allclose(encoder.module.apply(encoder.weights, square), want, atol=1e-5)
  assert not any("lora" in path for path in flatten_dict(encoder.weights, sep="/"))


def test_keys_of_updates_are_not_in_the_fingerprint_of_features(trained):
  config, _ = trained
  encoder = pretrained.load_encoders(config.model)["image_encoder"]
  older = config.copy_and_resolve_references()
  older.unlock()
  del older.model.image.lora_rank, older.model.image.lora_blocks
  assert features._fingerprint(older, encoder) == features._fingerprint(config, encoder)
