"""Detection: the encoder, files, resuming to the same bits, examples, meshes and ViTs."""

import json

import cv2
import jax
import numpy as np
import pytest

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.mesh import spread
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.detection.data import Encode, training_boxes
from plan_jax.transfer.detection.task import Detection
from plan_jax.transfer.encoder import NO_RUN, Encoder
from plan_jax.transfer.examples import iterate
from plan_jax.transfer.job import Job
from plan_jax.transfer.learner import Learner
from plan_jax.transfer.settings import DetectionSettings
from plan_jax.transfer.task import settled
from tiny_runs import mesh_of


def settings_of(folder, **more):
  small = {"image_px": 64, "channels": 16, "steps": 4, "batch_size": 8, "learning_rate": 1e-3}
  small |= {"validate_every_steps": 2, "patience": 2, "anchors": "coco"}
  return DetectionSettings(workdir=folder, records=folder, out=folder, **small | more)


def leaves(out):
  """The newest checkpoint: {path: array}."""
  checkpoints = Checkpoints(Workdir(out).checkpoints, create=False)
  state = checkpoints._manager.restore(checkpoints.latest())
  checkpoints.close()
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def test_a_frozen_encoder_stays_the_run_s(done, run):
  out, _ = done("detection")
  learned = leaves(out)
  trained = Checkpoints(Workdir(run / "a").checkpoints, create=False)
  before = trained._manager.restore(0)
  trained.close()
  for part in ("params", "batch_stats"):
    wanted = jax.tree_util.tree_leaves_with_path(before[part]["image_encoder"])
    assert wanted
    for path, leaf in wanted:
      name = f"['{part}']['encoder']{jax.tree_util.keystr(path)}"
      np.testing.assert_array_equal(learned[name], leaf, err_msg=name)
  assert not any("encoder" in name for name in learned if "opt_state" in name)


def test_files(done, folder):
  out, _ = done("detection")
  truth = json.loads((out / "truth.json").read_text())
  assert len(truth["images"]) == 24 and len(truth["categories"]) == len(radiograph.FINDINGS)
  regions = [r for e in iterate(records.RecordSource(folder, "test")) for r in e.regions]
  assert len(truth["annotations"]) == sum(len(region.boxes) for region in regions)
  for predicted in json.loads((out / "predictions.json").read_text()):
    x, y, width, height = predicted["bbox"]
    assert min(x, y, width, height) >= 0 and x + width <= 64.01 and y + height <= 64.01
  assert cv2.imread(str(out / "overlays.png")).ndim == 3


def test_stopped_and_started_again_gives_the_same_bits(done, learn, tmp_path, monkeypatch, capsys):
  whole, rows = done("detection")
  out = tmp_path / "stopped"

  class _Stop(Exception):
    pass

  measure = Detection.measure

  def once(self, state):
    value = measure(self, state)
    if int(state.step) == 4:
      raise _Stop
    return value

  with monkeypatch.context() as patch:
    patch.setattr(Detection, "measure", once)
    with pytest.raises(_Stop):
      learn("detection", out)
  again = learn("detection", out)
  assert "resumed from step 2" in capsys.readouterr().out
  before, after = leaves(whole), leaves(out)
  assert before.keys() == after.keys()
  for path in before:
    np.testing.assert_array_equal(before[path], after[path], err_msg=path)
  for a, b in zip(rows, again, strict=False):
    assert (a.group, a.metric, a.model) == (b.group, b.metric, b.model)
    np.testing.assert_equal(a.value, b.value)


def test_a_batch_is_shared_evenly(folder):
  with pytest.raises(UserError, match="batch_size=8 does not divide over 3 devices"):
    job = Job(settings_of(folder), Encoder(None, {}, NO_RUN, ""), None, mesh_of(3))
    Learner(job, None, read=None, loss=None, decode=None)


