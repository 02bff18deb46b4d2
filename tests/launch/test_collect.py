"""The tables of a study: means over seeds, chance baselines, paired differences."""

import json
import re

import numpy as np
import pytest
from scipy import stats
from studies import (
  AUC,
  IOU,
  POINTING,
  RECALL,
  WITH_SET,
  convert_sets,
  error_of,
  load,
  row,
  seeds,
  write_run,
)

from input_pipeline.errors import UserError
from launch import collect, sweep
from plan_jax.results import rows
from plan_jax.results.example_scores import ExampleScores, example_id

GROUPS = ["a", "a", "b", "b", "b", "a"]
PATIENTS = ["p", "q", "p", "r", "s", "s"]
MIOU = "grounding/macro/mIoU"


def grounding(iou, ids=range(6)):
  """ExampleScores with the mIoU [6] given, and a pointing of 1 - mIoU."""
  values = np.stack([iou, 1 - iou], 1)
  names = [example_id(f"image{i}", "a phrase") for i in ids]
  return ExampleScores(names, GROUPS, PATIENTS, ("mIoU", "pointing"), values)


def retrieval(recall):
  names = [example_id(f"image{i}") for i in range(6)]
  return ExampleScores(names, ["report"] * 6, PATIENTS, (RECALL[2],), recall[:, None])


def macro(values):
  groups = np.array(GROUPS)
  return np.mean([values[groups == name].mean() for name in "ab"])


def score(run, iou, recall, auc, ids=range(6)):
  """Writes the results of a run, with chance baselines."""
  results = [row(IOU, macro(iou)), row(POINTING, macro(1 - iou)), row(AUC, auc)]
  results += [row(RECALL, recall.mean(), gallery=6), row(RECALL, 5 / 6, "chance")]
  results += [row(IOU, 0.1 + run.config.seed / 10, "random")]
  write_run(run, results, {"grounding": grounding(iou, ids), "retrieval": retrieval(recall)})


@pytest.fixture
def scored(tmp_path):
  """Two methods over three seeds (one of the second's is missing) and one on other images."""
  method, noisy = {"alignment.beta": 0.1}, {"data.options.seed": 1}
  other = noisy | {"alignment.beta": 0.3, "data.options.seed": 2}
  both = [*seeds(3), *(method | seed for seed in seeds(3))]
  runs = load(tmp_path, [*both, noisy, noisy | method, other])
  rng = np.random.default_rng(0)
  iou, recall, auc = rng.random((9, 6)), rng.integers(0, 2, (9, 6)).astype(float), rng.random(9)
  for i, run in enumerate(runs):
    ids = {6: range(10, 16), 7: range(10, 16), 8: range(20, 26)}.get(i, range(6))
    if i != 4:
      score(run, iou[i], recall[i], auc[i], ids)
  return runs, iou, recall, auc


def collected(runs, tmp_path, metrics="terms/all/AUC", against=collect.REFERENCE):
  text = collect.write_tables(runs, tmp_path / "out", collect.columns(metrics), against)
  assert (tmp_path / "out" / "table.md").read_text() == text
  return re.sub(" +", " ", text), json.loads((tmp_path / "out" / "table.json").read_text())


def drawn(values, groups):
  """The interval of values [S, 6] by plain loops, with the bootstrap's draws of patients."""
  names, count = sorted(set(PATIENTS)), 20  # resamples of tiny

  def mean(of_seed, chosen):
    examples = list(zip(groups, of_seed, PATIENTS, strict=True))
    kept = [(g, v) for i in chosen for g, v, p in examples if p == names[i]]
    return np.mean([np.mean([v for g, v in kept if g == name]) for name in {g for g, _ in kept}])

  members = np.random.default_rng(0).integers(0, len(names), (count, len(names)))
  draws = [np.mean([mean(of_seed, chosen) for of_seed in values]) for chosen in members]
  each = [mean(of_seed, range(len(names))) for of_seed in values]
  spread = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each) if len(each) > 1 else 0
  value = np.mean(each)
  return value + np.hypot(np.percentile(draws, [2.5, 97.5]) - value, spread) * [-1, 1]


