"""A detector from end to end on the phantom: training, going on, evaluation, files, errors."""

import json

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline import images, records
from input_pipeline.conversion import convert
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from plan_jax import compare
from plan_jax.metrics.detection import METRICS
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.results import rows as results
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.mesh import spread
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import detect, fitting
from plan_jax.transfer.detection import data, detector, yolo
from plan_jax.transfer.examples import iter_of
from tiny_runs import mesh_of, tiny, untrained

SMALL = [
  "--image_px=64", "--batch_size=8", "--channels=8", "--steps=4", "--validate_every_steps=2",
  "--learning_rate=0.003", "--resamples=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run that has not learned anything yet."""
  path = tmp_path_factory.mktemp("detect")
  untrained(path)
  return path / "a"


@pytest.fixture(scope="module")
def folder(run):
  return run.parent / "records"


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(detect, "make_mesh", lambda *_: mesh_of(1))
    yield


def _detect(run, folder, out, *more):
  arguments = [f"--workdir={run}", f"--records={folder}", f"--out={out}", *SMALL, *more]
  return detect.detect(detect.parser().parse_args(arguments))


def _leaves(out):
  """Of the newest checkpoint: {path: array}."""
  checkpoints = Checkpoints(Workdir(out).checkpoints, create=False)
  state = checkpoints._manager.restore(checkpoints.latest())
  checkpoints.close()
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


@pytest.fixture(scope="module")
def done(run, folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "whole"
  return out, _detect(run, folder, out, "--compatibility=True")


def test_a_run_is_evaluated_with_its_encoder_as_it_was(done, run, folder, capsys):
  out, rows = done
  assert {row.model for row in rows} == {"run", "typical box"} and rows[0].group == "macro"
  assert all(row.data == "phantom/test" and row.task == "detection" for row in rows)
  written = results.read(Workdir(out).evaluation)
  assert written.step in (2, 4) and len(written.rows) == len(rows)
  np.testing.assert_equal([row.value for row in written.rows], [row.value for row in rows])
  config = json.loads((out / "config.json").read_text())
  assert config["frozen"] is True and config["run_step"] == 0 and config["encoder"] == "run"
  leaves = _leaves(out)
  trained = Checkpoints(Workdir(run).checkpoints, create=False)
  before = trained._manager.restore(0)
  trained.close()
  for part in ("params", "batch_stats"):
    wanted = jax.tree_util.tree_leaves_with_path(before[part]["image_encoder"])
    assert wanted
    for path, leaf in wanted:
      name = f"['{part}']['encoder']{jax.tree_util.keystr(path)}"
      np.testing.assert_array_equal(leaves[name], leaf, err_msg=name)
  assert not any("encoder" in name for name in leaves if "opt_state" in name)


def test_files(done, folder):
  out, _ = done
  truth = json.loads((out / "truth.json").read_text())
  assert len(truth["images"]) == 8 and len(truth["categories"]) == len(radiograph.FINDINGS)
  count = sum(
    len(region.boxes)
    for example in iter_of(records.RecordSource(folder, "test"))
    for region in example.regions
  )
  assert len(truth["annotations"]) == count
  for found in json.loads((out / "predictions.json").read_text()):
    x, y, width, height = found["bbox"]
    assert min(x, y, width, height) >= 0 and x + width <= 64.01 and y + height <= 64.01
  assert cv2.imread(str(out / "overlays.png")).ndim == 3
  differences, _ = compare.compare(out, out, resamples=10)
  assert {d.name for d in differences} == {"detection"} and not any(d.verdict for d in differences)
  assert {d.metric for d in differences} == set(METRICS)


def test_stopped_and_started_again_gives_the_same_bits(
  done, run, folder, tmp_path, monkeypatch, capsys
):
  whole, rows = done
  out = tmp_path / "stopped"

  class _Stop(Exception):
    pass

  measure = detector.measure

  def once(*arguments):
    value = measure(*arguments)
    if int(arguments[1].step) == 4:
      raise _Stop
    return value

  monkeypatch.setattr(detector, "measure", once)
  with pytest.raises(_Stop):
    _detect(run, folder, out)
  monkeypatch.setattr(detector, "measure", measure)
  again = _detect(run, folder, out)
  assert "resumed from step 2" in capsys.readouterr().out
  one, other = _leaves(whole), _leaves(out)
  assert one.keys() == other.keys()
  for path in one:
    np.testing.assert_array_equal(one[path], other[path], err_msg=path)
  for a, b in zip(rows, again, strict=False):
    assert (a.group, a.metric, a.model) == (b.group, b.metric, b.model)
    np.testing.assert_equal(a.value, b.value)


def test_a_finished_training_is_only_evaluated(done, run, folder, capsys):
  out, rows = done
  again = _detect(run, folder, out)
  assert "training is complete: 4 steps" in capsys.readouterr().out
  assert [row.value for row in again] == pytest.approx(
    [row.value for row in rows[: len(again)]], nan_ok=True
  )


def test_another_command_may_not_go_on_there(done, run, folder):
  with pytest.raises(UserError, match="fraction: 1.0 there, 0.5 now.*name another --out"):
    _detect(run, folder, done[0], "--fraction=0.5")


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--findings=mass,ghost"], "no box of ghost in the training split"),
    (["--image_px=72"], "no multiple of 32"),
    (["--encoder=random", "--frozen=False"], "a random encoder is frozen"),
    (["--encoder=supervised", "--frozen=True"], "a supervised one is not"),
  ],
)
def test_what_is_wrong_is_said(run, folder, tmp_path, more, message):
  if not more[0].startswith("--encoder"):
    more = [*more, "--encoder=random"]  # which needs no checkpoint
  with pytest.raises(UserError, match=message):
    _detect(run, folder, tmp_path / "out", *more)


