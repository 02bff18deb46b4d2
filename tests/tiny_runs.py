"""A tiny experiment for the tests: 64-px phantom images, a model of a few thousand parameters."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from configs import phantom
from input_pipeline import records
from input_pipeline.conversion import convert
from plan_jax import train
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble

TINY = {
  "data.options.size_px": 64,
  "data.options.train_images": 32,
  "data.options.validation_images": 8,
  "data.options.test_images": 8,
  "text.vocabulary_size": 200,
  "text.max_tokens": 32,
  "text.max_words": 16,
  "model.image_px": 64,
  "model.embed_dim": 8,
  "model.image.width": 0.125,
  "model.image.stages": 2,
  "model.text.embed_dim": 16,
  "model.text.num_heads": 2,
  "model.text.mlp_dim": 16,
  "model.text.depth": 1,
  "model.text.dropout": 0.1,
  "train.steps": 6,
  "train.batch_size": 8,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 2,
  "evaluation.every_steps": 0,
  "evaluation.batch_size": 8,
  "evaluation.resamples": 20,
  "evaluation.report_images": 2,
  "mesh.data": -1,
}


def tiny(**more) -> ConfigDict:
  config = phantom.get_config()
  config.lock()
  config.update_from_flattened_dict(TINY | more)
  return config


def two_stages(**more) -> ConfigDict:
  """Makes a tiny config whose regions sharpen in a second stage, "late"."""
  config = tiny()
  later = {"start_fraction": 0.65, "tau": 0.1}
  with config.unlocked():
    config.curriculum.late = ConfigDict(config.curriculum.words.to_dict() | later)
  config.update_from_flattened_dict(more)
  return config


def untrained(path, **more):
  """Makes a run that has learned nothing, in path / "a", beside its records; gives its config."""
  config = tiny(**more)
  convert.convert("phantom", path / "records", workers=0, progress=False, **config.data.options)
  work = Workdir(path / "a")
  work.claim(config)
  tokenizer = train.make_tokenizer(config, work, records.RecordSource(path / "records", "train"))
  checkpoints = Checkpoints(work.checkpoints)
  checkpoints.save(0, assemble(config, tokenizer).initial_state())
  checkpoints.close()
  return config


def mesh_of(count=1):
  """The first `count` of the devices."""
  devices = np.array(jax.devices()[:count]).reshape(count, 1)
  return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def flags(**more) -> list[str]:
  return [f"--config.{key}={value}" for key, value in (TINY | more).items()]
