"""Stored features: the same numbers as encoding each time, and refusal of all others."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from foreign_weights import small_dinov2
from input_pipeline import features, images, records
from input_pipeline.conversion import convert
from input_pipeline.errors import UserError
from input_pipeline.features import FeaturesError
from input_pipeline.locks import LockedError, lock
from paths import ROOT
from plan_jax import config as config_lib
from plan_jax import experiment, train
from plan_jax.evaluators import grounding, labelled_images, reranking, zero_shot_classes
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.inference.inputs import InputError
from plan_jax.inference.load import load
from plan_jax.models.weights.files import WeightsError
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import assembly, pretrained
from plan_jax.training import features as store
from plan_jax.training.assembly import assemble
from plan_jax.training.step import StagedStep
from tiny_runs import mesh_of, tiny

NOT_BEGUN = Workdir("not-begun")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """The config of a run on stored features with mirror images, and its folder of records."""
  path = tmp_path_factory.mktemp("features")
  small_dinov2(path / "dinov2", 2)
  given = tiny(
    **{
      "model.image.weights": str(path / "dinov2"),
      "model.image.adapter": 1,
      "model.text.dropout": 0.0,
      "data.augment": False,
      "data.flip_fraction": 0.5,
      "data.store_features": True,
      "data.records": str(path / "records"),
      "data.features": str(path / "features"),
      "train.freeze": ("image_encoder",),
      "train.steps": 2,
    }
  )
  config = pretrained.with_settings(given, Workdir(path / "none"))
  config_lib.check(config)
  options = config.data.options.to_dict()
  convert.convert("phantom", path / "records", workers=0, progress=False, **options)
  store.store(config, [store.Source(path / "records", path / "features")], NOT_BEGUN)
  return config, path


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  # With all eight XLA's CPU backend may run two collectives of the step at once, and wait for ever:
  # each blocks a thread for each device, and there are eight threads for both.
  for module in (assembly, config_lib):
    monkeypatch.setattr(module, "make_mesh", lambda *_: mesh_of(2))


def source(path, split="train", *, stored=True):
  folder = path / "features" if stored else None
  return records.RecordSource(path / "records", split, features=folder)


def first_batch(config, path, *, stored):
  words = train.make_tokenizer(config, Workdir(path / "run"), source(path, stored=False))
  return next(train.make_batches(config, words, source(path, stored=stored), 0)), words


def test_the_loss_is_that_of_encoding_each_time(made):
  config, path = made
  losses, tokens = [], []
  saving = {"train.micro_batches": 2, "model.remat": "blocks"}
  for stored, changes in ((True, {}), (False, {}), (True, saving)):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    batch, words = first_batch(config, path, stored=stored)
    assert batch["image"].shape == ((8, 16, 24) if stored else (8, 56, 56, 1))
    parts = assemble(config, words)
    encoders = {"image_encoder": pretrained.load_encoders(config.model)["image_encoder"]}
    image = parts.abstract_batch()["image"] if stored else batch["image"]
    assert (image.shape, image.dtype) == (batch["image"].shape, batch["image"].dtype)
    state = parts.with_encoders(parts.initial_state(), encoders)
    after, scalars = StagedStep(parts)(0, state, batch)
    losses.append([float(scalars[name]) for name in ("loss", "gradient_norm", "parameter_norm")])
    tokens.append(batch["tokens"])
    frozen = jax.tree.leaves(after.params["image_encoder"])
    given = jax.tree.leaves(encoders["image_encoder"].params)
    assert all((np.asarray(a) == b).all() for a, b in zip(frozen, given, strict=True))
  assert (tokens[0] == tokens[1]).all()
  np.testing.assert_allclose(losses[1:], losses[:1] * 2, rtol=2e-3)


def test_views_are_the_image_and_its_mirror_image(made):
  config, path = made
  encoder = pretrained.load_encoders(config.model)["image_encoder"]
  model = store.image_encoder(config.model.image)
  for split, views in (("train", 2), ("test", 1)):
    example = source(path, split)[3]
    image = images.fit(images.decode_example(example), 56)
    for view, square in enumerate((image, image[:, ::-1])[:views]):
      want = model.apply({"params": encoder.params}, square[None, ..., None])
      got = example.features(view)
      assert got.dtype == np.float16 and got.shape == (16, 24)
      np.testing.assert_allclose(got, want.reshape(16, 24), atol=2e-3)
  with pytest.raises(IndexError):
    example.features(1)


def test_a_run_trains_and_evaluates_on_them(made):
  config, path = made
  run = path / "whole"
  experiment.run(config, Workdir(run), "all")
  model = load(run)
  own = EvaluationSet("phantom", "phantom", path / "records", "test", True, path / "features")
  scores = [
    grounding.score_grounding(model, each.examples("regions"), None)["run"].values
    for each in (own, replace(own, features=None))
  ]
  np.testing.assert_allclose(*scores, atol=0.1)  # thresholds: a rounding moves whole pixels
  embedded = [
    labelled_images.embed(model, each.examples(), "", notify=lambda _: None).embeddings
    for each in (own, replace(own, features=None))
  ]
  np.testing.assert_allclose(*embedded, atol=2e-3)
  with pytest.raises(InputError, match="images"):
    model.embed_images([images.model_input(source(path)[0]), np.zeros((9, 9), np.uint8)])


def test_only_what_is_missing_is_made(made, monkeypatch):
  config, path = made
  jobs = []
  monkeypatch.setattr(store, "_make", lambda config, encoder, todo, print_: jobs.extend(todo))
  folders = [store.Source(path / "records", path / "features")]
  store.store(config, folders, NOT_BEGUN)
  assert not jobs
  last = sorted((path / "features").glob("*train*[0-9]"))[-1]
  content = last.read_bytes()
  last.unlink()
  store.store(config, folders, NOT_BEGUN)
  assert [job.shard.name for job in jobs] == [last.name]
  last.write_bytes(content)
  jobs.clear()
  store.store(config, folders, NOT_BEGUN)
  assert not jobs


def test_of_other_data_only_what_is_read_is_made(made, tmp_path, monkeypatch):
  config, path = made
  jobs = []
  monkeypatch.setattr(store, "_make", lambda config, encoder, todo, print_: jobs.extend(todo))
  own = EvaluationSet("own", "phantom", path / "records", "test", True)
  for split, want in (("test", {"test", "validation"}), ("train", {"train", "validation"})):
    other = replace(own, split=split, is_own=False)
    source = store.Source(other.folder, tmp_path / "features", other.image_splits)
    store.store(config, [source], NOT_BEGUN)
    assert {job.shard.name.split("-")[1].split(".")[0] for job in jobs} == want
    assert {job.views for job in jobs} == {1}  # nothing in an evaluation is mirrored
    jobs.clear()
  store.store(config, [store.Source(path / "records", tmp_path / "features")], NOT_BEGUN)
  assert {(job.shard.name.split("-")[1].split(".")[0], job.views) for job in jobs} == {
    ("train", 2),
    ("validation", 1),
    ("test", 1),
  }


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from input_pipeline import features, shards

def write_and_die(*arguments, write=shards.replace_text):
  if {index_is_written}:
    write(*arguments)
  os.kill(os.getpid(), 9)

shards.replace_text = write_and_die
features.write({folder!r}, Path({shard!r}), [np.ones((2, 16, 24), np.float16)] * 32, "another")
"""