def test_a_batch_is_shared_evenly():
  with pytest.raises(UserError, match="batch_size=8 does not divide over 3 devices"):
    detector.Detector(None, {}, _settings(), yolo.COCO_ANCHORS, ("mass",), mesh_of(3))


def _settings(**more):
  return ConfigDict(
    {
      "frozen": False, "image_px": 64, "channels": 16, "steps": 4, "batch_size": 8, "seed": 0,
      "learning_rate": 1e-3, "weight_decay": 1e-6, "validate_every_steps": 2, "patience": 2,
    } | more
  )  # fmt: skip


def test_a_fraction_is_of_patients_and_keeps_images_without_boxes(folder):
  half = data.training(folder, findings=("mass",), fraction=0.5, seed=0, image_px=64)
  less = data.training(folder, findings=("mass",), fraction=0.375, seed=0, image_px=64)
  assert len(half) == 16 and len(less) == 12 and set(less.chosen) < set(half.chosen)
  patients = {half[i].patient_id for i in range(16)}
  assert len(patients) == 8
  holds = [any(r.label == "mass" for r in half[i].regions) for i in range(16)]
  assert half.shares == [sum(holds) / 16] and 0 < sum(holds) < 16


def test_an_example_holds_the_boxes_of_its_square():
  example = next(
    example
    for example in (radiograph.example(0, i, 64) for i in range(20))
    if len(example.regions) == 1
  )
  name = example.regions[0].label
  encoded = data.Encode(("none", name), 128, 3).random_map(example, np.random.default_rng(0))
  count = len(example.regions[0].boxes)
  np.testing.assert_allclose(encoded["boxes"][:count], example.regions[0].boxes * 2, atol=1e-4)
  assert encoded["mask"].tolist() == [True] * count + [False] * (3 - count)
  assert (encoded["labels"][:count] == 1).all() and encoded["image"].shape == (128, 128, 1)
  np.testing.assert_array_equal(
    encoded["image"][..., 0], images.fit(images.decode(example.image), 128)
  )