def test_a_fraction_is_of_patients_and_keeps_images_without_boxes(folder):
  half, less = (
    training_boxes(settings_of(folder, findings=("mass",), fraction=fraction))
    for fraction in (0.5, 0.375)
  )
  assert len(half.examples) == 24 and len(less.examples) == 18
  assert set(less.examples.places) < set(half.examples.places)
  assert len({example.patient_id for example in iterate(half.examples)}) == 12
  holds = [any(r.label == "mass" for r in e.regions) for e in iterate(half.examples)]
  assert half.frequencies == [sum(holds) / 24] and 0 < sum(holds) < 24


def test_an_example_holds_the_boxes_of_its_square():
  examples = (radiograph.example(0, i, 64) for i in range(20))
  example = next(example for example in examples if len(example.regions) == 1)
  name = example.regions[0].label
  encoded = Encode(("none", name), 128, 3).random_map(example, np.random.default_rng(0))
  count = len(example.regions[0].boxes)
  np.testing.assert_allclose(encoded["boxes"][:count], example.regions[0].boxes * 2, atol=1e-4)
  assert encoded["mask"].tolist() == [True] * count + [False] * (3 - count)
  assert (encoded["labels"][:count] == 1).all() and encoded["image"].shape == (128, 128, 1)
  fitted = images.fit(images.decode(example.image), 128)
  np.testing.assert_array_equal(encoded["image"][..., 0], fitted)


def test_patience():
  assert not settled([], 2)
  assert not settled([(1, 0.1), (2, 0.3), (3, 0.2)], 2)
  assert settled([(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.3)], 2)
  assert not settled([(1, 0.1), (2, 0.1)], 2)


def detection(folder, encoder, weights, mesh, out=None, **settings):
  job = Job(settings_of(folder, **settings), Encoder(encoder, weights, NO_RUN, ""), out, mesh)
  return Detection(job)


@pytest.mark.slow
def test_every_mesh_learns_alike(folder):
  """One step of a fine-tuned encoder: the devices share a batch, and its statistics."""
  encoder = ResNet(18, 0.125, stages=2)
  weights = encoder.init(jax.random.key(0), np.zeros((1, 64, 64, 1)))
  states = []
  for count in (1, 8):
    task = detection(folder, encoder, weights, mesh_of(count), frozen=False)
    rows = [task.encode.random_map(task.source[i], np.random.default_rng(0)) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    state = task.learner.initial_state()
    for _ in range(2):  # the rate of the first step is zero
      state, metrics = task.learner.update(state, spread(batch, task.learner.mesh))
    states.append(jax.device_get((state.batch_stats, metrics)))
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_vit_learns_and_goes_on(folder, tmp_path, frozen):
  """It has no running statistics; frozen, it stays as it is."""
  encoder = ViT(embed_dim=16, depth=1, num_heads=2, mlp_dim=16, grid=4)
  weights = encoder.init(jax.random.key(0), np.zeros((1, 64, 64, 1)))
  out, settings = Workdir(tmp_path), {"findings": ("mass",), "frozen": frozen}
  task = detection(folder, encoder, weights, mesh_of(1), out, **settings)
  state, again = task.fit(True), task.fit(True)
  jax.tree.map(np.testing.assert_array_equal, state, again)
  pairs = zip(
    jax.tree.leaves(state.params["encoder"]), jax.tree.leaves(weights["params"]), strict=True
  )
  assert all((a == b).all() for a, b in pairs) == frozen
  image = np.zeros((50, 90), np.uint8)
  ((corners, scores, labels),) = task.predict(state, [image])
  assert len(corners) == len(scores) == len(labels) <= 100
  assert (corners[:, 2] <= 90).all() and (corners[:, 3] <= 50).all() and (corners >= 0).all()
  assert (np.diff(scores) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("image_px", [224, 512])
def test_at_the_sizes_and_with_the_head_of_the_field(learn, tmp_path, image_px):
  flags = (f"--image_px={image_px}", "--channels=128", "--anchors=coco", "--batch_size=2")
  rows = learn("detection", tmp_path / "out", *flags, "--steps=2")
  assert {"run", "typical box"} == {row.model for row in rows}