@pytest.mark.parametrize("index_is_written", [False, True])
def test_a_shard_whose_writer_was_killed_is_made_anew(made, tmp_path, index_is_written):
  config, path = made
  folder = tmp_path / "features"
  shutil.copytree(path / "features", folder)
  (shard,) = (path / "records").glob("*train*[0-9]")
  features.file_of(folder, shard).unlink()
  features.index_path(features.file_of(folder, shard)).unlink()
  script = KILLED.format(folder=str(folder), shard=str(shard), index_is_written=index_is_written)
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert len(list(folder.glob("*.tmp-*"))) == 1
  assert len(list(folder.glob("*.index.json"))) == 2 + index_is_written
  assert not features.file_of(folder, shard).exists()
  store.store(config, [store.Source(path / "records", folder)], NOT_BEGUN)
  assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
    file.name: file.read_bytes() for file in (path / "features").iterdir()
  }


def test_two_runs_do_not_write_into_one_folder(made, tmp_path):
  config, path = made
  with lock(tmp_path), pytest.raises(LockedError, match=str(tmp_path)):
    store.store(config, [store.Source(path / "records", tmp_path)], NOT_BEGUN)
  assert not list(tmp_path.iterdir())


def test_workers_read_what_this_process_reads(made):
  config, path = made
  words = train.make_tokenizer(config, Workdir(path / "run"), source(path, stored=False))
  by_workers = []
  for workers in (0, 2):
    config = config.copy_and_resolve_references()
    config.data.workers = workers
    batches = train.make_batches(config, words, source(path), 3)
    by_workers.append([next(batches) for _ in range(6)])
    batches.close()
  assert by_workers[0][0]["image"].dtype == np.float16
  jax.tree.map(np.testing.assert_array_equal, *by_workers)


def test_each_process_makes_its_share(made, tmp_path, monkeypatch):
  config, path = made
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(store.processes, "assert_equal", lambda *_: None)
  monkeypatch.setattr(store.processes, "on_primary", lambda _: None)
  written = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    note = partial(lambda index, folder, shard, *_: written.append((shard.name, index)), index)
    monkeypatch.setattr(features, "write", note)
    store.store(config, [store.Source(path / "records", tmp_path)], NOT_BEGUN)
  names = [name for name, _ in written]
  assert len(set(names)) == len(names) == 3
  assert {index for _, index in written} == {0, 1}


