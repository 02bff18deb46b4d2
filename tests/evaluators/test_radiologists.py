"""Radiologists beside a run: rows by hand, what they have not read, and a whole evaluation."""

import math

import numpy as np
import pytest

from configs.base import evaluation_set
from fakes.images import image, table
from input_pipeline.readers.chexpert import LABELS
from input_pipeline.readers.chexpert_radiologists import FOLDER
from input_pipeline.readers.raw.folders import SourceError
from plan_jax import experiment
from plan_jax.evaluators import radiologists, stored_scores
from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.results import example_scores, rows
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.runtime.workdir import Workdir
from tiny_runs import untrained

HEAD = ("zero-shot-mine", "zero-shot-v1", "toy/test")
N = 40


def study(i):
  return f"patient{i // 2}/study1"  # two images each


def write(folder, readings):
  """Tables of {file: {study: {finding: answer}}}."""
  for name, by_study in readings.items():
    lines = [
      dict.fromkeys(LABELS, 0) | {"Study": f"CheXpert-v1.0/test/{key}"} | answers
      for key, answers in by_study.items()
    ]
    table(folder / name, lines, ["Study", *LABELS])
  return folder


@pytest.fixture
def toy():
  """Scores of a run for two findings, the images, and the answers of two radiologists."""
  rng = np.random.default_rng(0)
  names = [example_id(f"i{i}", finding) for finding in ("Edema", "Fracture") for i in range(N)]
  groups = ["Edema"] * N + ["Fracture"] * N
  truth = rng.random(2 * N) < 0.4
  values = np.stack([rng.normal(size=2 * N) + truth, truth], axis=1)
  patients = [study(i % N).partition("/")[0] for i in range(2 * N)]
  scores = ExampleScores(names, groups, patients, SCORED, values)
  labels = [{"Edema": int(truth[i]), "Fracture": int(truth[N + i])} for i in range(N)]
  about = [[f"i{i}" for i in range(N)], [study(i) for i in range(N)], patients[:N]]
  images = Images(np.zeros((N, 1), np.float32), *about, ["PA"] * N, labels)
  answers = {
    name: {
      study(i): {finding: int(rng.random() < 0.5) for finding in ("Edema", "Fracture")}
      for i in range(0, N, 2)
    }
    for name in ("bc4.csv", "bc6.csv")
  }
  return scores, images, answers


def cells(made):
  return {(row.group, row.metric, row.model): row for row in made}


def test_rows_by_hand(toy, tmp_path, capsys):
  scores, images, answers = toy
  del answers["bc6.csv"][study(6)]  # whose two images are of no radiologist's rows then
  read = radiologists.readings(scores, images, write(tmp_path, answers))
  kept = 2 * (N - 2)
  text = f"radiologists have read {kept} of {2 * N} pairs (radiologist 1 is bc4.csv, radiologist 2"
  assert text in capsys.readouterr().out
  assert read.metrics == ("radiologist 1", "radiologist 2") and len(read.ids) == kept
  draws = {"resamples": 30, "seed": 1}
  got = cells(radiologists.radiologist_rows(HEAD, scores, read, {}, draws))
  known = dict(zip(scores.ids, scores.values, strict=True))
  each = {}
  for r, name in enumerate(answers, 1):
    for finding in ("Edema", "Fracture"):
      places = [i for i in range(N) if study(i) != study(6)]
      said = [answers[name][study(i)][finding] for i in places]
      score, truth = np.array([known[example_id(f"i{i}", finding)] for i in places]).T
      tp, fp, fn, tn = (
        sum((a, t) == pair for a, t in zip(said, truth, strict=True))
        for pair in ((1, 1), (1, 0), (0, 1), (0, 0))
      )
      margins = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
      by_hand = {
        "F1": 2 * tp / (2 * tp + fp + fn),
        "accuracy": (tp + tn) / len(places),
        "MCC": (tp * tn - fp * fn) / margins,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
      }
      for metric, value in by_hand.items():
        row = got[finding, metric, f"radiologist {r}"]
        assert row.value == pytest.approx(value) and row.n == N - 2
        assert row.low <= value <= row.high
        each.setdefault((finding, metric), []).append(value)
      # As many negatives as the radiologist lets through, and the most positives with that.
      reached = max(
        (score[truth == 1] >= t).mean() for t in score if (score[truth == 0] >= t).sum() <= fp
      )
      metric = f"sensitivity at the specificity of radiologist {r}"
      assert got[finding, metric, "run"].value == pytest.approx(reached, abs=1e-6)
      assert got[finding, metric, f"radiologist {r}"].value == pytest.approx(by_hand["sensitivity"])
  for (finding, metric), values in each.items():
    assert got[finding, metric, "mean radiologist"].value == pytest.approx(np.mean(values))
  mcc = [each[finding, "MCC"][0] for finding in ("Edema", "Fracture")]
  assert got["macro", "MCC", "radiologist 1"].value == pytest.approx(np.mean(mcc))
  assert got["macro", "MCC", "radiologist 1"].n == kept
  assert not [key for key in got if key[1] in THRESHOLDED and key[2] == "run"]


