"""A linear probe from end to end on the phantom, and on images that can be told by their grey."""

import dataclasses
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from paths import ROOT
from plan_jax import compare
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.classification import classified_rows, scored
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.results import rows as results
from plan_jax.transfer import linear_probe
from tiny_runs import untrained

HEAD = ("linear-probe", "linear-probe-v1", "toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run that has not learned anything yet, beside its records."""
  path = tmp_path_factory.mktemp("probe")
  sizes = {"train_images": 64, "validation_images": 32, "test_images": 32}
  untrained(path, **{f"data.options.{name}": size for name, size in sizes.items()})
  return path


def arguments(run, out, *more):
  places = [f"--workdir={run / 'a'}", f"--records={run / 'records'}", f"--out={out}"]
  return linear_probe.parser().parse_args([*places, "--resamples=20", *more])


def values(rows):
  return [(row.group, row.metric, row.model, row.value, row.n) for row in rows]


def test_from_records_to_a_comparison(run, tmp_path, capsys):
  rows = linear_probe.probe(arguments(run, tmp_path / "run"))
  names = {(row.metric, row.model) for row in rows if row.group == "macro"}
  assert {("AUC", "run"), ("AUC", "chance"), ("F1", "constant"), ("MCC", "run")} <= names
  assert {row.protocol for row in rows} == {"linear-probe-v1"}
  assert any(row.metric == "threshold" for row in rows)
  kept = results.read(tmp_path / "run" / "evaluation.json").rows
  assert values(kept) == values(rows)
  with np.load(tmp_path / "run" / "probe.npz") as kept:
    assert kept["weights"].shape == (kept["mean"].size, kept["findings"].size)
  with pytest.raises(UserError, match="another --out"):
    linear_probe.probe(arguments(run, tmp_path / "run"))
  linear_probe.probe(arguments(run, tmp_path / "random", "--encoder=random", "--seed=3"))
  found, left_out = compare.compare(tmp_path / "run", tmp_path / "random", resamples=20)
  assert {"AUC", "average precision", "F1"} <= {d.metric for d in found} and not left_out
  assert "penalty" in capsys.readouterr().out


def test_a_share_of_patients_and_chosen_findings(run, tmp_path, capsys):
  rows = linear_probe.probe(arguments(run, tmp_path / "a", "--fraction=0.5", "--findings=edema"))
  assert {row.group for row in rows} <= {"macro", "edema"}
  source = records.RecordSource(run / "records", "train")
  patients = {source[i].patient_id for i in range(len(source))}
  assert f"of {round(len(patients) / 2)} patients" in capsys.readouterr().out


def test_bad_input_is_one_error(run, tmp_path):
  with pytest.raises(UserError, match="--findings: gallstones not both present and absent"):
    linear_probe.probe(arguments(run, tmp_path / "a", "--findings=gallstones"))
  with pytest.raises(UserError, match="--image_px=60 is no multiple of"):
    linear_probe.probe(arguments(run, tmp_path / "a", "--image_px=60"))
  with pytest.raises(UserError, match="no run"):
    linear_probe.probe(
      linear_probe.parser().parse_args(
        [f"--workdir={tmp_path}", f"--records={run / 'records'}", f"--out={tmp_path / 'b'}"]
      )
    )
  call = [
    sys.executable,
    "-m",
    "plan_jax.transfer.linear_probe",
    "--workdir=x",
    "--records=y",
    "--out=z",
  ]
  done = subprocess.run([*call, "--fraction=2"], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 1 and "--fraction=2 must be above 0" in done.stderr


@pytest.mark.parametrize(
  "encoder",
  [ResNet(18, width=0.125, stages=2), ViT(16, 1, 2, 16, 16, 4)],
  ids=["resnet", "vit"],
)
def test_features_are_the_mean_over_the_grid_whatever_the_batch(encoder):
  rng = np.random.default_rng(0)
  arrays = [
    rng.integers(0, 256, shape).astype(np.uint8) for shape in [(64, 64), (90, 40), (64, 80)]
  ]
  weights = encoder.init(jax.random.key(0), np.zeros((1, 64, 64, 1), np.float32))
  features = linear_probe.Features(encoder, weights, 64)
  fitted = np.stack([images.fit(image, 64) for image in arrays])[..., None]
  expected = np.asarray(encoder.apply(weights, fitted)).mean((1, 2))
  found = features.embed_images(arrays)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  many = features.embed_images(arrays * 30)  # more than a batch
  np.testing.assert_allclose(many, np.tile(expected, (30, 1)), atol=1e-5)


class Grey:
  """Its vectors are an image's mean grey, and noise."""

  def embed_images(self, arrays):
    rng = np.random.default_rng(len(arrays))
    return np.array([[image.mean() / 255, rng.normal()] for image in arrays], np.float32)


def _images(count, seed):
  rng = np.random.default_rng(seed)
  for i in range(count):
    bright, unsure = bool(rng.integers(2)), rng.random() < 0.2
    pixels = np.full((8, 8), 150 if bright else 100, np.uint8)
    labels = {"bright": -1 if unsure else int(bright), "luck": int(rng.integers(2))}
    example = Example(
      image_id=f"{seed}-{i}", study_id=f"{seed}-{i}", patient_id=f"{seed}-{i // 2}",
      image=cv2.imencode(".png", pixels)[1].tobytes(), height=8, width=8, labels=labels,
    )  # fmt: skip
    yield example


def test_what_can_be_told_is_told_and_uncertain_labels_do_not_count(capsys):
  sets = [labelled_images.embed(Grey(), _images(n, s), "x") for s, n in enumerate((200, 100, 100))]
  findings = ["bright", "luck"]
  model = linear_probe.choose(sets[0], sets[1], findings)
  found, views = scored(model.scores(sets[2].vectors), sets[2], findings)
  assert len(views) == len(found.ids) < 200
  validation = scored(model.scores(sets[1].vectors), sets[1], findings)[0]
  rows = classified_rows(HEAD, found, views, validation=validation, resamples=50)
  cells = {(r.group, r.metric, r.model): r for r in rows}
  assert cells["bright", "AUC", "run"].value == 1
  assert cells["bright", "F1", "run"].value == 1
  luck = cells["luck", "AUC", "run"]
  assert luck.low < 0.5 < luck.high
  assert cells["bright", "AUC", "run"].n == sum(s.labels["bright"] >= 0 for s in _images(100, 2))
  without = classified_rows(HEAD, found, views, validation=None, resamples=0)
  assert "F1 at .5" in {row.metric for row in without}
  capsys.readouterr()
  of_luck = scored(model.scores(sets[1].vectors), sets[1], ["", "luck"])[0]
  rows = classified_rows(HEAD, found, views, validation=of_luck, resamples=0)
  assert "no threshold: bright" in capsys.readouterr().out
  assert {row.group for row in rows if row.metric == "F1"} == {"macro", "luck"}
  fewer = dataclasses.replace(sets[0], labels=[s | {"luck": 1} for s in sets[0].labels])
  capsys.readouterr()
  one = linear_probe.choose(fewer, sets[1], findings)
  assert "only one kind of luck: the same score for all" in capsys.readouterr().out
  of_one = scored(one.scores(sets[2].vectors), sets[2], findings)[0]
  rows = classified_rows(HEAD, of_one, views, validation=None, resamples=0)
  same = {(r.group, r.metric): r.value for r in rows if r.model == "run"}
  assert same["luck", "AUC"] == 0.5 and same["bright", "AUC"] == 1
  one_kind = dataclasses.replace(sets[2], labels=[{"bright": 1}] * len(sets[2].ids))
  assert scored(model.scores(one_kind.vectors), one_kind, findings) == (None, [])
