"""A linear probe from end to end on the phantom, and on images of two grey levels."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest

from input_pipeline import images, records
from input_pipeline.example import Example
from input_pipeline.locks import LockedError, lock
from plan_jax import compare
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.classification import classified_rows, scored
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.transfer import linear_probe
from tiny_runs import mesh_of

HEAD = ("linear-probe", "linear-probe-v1", "toy")


def test_from_records_to_a_comparison(done, learn, tmp_path, capsys):
  out, rows = done("linear_probe")
  names = {(row.metric, row.model) for row in rows if row.group == "macro"}
  assert {("F1", "constant"), ("MCC", "run")} <= names
  assert any(row.metric == "threshold" for row in rows)
  with np.load(out / "probe.npz") as kept:
    assert kept["weights"].shape == (kept["mean"].size, kept["findings"].size)
  learn("linear_probe", tmp_path / "random", "--encoder=random", "--seed=3")
  differences, left_out = compare.compare(out, tmp_path / "random", resamples=20)
  assert {"AUC", "average precision", "F1"} <= {d.metric for d in differences} and not left_out
  assert "penalty" in capsys.readouterr().out


def test_a_share_of_patients_and_chosen_findings(learn, folder, tmp_path, capsys):
  rows = learn("linear_probe", tmp_path / "a", "--fraction=0.5", "--findings=edema")
  assert {row.group for row in rows} <= {"macro", "edema"}
  source = records.RecordSource(folder, "train")
  patients = {source[i].patient_id for i in range(len(source))}
  assert f"of {round(len(patients) / 2)} patients" in capsys.readouterr().out


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
  features = linear_probe.Features(encoder, weights, 64, mesh_of())
  fitted = np.stack([images.fit(image, 64) for image in arrays])[..., None]
  expected = np.asarray(encoder.apply(weights, fitted)).mean((1, 2))
  embeddings = features.embed_images(arrays)
  np.testing.assert_allclose(embeddings, expected, atol=1e-5)
  many = features.embed_images(arrays * 30)  # more than a batch
  np.testing.assert_allclose(many, np.tile(expected, (30, 1)), atol=1e-5)


class Grey:
  """Its embeddings are an image's mean grey, and noise."""

  def embed_images(self, arrays):
    rng = np.random.default_rng(len(arrays))
    return np.array([[image.mean() / 255, rng.normal()] for image in arrays], np.float32)


def _images(count, seed):
  rng = np.random.default_rng(seed)
  for i in range(count):
    bright, unsure = bool(rng.integers(2)), rng.random() < 0.2
    pixels = np.full((8, 8), 150 if bright else 100, np.uint8)
    labels = {"bright": -1 if unsure else int(bright), "luck": int(rng.integers(2))}
    yield Example(
      image_id=f"{seed}-{i}",
      study_id=f"{seed}-{i}",
      patient_id=f"{seed}-{i // 2}",
      image=cv2.imencode(".png", pixels)[1].tobytes(),
      height=8,
      width=8,
      labels=labels,
    )


def test_what_can_be_told_is_told_and_uncertain_labels_do_not_count(capsys):
  sets = [labelled_images.embed(Grey(), _images(n, s), "x") for s, n in enumerate((200, 100, 100))]
  findings = ["bright", "luck"]
  model = linear_probe.choose(sets[0], sets[1], findings)
  scores, views = scored(model.scores(sets[2].embeddings), sets[2], findings)
  assert len(views) == len(scores.ids) < 200
  validation = scored(model.scores(sets[1].embeddings), sets[1], findings)[0]
  rows = classified_rows(HEAD, scores, views, validation=validation, resamples=50)
  cells = {(r.group, r.metric, r.model): r for r in rows}
  assert cells["bright", "AUC", "run"].value == 1
  assert cells["bright", "F1", "run"].value == 1
  luck = cells["luck", "AUC", "run"]
  assert luck.low < 0.5 < luck.high
  assert cells["bright", "AUC", "run"].n == sum(s.labels["bright"] >= 0 for s in _images(100, 2))
  without = classified_rows(HEAD, scores, views, validation=None, resamples=0)
  assert "F1 at .5" in {row.metric for row in without}
  capsys.readouterr()
  of_luck = scored(model.scores(sets[1].embeddings), sets[1], ["", "luck"])[0]
  rows = classified_rows(HEAD, scores, views, validation=of_luck, resamples=0)
  assert "no threshold: bright" in capsys.readouterr().out
  assert {row.group for row in rows if row.metric == "F1"} == {"macro", "luck"}
  fewer = dataclasses.replace(sets[0], labels=[s | {"luck": 1} for s in sets[0].labels])
  capsys.readouterr()
  fitted = linear_probe.choose(fewer, sets[1], findings)
  assert "only one kind of luck: the same score for all" in capsys.readouterr().out
  of_one = scored(fitted.scores(sets[2].embeddings), sets[2], findings)[0]
  rows = classified_rows(HEAD, of_one, views, validation=None, resamples=0)
  same = {(r.group, r.metric): r.value for r in rows if r.model == "run"}
  assert same["luck", "AUC"] == 0.5 and same["bright", "AUC"] == 1
  one_kind = dataclasses.replace(sets[2], labels=[{"bright": 1}] * len(sets[2].ids))
  assert scored(model.scores(one_kind.embeddings), one_kind, findings) == (None, [])


def test_a_second_start_is_refused(learn, tmp_path):
  with lock(tmp_path / "out"), pytest.raises(LockedError, match="out is in use by process"):
    learn("linear_probe", tmp_path / "out")