def test_thresholds_choose_the_findings_that_are_averaged(toy, tmp_path):
  scores, images, answers = toy
  read = radiologists.readings(scores, images, write(tmp_path, answers))
  draws = {"resamples": 0}
  whole = cells(radiologists.radiologist_rows(HEAD, scores, read, {}, draws, suffix=" at .5"))
  some = cells(radiologists.radiologist_rows(HEAD, scores, read, {"Edema": 0.3}, draws))
  assert ("Fracture", "MCC at .5", "radiologist 2") in whole
  assert ("Fracture", "MCC", "radiologist 2") not in some
  edema = whole["Edema", "MCC at .5", "radiologist 2"].value
  assert some["macro", "MCC", "radiologist 2"].value == edema
  # Its curve needs no threshold.
  at = ("Fracture", "sensitivity at the specificity of radiologist 2", "run")
  assert some[at].value == whole[at].value


def test_nothing_that_was_read(toy, tmp_path, capsys):
  scores, images, _ = toy
  other = {"bc4.csv": {"patient99999/study1": {}}}
  assert radiologists.readings(scores, images, write(tmp_path, other)) is None
  assert f"radiologists have read 0 of {2 * N} pairs" in capsys.readouterr().out
  assert radiologists.radiologist_rows(HEAD, scores, None, {}, {"resamples": 0}) == []


def test_a_whole_evaluation(tmp_path):
  untrained(tmp_path, **{"data.records": str(tmp_path / "records"), "evaluation.report_images": 1})
  run, source = Workdir(tmp_path / "a"), tmp_path / "chexpert"
  paths = [f"test/patient{100 + i}/study1/view1_frontal.jpg" for i in range(8)]
  labels = {"Edema": [0, 1] * 4, "Cardiomegaly": [0, 0, 1, 1] * 2}
  lines = [
    {"Path": path} | {name: f"{values[i]}.0" for name, values in labels.items()}
    for i, path in enumerate(paths)
  ]
  table(source / "test.csv", lines, ["Path", *LABELS])
  for i, path in enumerate(paths):
    image(source / path, 80, 64, seed=i)
  perfect = {
    f"patient{100 + i}/study1": {name: values[i] for name, values in labels.items()}
    for i in range(8)
  }
  write(
    source / FOLDER, {"bc4.csv": perfect, "bc6.csv": perfect | {"patient100/study1": {"Edema": 1}}}
  )
  chosen = evaluation_set("chexpert")
  chosen.source = str(source)
  out = Workdir(tmp_path / "out")
  experiment.evaluate_on(run.load_config(), run, chosen, str(out.path))
  made = rows.read(out.evaluation).rows
  got = {(row.group, row.metric, row.model): row for row in made if row.task == "zero-shot-ours"}
  assert got["macro", "MCC at .5", "radiologist 1"].value == 1
  assert got["Edema", "specificity at .5", "radiologist 2"].value == 0.75
  assert got["macro", "sensitivity at the specificity of radiologist 1", "run"].n == 16
  assert repr(stored_scores.remake(out.example_scores)) == repr((made, []))
  kept = example_scores.read(out.example_scores_of("zero-shot-ours@radiologists", "chexpert"))
  assert kept.values[:, 0].sum() == 8 and kept.values[:, 1].sum() == 9
  report = out.report.read_text()
  assert "radiologist 1" in report and "mean radiologist" in report
  (source / FOLDER / "bc4.csv").write_text("Study")
  with pytest.raises(SourceError, match=r"bc4\.csv: no column"):
    experiment.evaluate_on(run.load_config(), run, chosen, str(tmp_path / "again"))