def test_means_over_seeds_and_their_intervals(scored, tmp_path):
  runs, iou, recall, auc = scored
  text, content = collected(runs, tmp_path)
  lines = {line["row"]: line for line in content["rows"]}
  noisy, last = "data.options.seed=1", "data.options.seed=2,alignment.beta=0.3"
  assert list(lines) == ["(base)", "alignment.beta=0.1", noisy, f"{noisy},alignment.beta=0.1", last]
  for label, at in (("(base)", [0, 1, 2]), ("alignment.beta=0.1", [3, 5])):
    values = lines[label]["values"]
    assert len(lines[label]["seeds"]) == len(at)
    got = values[MIOU]
    assert got["value"] == pytest.approx(np.mean([macro(v) for v in iou[at]]))
    assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(iou[at], GROUPS)))
    got = values["retrieval/all/R@5 image-to-text"]
    assert got["value"] == pytest.approx(recall[at].mean())
    assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(recall[at], ["all"] * 6)))
    got = values["terms/all/AUC"]
    low, high = stats.t.interval(0.95, len(at) - 1, auc[at].mean(), stats.sem(auc[at]))
    assert (got["value"], got["low"], got["high"]) == pytest.approx((auc[at].mean(), low, high))
  alone = lines[noisy]["values"]
  assert alone["terms/all/AUC"]["low"] is None and alone[MIOU]["low"] is not None
  assert content["seeds_alone"] == ["terms/all/AUC"] and r"| terms AUC \* |" in text
  assert "8 of 9 runs are complete; missing or incomplete: alignment.beta=0.1,seed=1." in text
  assert re.search(r"No run has grounding/macro/signed CNR, .*R@5 text-to-image", text)
  assert "20 bootstrap draws of patients" in text and "phantom/test" in text
  assert f"| (base) | 3 | {lines['(base)']['values'][MIOU]['value']:.3f} [" in text


def test_chance_baselines_have_rows_of_their_own(scored, tmp_path):
  text, content = collected(scored[0], tmp_path)
  lines = {(line["model"], line["data"]): line for line in content["chance_baselines"]}
  base = lines["random", "(base), phantom/test"]
  # Seeds 0, 1, 2 of the first method, 0 and 2 of the second.
  assert base["runs"] == 5
  got = base["values"][MIOU]
  assert got["value"] == pytest.approx(np.mean([0.1, 0.2, 0.3, 0.1, 0.3])) and got["low"] is None
  assert ("chance", "data.options.seed=1, phantom/test") in lines and len(lines) == 6
  assert "| chance: random on (base), phantom/test | - | 0.200 | - |" in text


def test_differences_are_paired_by_seed_and_example(scored, tmp_path):
  runs, iou, _, auc = scored
  text, content = collected(runs, tmp_path)
  first, second = content["differences"]
  assert (first["row"], first["against"], first["seeds"]) == (
    "alignment.beta=0.1",
    "(base)",
    [0, 2],
  )
  apart = iou[[3, 5]] - iou[[0, 2]]
  got = first["values"][MIOU]
  assert got["value"] == pytest.approx(np.mean([macro(v) for v in apart]))
  assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(apart, GROUPS)))
  got, change = first["values"]["terms/all/AUC"], auc[[3, 5]] - auc[[0, 2]]
  expected = stats.t.interval(0.95, 1, change.mean(), stats.sem(change))
  assert (got["low"], got["high"]) == pytest.approx(expected)
  # On other images, against the reference of those images; where there is none, a sentence.
  assert second["row"] == "data.options.seed=1,alignment.beta=0.1"
  assert second["against"] == "data.options.seed=1" and second["seeds"] == [0]
  assert second["values"][MIOU]["value"] == pytest.approx(macro(iou[7] - iou[6]))
  starts = [sentence.split(" is not compared")[0] for sentence in content["left_out"]]
  assert starts == ["data.options.seed=1", "data.options.seed=2,alignment.beta=0.3"]
  assert all(sentence in text for sentence in content["left_out"])
  _, content = collected(runs, tmp_path, against="alignment.beta=0.1")
  assert {d["row"]: d["against"] for d in content["differences"]} == {
    "(base)": "alignment.beta=0.1",
    "data.options.seed=1": "data.options.seed=1,alignment.beta=0.1",
  }
  text, content = collected(runs[3:6], tmp_path)
  assert content["differences"] == []
  assert "No paired differences: the reference row (base) has no complete run." in text