def test_patience():
  assert not fitting.settled([], 2)
  assert not fitting.settled([(1, 0.1), (2, 0.3), (3, 0.2)], 2)
  assert fitting.settled([(1, 0.1), (2, 0.3), (3, 0.2), (4, 0.3)], 2)
  assert not fitting.settled([(1, 0.1), (2, 0.1)], 2)


@pytest.mark.slow
def test_every_mesh_learns_alike(folder):
  """One step of a fine-tuned encoder: the devices share a batch, and its statistics."""
  encoder = ResNet(18, 0.125, stages=2)
  weights = encoder.init(jax.random.key(0), np.zeros((1, 64, 64, 1)))
  source = data.training(folder, findings=(), fraction=1, seed=0, image_px=64)
  states = []
  for count in (1, 8):
    one = detector.Detector(
      encoder, weights, _settings(), yolo.COCO_ANCHORS / 6, source.findings, mesh_of(count)
    )
    encode = data.Encode(source.findings, 64, source.most)
    rows = [encode.random_map(source[i], np.random.default_rng(0)) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    state = one.learner.initial_state()
    for _ in range(2):  # the rate of the first step is zero
      state, metrics = one.learner.update(state, spread(batch, one.learner.mesh))
    states.append(jax.device_get((state.batch_stats, metrics)))
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_vit_learns_and_goes_on(folder, tmp_path, frozen):
  """Without running statistics of its own; frozen, it stays as it is."""
  encoder = ViT(embed_dim=16, depth=1, num_heads=2, mlp_dim=16, grid=4)
  weights = encoder.init(jax.random.key(0), np.zeros((1, 64, 64, 1)))
  source = data.training(folder, findings=("mass",), fraction=1, seed=0, image_px=64)
  one = detector.Detector(
    encoder, weights, _settings(frozen=frozen), yolo.COCO_ANCHORS / 6, source.findings, mesh_of(1)
  )
  validation = records.RecordSource(folder, "validation")

  def learned():
    return fitting.fit(
      one.learner, Workdir(tmp_path), source, data.Encode(source.findings, 64, source.most),
      followed=detector.BEST,
      measure=lambda state: detector.measure(one, state, iter_of(validation)),
    )  # fmt: skip

  state, again = learned(), learned()
  jax.tree.map(np.testing.assert_array_equal, state, again)
  pairs = zip(
    jax.tree.leaves(state.params["encoder"]), jax.tree.leaves(weights["params"]), strict=True
  )
  assert all((a == b).all() for a, b in pairs) == frozen
  image = np.zeros((50, 90), np.uint8)
  ((corners, scores, labels),) = one.predict(state, [image])
  assert len(corners) == len(scores) == len(labels) <= 100
  assert (corners[:, 2] <= 90).all() and (corners[:, 3] <= 50).all() and (corners >= 0).all()
  assert (np.diff(scores) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("image_px", [224, 512])
def test_at_the_sizes_and_with_the_head_of_the_field(run, folder, tmp_path, image_px):
  flags = (f"--image_px={image_px}", "--channels=128", "--anchors=coco", "--batch_size=2")
  rows = _detect(run, folder, tmp_path / "out", *flags, "--steps=2")
  assert {"run", "typical box"} == {row.model for row in rows}


@pytest.mark.slow
def test_a_supervised_detector_learns(run, tmp_path):
  """AP50 of three large findings, macro: .71 measured, .05 of the floor."""
  folder = tmp_path / "records"
  options = tiny().data.options.to_dict() | {"train_images": 1200, "test_images": 100}
  convert.convert("phantom", folder, workers=0, progress=False, **options)
  rows = _detect(
    run, folder, tmp_path / "out", "--encoder=supervised", "--batch_size=16", "--channels=16",
    "--findings=cardiomegaly,edema,effusion", "--steps=400", "--validate_every_steps=400",
  )  # fmt: skip
  cells = {(row.group, row.metric, row.model): row.value for row in rows}
  assert cells["macro", "AP50", "run"] > 0.45
  assert cells["macro", "AP50", "run"] > 4 * cells["macro", "AP50", "typical box"]