@pytest.mark.parametrize(
  ("key", "value"),
  [("model.image_px", 70), ("model.dtype", "bfloat16"), ("model.image.vit.layers", (1,))],
)
def test_features_of_another_encoder_are_refused(made, key, value):
  config, path = made
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(FeaturesError, match=r"of another encoder.*config\.data\.features"):
    store.store(config, [store.Source(path / "records", path / "features")], NOT_BEGUN)


def test_weights_that_changed_after_the_run_began_are_refused(made, tmp_path):
  config, path = made
  config = config.copy_and_resolve_references()
  weights, run = tmp_path / "dinov2", Workdir(tmp_path / "run")
  shutil.copytree(path / "dinov2", weights)
  config.model.image.weights, config.data.features = str(weights), str(tmp_path / "features")
  experiment.run(config, run, "train")
  small_dinov2(weights, 2, seed=1)
  shutil.rmtree(tmp_path / "features")
  with pytest.raises(WeightsError, match=r"has changed since the run in .* began"):
    experiment.run(config, run, "evaluate")
  weights.rename(tmp_path / "elsewhere")
  with pytest.raises(WeightsError, match=r"is not there.*config\.data\.store_features=False"):
    experiment.run(config, run, "evaluate")
  assert not (tmp_path / "features").exists()
  config.data.store_features = False
  experiment.run(config, run, "evaluate")


def test_features_of_other_records_are_refused(made, tmp_path):
  config, path = made
  options = config.data.options.to_dict() | {"seed": 5}
  convert.convert("phantom", tmp_path, workers=0, progress=False, **options)
  with pytest.raises(FeaturesError, match="of other records than"):
    records.RecordSource(tmp_path, "train", features=path / "features")


def test_no_room(made, tmp_path, monkeypatch):
  config, path = made
  monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
  with pytest.raises(UserError, match=r"the features take 0\.0 GB.*config\.data\.features"):
    store.store(config, [store.Source(path / "records", tmp_path / "features")], NOT_BEGUN)


def test_values_that_float16_cannot_hold(made, tmp_path):
  _, path = made
  shard = sorted((path / "records").glob("*train*[0-9]"))[0]
  block = np.full((1, 4, 3), np.inf, np.float16)
  with pytest.raises(FeaturesError, match="record 0: its features are not finite"):
    features.write(tmp_path, shard, [block], "a")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "no_index", "no_file"])
def test_damage_is_one_line(made, damage):
  _, path = made
  file = sorted((path / "features").glob("*test*[0-9]"))[0]
  index = features.index_path(file)
  content, listed = file.read_bytes(), index.read_bytes()
  try:
    if damage == "flip":
      file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
      file.write_bytes(content[:-2])
    else:
      (index if damage == "no_index" else file).unlink()
    with pytest.raises(FeaturesError, match=rf"^{file}.*start again") as error:
      source(path, "test")[7].features(0)
    assert "\n" not in str(error.value)
  finally:
    file.write_bytes(content)
    index.write_bytes(listed)


def test_the_mode_needs_the_key(made, tmp_path):
  config = made[0].copy_and_resolve_references()
  config.data.store_features = False
  with pytest.raises(UserError, match=r"--mode=features: needs config\.data\.store_features=True"):
    experiment.run(config, Workdir(tmp_path / "run"), "features")


def test_the_mode_makes_features_and_stops(made, tmp_path):
  config = made[0].copy_and_resolve_references()
  config.data.features = ""
  run = Workdir(tmp_path / "run")
  experiment.run(config, run, "features")
  assert len(list((run.path / "features").glob("*.index.json"))) == 3
  assert not run.checkpoints.exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.augment": True}, r"data\.store_features: needs data\.augment=False"),
    ({"train.freeze": ()}, r"data\.store_features: needs a frozen encoder"),
    (
      {"model.image.lora_rank": 2, "model.image.lora_blocks": 1},
      r"data\.store_features: needs model\.image\.lora_rank=0",
    ),
    (
      {"model.image.name": "resnet", "model.image.spread_stage": 1},
      r"data\.store_features: needs model\.image\.spread_stage=0",
    ),
    ({"train.freeze": ("image_encoder/block1",)}, "needs a frozen encoder"),
    ({"model.image.weights": ""}, r"needs the encoder's model\.image\.weights"),
  ],
)
def test_what_would_change_the_features_is_refused(made, changes, message):
  config = made[0].copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.check(config)


def test_what_compares_all_pairs_reads_stored_features_too(made):
  _, path = made
  source = records.RecordSource(path / "records", "test", features=path / "features")
  examples, seen = [source[i] for i in range(len(source))], []

  class Model:
    def local_features(self, images, texts):
      seen.extend(images)
      return (np.zeros((len(images), 1)),) * 3

    def local_similarities(self, texts):
      return lambda images: seen.extend(images) or np.zeros((len(images), len(texts)))

  reranking.features(Model(), examples)
  zero_shot_classes.image_similarities(Model(), examples, [x.image_id for x in examples], ["edema"])
  assert len(seen) == 2 * len(source)
  assert all(isinstance(image, images.EncodedImage) for image in seen)
