"""Classification and segmentation from end to end on the phantom; tasks a config attaches."""

import json

import cv2
import numpy as np
import pytest

from configs import base
from experiments import mesh_of, tiny, untrained
from input_pipeline import images, phantom
from input_pipeline.errors import UserError
from plan_jax import classify, compare, evaluation_sets, probe, segment, settings
from plan_jax.downstream import attached, classifier
from plan_jax.evaluators import results, units
from plan_jax.segmentation import films
from plan_jax.workdir import Workdir

SMALL = ["--batch_size=8", "--steps=4", "--validate_every_steps=2", "--resamples=20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("downstream")
  sizes = {"train_films": 48, "validation_films": 24, "test_films": 24}
  untrained(path, **{f"data.options.{name}": size for name, size in sizes.items()})
  return path


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """Eight devices of two cores take longer to compile for."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (classify, probe, segment):
      patch.setattr(module, "make_mesh", lambda *_: mesh_of())
    yield


def learn(module, work, run, out, *more):
  places = [f"--workdir={run / 'a'}", f"--records={run / 'records'}", f"--out={out}"]
  return work(module.parser().parse_args([*places, *SMALL, *more]))


@pytest.fixture(scope="module")
def classified(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "a"
  return out, learn(classify, classify.classify, run, out)


@pytest.fixture(scope="module")
def segmented(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "a"
  return out, learn(segment, segment.segment, run, out, "--channels=4")


def test_classification(classified, run, capsys):
  out, rows = classified
  assert {(row.task, row.protocol) for row in rows} == {
    ("fine-tuned-classification", "fine-tuned-v1")
  }
  names = {(row.metric, row.model) for row in rows if row.group == "macro"}
  assert {("AUC", "run"), ("AUC", "chance"), ("F1", "constant"), ("MCC", "run")} <= names
  config = json.loads((out / "config.json").read_text())
  assert config["frozen"] is False and config["run_step"] == 0
  written = results.read(Workdir(out).evaluation)
  assert written.step in (2, 4) and len(written.rows) == len(rows)
  again = learn(classify, classify.classify, run, out)
  assert "training is complete" in capsys.readouterr().out
  np.testing.assert_equal([row.value for row in again], [row.value for row in rows])
  with pytest.raises(UserError, match="augment: True there, False now.*another --out"):
    learn(classify, classify.classify, run, out, "--augment=False")


def test_segmentation(segmented, capsys):
  out, rows = segmented
  assert {(row.task, row.protocol) for row in rows} == {("segmentation", "segmentation-v1")}
  names = {(row.metric, row.model) for row in rows if row.group == "macro"}
  assert {("Dice", "run"), ("Dice", "mean_mask"), ("Dice with empty films", "run")} <= names
  assert json.loads((out / "config.json").read_text())["frozen"] is True
  assert cv2.imread(str(out / "overlays.png")).ndim == 3
  found, left_out = compare.compare(out, out, resamples=10)
  assert {d.metric for d in found} == {"Dice", "IoU", "Dice with empty films"} and not left_out
  assert not any(d.verdict for d in found)


def test_what_is_wrong_is_said(run, tmp_path):
  with pytest.raises(UserError, match="--findings: no region of ghost"):
    learn(segment, segment.segment, run, tmp_path / "a", "--findings=ghost")
  with pytest.raises(UserError, match="no multiple of 32"):
    learn(segment, segment.segment, run, tmp_path / "b", "--image_px=72", "--encoder=random")
  with pytest.raises(UserError, match="--image_px=62 is no multiple of 8"):
    learn(classify, classify.classify, run, tmp_path / "c", "--image_px=62")
  with pytest.raises(UserError, match="--fraction=0 must be above 0"):
    learn(classify, classify.classify, run, tmp_path / "d", "--fraction=0")
  with pytest.raises(UserError, match="--steps=0 must be 1 or more"):
    learn(segment, segment.segment, run, tmp_path / "e", "--steps=0")
  with pytest.raises(UserError, match="--findings: ghost not both present and absent"):
    learn(classify, classify.classify, run, tmp_path / "f", "--findings=ghost")


def test_only_known_labels_count():
  raw = np.array([[0.5, -2.0], [1.0, 3.0]], np.float32)
  labels = np.array([[1, -1], [0, 1]], np.int32)
  value, parts = classifier.loss(raw, {"labels": labels})
  p = 1 / (1 + np.exp(-raw))
  expected = -np.mean([np.log(p[0, 0]), np.log(1 - p[1, 0]), np.log(p[1, 1])])
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert parts["known"] == 3
  assert classifier.loss(raw, {"labels": -np.ones((2, 2), np.int32)})[0] == 0
  one = phantom.study(0, 0, 64)
  encode = classifier.Encode(("ghost", *one.labels), 64, None)
  example = encode.random_map(one, np.random.default_rng(0))
  assert example["labels"].tolist() == [-1, *one.labels.values()]


def test_masks_lie_in_the_square_as_the_film_does():
  one = next(s for s in (phantom.study(0, i, 64) for i in range(20)) if len(s.regions) == 1)
  name = one.regions[0].label
  for keep in (True, False):
    encode = films.Encode(("none", name), 128, keep)
    example = encode.random_map(one, np.random.default_rng(0))
    assert example["known"].tolist() == [keep, True] and not example["masks"][..., 0].any()
  mask = images.decode(one.regions[0].mask)
  expected = cv2.resize(mask, (128, 128), interpolation=cv2.INTER_LINEAR) >= 127.5
  assert (example["masks"][..., 1] == expected).mean() > 0.999


def attach(config):
  small = dict(batch_size=8, steps=2, validate_every_steps=2, resamples=20)
  learned = config.evaluation.downstream
  learned.masks = base.downstream(
    "segment", fractions=(0.5, 1.0), encoders=("run", "random"), channels=4, **small
  )
  learned.probe = base.downstream("probe", fractions=(1.0,), encoders=("run", "random"))
  learned.elsewhere = base.downstream("detect", of="b", **small)
  return config


def test_attached_tasks_are_learned_once(run, capsys):
  config = attach(tiny().unlock())
  own = evaluation_sets.EvaluationSet("phantom", "phantom", run / "records", "test", True)
  work = Workdir(run / "a")
  found = list(attached.learned(config, work, 0, [own]))
  said = capsys.readouterr().out
  assert "downstream elsewhere is left out: evaluation set b is not given" in said
  assert [task for _, task, _, _ in found] == ["masks-0.5", "masks-1", "probe-1"]
  for chosen, task, rows, files in found:
    assert chosen is own and {row.task for row in rows} == {task}
    assert {row.data for row in rows} == {"phantom/test"}
    models = {row.model for row in rows}
    assert {"run", "random encoder"} <= models
    (file,) = files
    assert set(units.read(file).groups) <= {row.group for row in rows}
  again = list(attached.learned(config, work, 0, [own]))
  assert capsys.readouterr().out.count("found in") == 6
  for (_, _, first, _), (_, _, second, _) in zip(found, again, strict=True):
    np.testing.assert_equal([row.value for row in first], [row.value for row in second])


def test_a_share_that_has_nothing_is_left_out_and_the_rest_goes_on(run, capsys):
  config = tiny().unlock()
  config.evaluation.downstream.probe = base.downstream("probe", fractions=(0.001, 1.0))
  own = evaluation_sets.EvaluationSet("phantom", "phantom", run / "records", "test", True)
  found = list(attached.learned(config, Workdir(run / "a"), 0, [own]))
  said = capsys.readouterr().out
  assert "downstream probe-0.001, encoder run, is left out" in said
  assert [task for _, task, _, _ in found] == ["probe-1"]


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (dict(task="dance"), "downstream.x.task: is 'dance'; must be one of detect, segment"),
    (dict(task="probe", of="b"), "downstream.x.of: is 'b'"),
    (dict(task="probe", steps=3), "downstream.x.flags.*must be flags of plan_jax.probe"),
    (dict(task="probe", fractions=(2.0,)), "downstream.x.fractions"),
    (dict(task="probe", encoders=("run", "supervised")), "must begin with 'run'; there are run, r"),
    (dict(task="detect", encoders=("random",)), "must begin with 'run'"),
  ],
)
def test_an_impossible_entry_is_refused_before_work(entry, message):
  config = tiny().unlock()
  config.evaluation.downstream.x = base.downstream(**entry)
  with pytest.raises(settings.ConfigError, match=message):
    settings.check(settings.localised(config))


def test_a_local_run_learns_little():
  config = tiny(runlocal=True).unlock()
  config.evaluation.downstream.x = base.downstream("detect", steps=10_000, image_px=224)
  few = settings.localised(config).evaluation.downstream.x
  assert few.flags.steps == 4 and few.flags.image_px == 64 and few.fractions == (1.0,)
  settings.check(settings.localised(config))


@pytest.mark.slow
@pytest.mark.parametrize("module", [classify, segment])
def test_it_learns(module, tmp_path):
  """From scratch on 600 films: macro AUC, or Dice, well above the floor."""
  untrained(tmp_path, **{"data.options.train_films": 600, "data.options.test_films": 60,
                         "data.options.validation_films": 60})  # fmt: skip
  places = [f"--{k}={tmp_path / v}" for k, v in (("workdir", "a"), ("records", "records"))]
  flags = [
    "--encoder=supervised", "--steps=300", "--batch_size=16", "--learning_rate=0.003",
    "--validate_every_steps=100", "--resamples=20", "--findings=cardiomegaly,edema",
    f"--out={tmp_path / 'out'}",
  ]  # fmt: skip
  work = module.classify if module is classify else module.segment
  rows = work(module.parser().parse_args([*places, *flags]))
  metric, floor = ("AUC", "chance") if module is classify else ("Dice", "mean_mask")
  cells = {(row.group, row.metric, row.model): row.value for row in rows}
  assert cells["macro", metric, "run"] > cells["macro", metric, floor] + 0.05