def test_a_method_is_compared_with_the_reference_of_its_training_data(tmp_path):
  worse, method = {"data.options.wrong_sentence_fraction": 0.5}, {"alignment.beta": 0.1}
  runs = load(tmp_path, [{}, worse, worse | method])
  for run in runs:
    score(run, np.arange(6) / 10, np.ones(6), 0.5)
  _, content = collected(runs, tmp_path)
  label = "data.options.wrong_sentence_fraction=0.5"
  pairs = [(d["row"], d["against"]) for d in content["differences"]]
  assert pairs == [(label, "(base)"), (f"{label},alignment.beta=0.1", label)]


def test_without_example_scores_the_interval_is_of_the_seeds(tmp_path):
  runs = load(tmp_path, [*seeds(2), {"data.options.seed": 1}, {"alignment.beta": 0.1, "seed": 5}])
  for i, run in enumerate(runs):
    write_run(run, [row(IOU, i / 10), *([row(AUC, 0.5)] if i < 2 else [])])
  text, content = collected(runs, tmp_path)
  got = content["rows"][0]["values"][MIOU]
  assert (got["low"], got["high"]) == pytest.approx(stats.t.interval(0.95, 1, 0.05, 0.05))
  assert content["differences"] == [] and "no seed in common with (base)" in text
  assert "| alignment.beta=0.1 | 1 | 0.300 | - |" in text


def test_what_cannot_be_collected_is_named(scored, tmp_path):
  runs, iou, recall, _ = scored
  with pytest.raises(UserError, match=r"no run has x/y/z; there are grounding/macro/mIoU, "):
    collected(runs, tmp_path, metrics="x/y/z")
  before = rows.read(runs[1].workdir.evaluation).rows
  write_run(runs[1], [*before, row(IOU, 0.6, protocol="compat-other")])
  collected(runs, tmp_path)  # a protocol of others may have a metric of the same name
  score(runs[1], iou[1], recall[1], 0.5, ids=range(1, 7))
  with pytest.raises(UserError, match=r"seed=1 and .*seed=0 do not rest on the same grounding"):
    collected(runs, tmp_path)
  (runs[1].workdir.example_scores / "grounding.csv").write_text("image_id\n")
  with pytest.raises(UserError, match=r"grounding\.csv is not as it was.*--mode=evaluate"):
    collected(runs, tmp_path)
  write_run(runs[1], [row(IOU, 0.5), row(IOU, 0.6, protocol="v2")])
  with pytest.raises(UserError, match="run has grounding/macro/mIoU on several data"):
    collected(runs, tmp_path)


def test_the_results_on_an_attached_set(tmp_path, capsys, monkeypatch):
  convert_sets(monkeypatch)
  sets = ["--config.evaluation.sets.other.source=/images"]
  runs = load(tmp_path, seeds(2), sets, WITH_SET)
  iou = np.random.default_rng(0).random((2, 6))
  for run, values in zip(runs, iou, strict=True):
    own, there = row(IOU, 0.9), row(IOU, macro(values), data="other/test")
    by_example = {"grounding": grounding(np.full(6, 0.9)), "other/grounding": grounding(values)}
    write_run(run, [own, there, row(IOU, 0.1, "random", data="other/test")], by_example)
  argv = [f"--config={tmp_path / 'study.py'}", f"--out={tmp_path / 'out'}", "--mode=collect"]
  sweep.main([*argv, "--set=other", "--", *sets])
  assert "other/test" in capsys.readouterr().out
  content = json.loads((tmp_path / "out" / "table_other.json").read_text())
  got = content["rows"][0]["values"][MIOU]
  assert got["value"] == pytest.approx(np.mean([macro(v) for v in iou]))
  assert (got["low"], got["high"]) == pytest.approx(tuple(drawn(iou, GROUPS)))
  assert content["data"] == ["other/test"] and len(content["chance_baselines"]) == 1
  assert not (tmp_path / "out" / "table.json").exists()
  for mode in ("run", "print", "collect"):
    error = error_of(capsys, *argv[:2], f"--mode={mode}", "--set=others", "--", *sets)
    assert "--set=others: seed=0 has no such evaluation set with data; it has other (" in error
  write_run(runs[0], [row(IOU, 0.9), row(IOU, 0.1, "random", data="other/test")])
  runs[1].workdir.evaluation.unlink()
  assert "no run has a value on it" in error_of(capsys, *argv, "--set=other", "--", *sets)
