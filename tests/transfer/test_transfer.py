"""Classification and segmentation from end to end on the phantom; tasks a config attaches."""

import json
import shutil

import cv2
import numpy as np
import pytest

from configs import base
from input_pipeline import images
from input_pipeline.conversion import convert
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer
from plan_jax import compare
from plan_jax import config as config_lib
from plan_jax.evaluators import datasets
from plan_jax.inference import load as grounder
from plan_jax.results import example_scores
from plan_jax.results import rows as results
from plan_jax.runtime.checkpoints import Checkpoints
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from plan_jax.transfer import (
  attached,
  classifier,
  classify,
  detect,
  encoder,
  fitting,
  linear_probe,
  segment,
)
from plan_jax.transfer.segmentation import data
from tiny_runs import mesh_of, tiny, untrained

SMALL = ["--batch_size=8", "--steps=4", "--validate_every_steps=2", "--resamples=20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("downstream")
  sizes = {"train_images": 48, "validation_images": 24, "test_images": 24}
  untrained(path, **{f"data.options.{name}": size for name, size in sizes.items()})
  return path


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """Eight devices of two cores take longer to compile for."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (classify, detect, linear_probe, segment):
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
  assert {("Dice", "run"), ("Dice", "mean_mask"), ("Dice with empty images", "run")} <= names
  assert json.loads((out / "config.json").read_text())["frozen"] is True
  assert cv2.imread(str(out / "overlays.png")).ndim == 3
  found, left_out = compare.compare(out, out, resamples=10)
  assert {d.metric for d in found} == {"Dice", "IoU", "Dice with empty images"} and not left_out
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
  one = radiograph.example(0, 0, 64)
  encode = classifier.Encode(("ghost", *one.labels), 64, None)
  example = encode.random_map(one, np.random.default_rng(0))
  assert example["labels"].tolist() == [-1, *one.labels.values()]


def test_masks_lie_in_the_square_as_the_image_does():
  one = next(s for s in (radiograph.example(0, i, 64) for i in range(20)) if len(s.regions) == 1)
  name = one.regions[0].label
  for keep in (True, False):
    encode = data.Encode(("none", name), 128, keep)
    example = encode.random_map(one, np.random.default_rng(0))
    assert example["known"].tolist() == [keep, True] and not example["masks"][..., 0].any()
  mask = images.decode(one.regions[0].mask)
  expected = cv2.resize(mask, (128, 128), interpolation=cv2.INTER_LINEAR) >= 127.5
  assert (example["masks"][..., 1] == expected).mean() > 0.999


def attach(config):
  small = dict(batch_size=8, steps=2, validate_every_steps=2, resamples=20)
  learned = config.evaluation.transfer
  learned.masks = base.downstream(
    "segment", fractions=(0.5,), encoders=("run", "random"), channels=4, **small
  )
  learned.probe = base.downstream("probe", fractions=(1.0,), encoders=("run", "random"))
  learned.elsewhere = base.downstream("detect", of="b", **small)
  return config


@pytest.fixture(scope="module")
def model(run):
  return grounder.load(run / "a")


def own(run):
  return datasets.EvaluationSet("phantom", "phantom", run / "records", "test", True)


def test_attached_tasks_are_learned_once(run, model, capsys):
  config = attach(tiny().unlock())
  work = Workdir(run / "a")
  found = list(attached.learned(config, work, model, [own(run)]))
  said = capsys.readouterr().out
  assert "downstream elsewhere is left out: evaluation set b is not given" in said
  assert [task for _, task, _, _ in found] == ["masks-0.5", "probe-1"]
  for chosen, task, rows, files in found:
    assert chosen == own(run) and {row.task for row in rows} == {task}
    assert {row.data for row in rows} == {"phantom/test"}
    others = [row for row in rows if row.model == "random encoder"]
    assert any(row.low < row.value < row.high for row in others), others
    (file,) = files
    assert set(example_scores.read(file).groups) <= {row.group for row in rows}
  again = list(attached.learned(config, work, model, [own(run)]))
  assert capsys.readouterr().out.count("downstream: found in") == 4
  for (_, _, first, _), (_, _, second, _) in zip(found, again, strict=True):
    np.testing.assert_equal([row.value for row in first], [row.value for row in second])


def probed(config, run, model):
  ((_, _, rows, _),) = attached.learned(config, Workdir(run / "a"), model, [own(run)])
  return next(r.value for r in rows if (r.group, r.metric, r.model) == ("macro", "AUC", "run"))


@pytest.mark.slow
def test_other_weights_are_learned_on_anew(run, tmp_path, capsys):
  """Even where the same step of the same folder holds them; and --out belongs to one encoder."""
  shutil.copytree(run / "a", tmp_path / "a", ignore=shutil.ignore_patterns("downstream"))
  shutil.copytree(run / "records", tmp_path / "records")
  config = tiny().unlock()
  config.evaluation.transfer.probe = base.downstream("probe", fractions=(1.0,))
  before = probed(config, tmp_path, grounder.load(tmp_path / "a"))
  learn(segment, segment.segment, tmp_path, tmp_path / "out", "--channels=4")
  checkpoints = Checkpoints(tmp_path / "a" / "checkpoints", keep_last=2)
  parts = assemble(tiny(seed=9), tokenizer.Tokenizer(tmp_path / "a" / "tokenizer"))
  state = parts.initial_state()
  checkpoints.save(3, state.replace(step=state.step + 3))
  checkpoints.close()
  first, other = (grounder.load(tmp_path / "a", step=step) for step in (0, 3))
  assert probed(config, tmp_path, first) == before
  assert "downstream: found in" in capsys.readouterr().out
  after = probed(config, tmp_path, other)
  said = capsys.readouterr().out
  assert "downstream: found in" not in said
  assert "at step 3" in said
  assert after != before
  with pytest.raises(UserError, match="run_weights: .* there, .* now.*another --out"):
    learn(segment, segment.segment, tmp_path, tmp_path / "out", "--channels=4")
  learn(segment, segment.segment, tmp_path, tmp_path / "out", "--channels=4", "--step=0")


@pytest.mark.slow
def test_what_was_killed_while_it_wrote_is_not_done(run, model, monkeypatch, capsys):
  config = tiny().unlock()
  small = dict(batch_size=8, steps=2, validate_every_steps=2, channels=8, image_px=64)
  config.evaluation.transfer.boxes = base.downstream("detect", fractions=(1.0,), **small)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(detect.pictures, "write", killed)
    with pytest.raises(KeyboardInterrupt):
      list(attached.learned(config, Workdir(run / "a"), model, [own(run)]))
  ((_, _, _, files),) = attached.learned(config, Workdir(run / "a"), model, [own(run)])
  assert "training is complete" in capsys.readouterr().out
  assert [file.name for file in files] == ["detection.csv", "detection.npz"]


def test_a_share_that_has_nothing_is_left_out_and_the_rest_goes_on(run, model, capsys):
  config = tiny().unlock()
  config.evaluation.transfer.probe = base.downstream("probe", fractions=(0.001, 1.0))
  found = list(attached.learned(config, Workdir(run / "a"), model, [own(run)]))
  said = capsys.readouterr().out
  assert "downstream probe-0.001, encoder run, is left out" in said
  assert [task for _, task, _, _ in found] == ["probe-1"]


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (dict(task="dance"), "downstream.x.task: is 'dance'; must be one of detect, segment"),
    (dict(task="probe", of="b"), "downstream.x.of: is 'b'"),
    (
      dict(task="probe", steps=3),
      "downstream.x.flags.*must be flags of plan_jax.transfer.linear_probe",
    ),
    (dict(task="probe", fractions=(2.0,)), "downstream.x.fractions"),
    (dict(task="probe", encoders=("run", "supervised")), "must begin with 'run'; there are run, r"),
    (dict(task="detect", encoders=("random",)), "must begin with 'run'"),
    (dict(task="segment", empty_images="droop"), "x.flags: .*invalid choice: 'droop'"),
    (dict(task="segment", steps=0), "x.flags: --steps=0 must be 1 or more"),
    (dict(task="detect", frozen=False, encoders=("run", "random")), "random encoder is frozen"),
    (dict(task="classify", learning_rate=0), "x.flags: --learning_rate=0.0 must be above 0"),
    (dict(task="probe", image_px=-64), "x.flags: --image_px=-64 must not be negative"),
  ],
)
def test_an_impossible_entry_is_refused_before_work(entry, message):
  config = tiny().unlock()
  config.evaluation.transfer.x = base.downstream(**entry)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.check(config_lib.localised(config))


def test_what_is_learned_is_scored_on_the_test_split_alone():
  config = tiny(**{"evaluation.split": "validation"}).unlock()
  config.evaluation.transfer.x = base.downstream("probe")
  with pytest.raises(config_lib.ConfigError, match="config.evaluation.split: is 'validation'"):
    config_lib.check(config)
  config.evaluation.transfer.x.fractions = ()
  config_lib.check(config)


def folder_of(tmp_path, splits):
  """Records of images: (split, label, whether a box)."""
  rng = np.random.default_rng(0)
  lines = ["image,text,split,patient_id,labels,boxes"]
  for i, (split, labels, box) in enumerate(splits):
    cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (64, 64), np.uint8))
    boxes = json.dumps([{"label": box, "x": 8, "y": 8, "w": 20, "h": 20}]) if box else "[]"
    lines.append(f'{i}.png,,{split},p{i},{labels},"{boxes.replace(chr(34), chr(34) * 2)}"')
  (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
  convert.convert("folder", tmp_path / "r", source=str(tmp_path), workers=0, progress=False)
  return tmp_path / "r"


BOTH = [("train", f"mass={i % 2}", "mass" * (i % 2)) for i in range(8)]


@pytest.mark.parametrize(
  ("module", "work"), [(detect, detect.detect), (segment, segment.segment),
                       (classify, classify.classify), (linear_probe, linear_probe.probe)]
)  # fmt: skip
def test_splits_with_nothing_to_score_are_told_before_training(
  module, work, run, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(fitting, "_loop", None)  # nothing may be trained
  records = folder_of(tmp_path, [*BOTH, ("test", "mass=0", ""), ("test", "mass=0", "")])
  flags = [f"--workdir={run / 'a'}", f"--records={records}", f"--out={tmp_path / 'o'}"]
  arguments = module.parser().parse_args([*flags, "--image_px=64"])
  with pytest.raises(UserError, match="test split of .* has no .*: nothing to score"):
    work(arguments)
  assert "step" not in capsys.readouterr().out.replace("at step", "")


def test_a_validation_split_that_tells_nothing_is_none(run, tmp_path, capsys):
  rest = [("validation", "mass=0", "")] * 2 + [("test", f"mass={i}", "mass" * i) for i in (0, 1)]
  records = folder_of(tmp_path, [*BOTH, *rest])
  flags = [
    f"--workdir={run / 'a'}",
    f"--records={records}",
    "--image_px=64",
    *SMALL,
    "--patience=1",
  ]
  for module, work in ((segment, segment.segment), (classify, classify.classify)):
    out = tmp_path / module.__name__
    rows = work(module.parser().parse_args([*flags, f"--out={out}"]))
    said = capsys.readouterr().out
    assert "the validation split has no" in said and "trained steps 1 to 4" in said
    assert any(row.metric.endswith(" at .5") for row in rows)


def test_no_finding_may_be_called_as_the_figures_over_all_are(tmp_path):
  with pytest.raises(UserError, match="a finding is called 'macro'.*rename it"):
    folder_of(tmp_path, [("train", "macro=1", ""), ("test", "macro=0", "")])


def test_a_projector_is_no_part_of_the_encoder():
  config = tiny(**{"model.image.projector": 24})
  fresh = encoder.encoder_of("nowhere", config, fresh=True, image_px=64, seed=0)
  assert not any(name.startswith("projector") for name in fresh.weights["params"])
  image = np.zeros((1, 64, 64, 1), np.float32)
  features, _ = encoder.pooled(fresh.module, fresh.weights, image, train=False)
  assert features.shape == (1, 16)


def test_a_local_run_learns_little():
  config = tiny(runlocal=True).unlock()
  config.evaluation.transfer.x = base.downstream("detect", steps=10_000, image_px=224)
  few = config_lib.localised(config).evaluation.transfer.x
  assert few.flags.steps == 4 and few.flags.image_px == 64 and few.fractions == (1.0,)
  config_lib.check(config_lib.localised(config))


@pytest.mark.slow
@pytest.mark.parametrize("module", [classify, segment])
def test_it_learns(module, tmp_path):
  """From scratch on 600 images: macro AUC, or Dice, well above the floor."""
  untrained(tmp_path, **{"data.options.train_images": 600, "data.options.test_images": 60,
                         "data.options.validation_images": 60})  # fmt: skip
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
