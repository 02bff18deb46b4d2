import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics

from input_pipeline import digests
from input_pipeline.errors import UserError
from plan_jax import compare
from plan_jax.evaluators import detection, segmentation_compat
from plan_jax.metrics import auc
from plan_jax.metrics.detection import METRICS, Image, detection_metrics
from plan_jax.results import boxes, example_scores, rows, word_contrasts
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.results.rows import Evaluation, Row
from plan_jax.runtime.workdir import Workdir

PATIENTS = [f"p{i // 2}" for i in range(60)]


def run(path, scores, data=None, protocol="v1"):
  """A workdir with these scores: name ("task" or "set/task") -> ExampleScores."""
  workdir = Workdir(path)
  data = data or {"own/test": "1", "more/test": "2"}
  results = []
  for name, scores_of_task in scores.items():
    attached, _, task = name.rpartition("/")
    data_of_task = f"{attached or 'own'}/test"
    results.append(Row(task, protocol, data_of_task, "all", "x", "run", 0.5, 0, 1, 3))
    example_scores.write(workdir.example_scores_of(task, attached), scores_of_task)
  digests.write_sums(workdir.example_scores)
  rows.write(workdir.evaluation, Evaluation(1, results, data))
  return path


def means(shift, groups=("a", "b"), names=("score",), seed=0, noise=0.0):
  rng = np.random.default_rng(seed)
  base = np.random.default_rng(9).normal(size=(60, len(names)))
  values = base + shift + noise * rng.normal(size=base.shape)
  of = [groups[i % len(groups)] for i in range(60)]
  return ExampleScores([example_id(f"i{i}") for i in range(60)], of, PATIENTS, tuple(names), values)


def ranked(scores):
  positive = np.arange(60) % 3 == 0
  values = np.stack([scores, positive], axis=1).astype(float)
  ids = [example_id(f"i{i}", "f") for i in range(60)]
  return ExampleScores(ids, ["f"] * 60, PATIENTS, SCORED, values)


def by_name(compared):
  return {(d.name, d.group, d.metric): d for d in compared}


def test_a_constant_gain_is_real_and_pairing_shows_it(tmp_path):
  a = run(tmp_path / "a", {"grounding": means(0.0)})
  b = run(tmp_path / "b", {"grounding": means(0.1, noise=0.01)})
  differences = by_name(compare.compare(a, b)[0])
  assert set(differences) == {("grounding", g, "score") for g in ("macro", "a", "b")}
  difference = differences["grounding", "macro", "score"]
  assert (
    difference.verdict == "better" and 0.09 < difference.change.low < difference.change.high < 0.11
  )
  assert difference.b - difference.a == pytest.approx(difference.change.value)
  back = by_name(compare.compare(b, a)[0])["grounding", "macro", "score"]
  assert back.verdict == "worse" and back.change.value == -difference.change.value


def test_noise_is_not_real(tmp_path):
  a = run(tmp_path / "a", {"grounding": means(0.0, noise=1.0, seed=1)})
  b = run(tmp_path / "b", {"grounding": means(0.0, noise=1.0, seed=2)})
  difference = by_name(compare.compare(a, b)[0])["grounding", "macro", "score"]
  assert difference.verdict == "" and difference.change.low < 0 < difference.change.high


def test_examples_that_one_side_lacks_do_not_count(tmp_path):
  first, second = means(0.0), means(1.0)
  first.values[::2] = np.nan
  second.values[:30] = np.nan
  a, b = run(tmp_path / "a", {"g": first}), run(tmp_path / "b", {"g": second})
  difference = by_name(compare.compare(a, b)[0])["g", "b", "score"]
  assert difference.change.n == 15 and difference.change.value == pytest.approx(1.0)
  assert difference.b - difference.a == pytest.approx(1.0)


def test_ranked_examples_are_compared_by_area(tmp_path):
  rng = np.random.default_rng(0)
  noise, positive = rng.normal(size=60), np.arange(60) % 3 == 0
  weak, strong = noise + 0.3 * positive, noise + 3.0 * positive
  a, b = (
    run(tmp_path / "a", {"presence": ranked(weak)}),
    run(tmp_path / "b", {"presence": ranked(strong)}),
  )
  difference = by_name(compare.compare(a, b)[0])["presence", "f", "AUC"]
  areas = [auc.auc(s, positive, np.ones((1, 60)))[0] for s in (weak, strong)]
  np.testing.assert_allclose(
    [difference.a, difference.b, difference.change.value], [*areas, areas[1] - areas[0]]
  )
  assert difference.verdict == "better"
  # The draws of both are the same: the bootstrap, done by hand.
  drawn = []
  from plan_jax.metrics import bootstrap

  for weights in bootstrap.example_weights(PATIENTS, resamples=1000, seed=0):
    drawn.append(auc.auc(strong, positive, weights) - auc.auc(weak, positive, weights))
  np.testing.assert_allclose(
    (difference.change.low, difference.change.high), bootstrap.interval(np.concatenate(drawn))
  )


def with_thresholds(path, metric, values):
  result = rows.read(Workdir(path).evaluation)
  more = [replace(result.rows[0], group=g, metric=metric, value=v) for g, v in values.items()]
  rows.write(Workdir(path).evaluation, replace(result, rows=[*result.rows, *more]))
  return path


def test_metrics_at_a_threshold_take_each_run_at_its_own(tmp_path):
  rng, positive = np.random.default_rng(1), np.arange(60) % 3 == 0
  scores = [rng.normal(size=60) + 0.3 * positive, 5 + rng.normal(size=60) + 3.0 * positive]
  a, b = (run(tmp_path / n, {"z": ranked(s)}) for n, s in zip("ab", scores, strict=True))
  # Without thresholds on both sides there are none of their figures.
  with_thresholds(a, "threshold", {"f": 0.4})
  metrics = {d.metric for d in compare.compare(a, b)[0]}
  assert metrics == {"AUC", "average precision"}
  with_thresholds(b, "threshold", {"f": 6.0})
  differences = by_name(compare.compare(a, b)[0])
  for metric, measure in {
    "F1": sklearn.metrics.f1_score,
    "accuracy": sklearn.metrics.accuracy_score,
    "MCC": sklearn.metrics.matthews_corrcoef,
  }.items():
    difference = differences["z", "f", metric]
    np.testing.assert_allclose(difference.a, measure(positive, scores[0] >= 0.4))
    np.testing.assert_allclose(difference.b, measure(positive, scores[1] >= 6.0))
    np.testing.assert_allclose(difference.change.value, difference.b - difference.a)
    assert difference.change.low <= difference.change.value <= difference.change.high
  difference = differences["z", "macro", "average precision"]
  expected = [sklearn.metrics.average_precision_score(positive, s) for s in scores]
  np.testing.assert_allclose([difference.a, difference.b], expected)
  assert difference.verdict == "better"


def test_a_threshold_of_a_half_counts_too(tmp_path):
  positive = np.arange(60) % 3 == 0
  a, b = (run(tmp_path / n, {"z": ranked(s)}) for n, s in (("a", positive * 0.4), ("b", positive)))
  for path in (a, b):
    with_thresholds(path, "F1 at .5", {"f": 0.1, "macro": 0.1})
  difference = by_name(compare.compare(a, b)[0])["z", "f", "sensitivity"]
  assert (difference.a, difference.b, difference.verdict) == (0.0, 1.0, "better")


def test_ranks_are_compared_by_their_medians_and_less_is_better(tmp_path):
  names = ("R@1 image-to-text", "rank image-to-text")
  a = run(tmp_path / "a", {"retrieval": means(50.0, ("all",), names)})
  b = run(tmp_path / "b", {"retrieval": means(20.0, ("all",), names)})
  differences = by_name(compare.compare(a, b)[0])
  assert set(differences) == {
    ("retrieval", "all", "R@1 image-to-text"),
    ("retrieval", "all", "median rank image-to-text"),
  }
  difference = differences["retrieval", "all", "median rank image-to-text"]
  assert difference.verdict == "better" and difference.change.value == pytest.approx(-30)


def test_what_cannot_be_compared_is_left_out_with_its_reason(tmp_path):
  a = {"g": means(0.0), "more/g": means(0.0), "only": means(0.0), "h": means(0.0)}
  b = {"g": means(0.1), "more/g": means(0.1), "h": means(0.1, names=("other",))}
  first = run(tmp_path / "a", a)
  result, left_out = compare.compare(
    first, run(tmp_path / "b", b, data={"own/test": "1", "more/test": "other"})
  )
  assert {d.name for d in result} == {"g"}
  assert [text.split(":")[0] for text in left_out] == ["only", "h", "more/g"]
  assert "more/test (2) and more/test (other)" in left_out[2]
  text = compare.table(result, left_out)
  assert text.startswith("3 of 3 differences are real (3 better, 0 worse): ")
  assert "left out: only: only" in text and "2 rows of single findings are not shown: --all" in text
  assert compare.table(result, left_out, every=True).count("\ng  ") == 3 == text.count("\ng  ") + 2
  fewer = ExampleScores(
    *(x[:58] for x in (means(0).ids, means(0).groups, PATIENTS)), ("score",), np.ones((58, 1))
  )
  with pytest.raises(UserError, match=r"other examples \(60 and 58\)"):
    compare.compare(first, run(tmp_path / "c", {"g": fewer}))
  with pytest.raises(UserError, match="other rules"):
    compare.compare(first, run(tmp_path / "d", {"g": means(0.0)}, protocol="v2"))


def test_protocols_of_others_on_one_side_do_not_matter(tmp_path):
  a, b = (run(tmp_path / name, {"g": means(0.0)}) for name in "ab")
  result = rows.read(Workdir(b).evaluation)
  more = replace(result.rows[0], protocol="compat-other")
  rows.write(Workdir(b).evaluation, replace(result, rows=[*result.rows, more]))
  assert len(compare.compare(a, b)[0]) == 3


def test_published_protocols_of_maps_are_compared_and_chance_is_not(tmp_path):
  rng = np.random.default_rng(0)

  def overlaps():
    """Dice above each threshold of positives, the peak of negatives; every third is negative."""
    values = rng.random((60, len(segmentation_compat.METRICS)))
    absent = np.arange(60) % 3 == 0
    values[absent, :-1], values[~absent, -1] = np.nan, np.nan
    return replace(means(0.0, ("f",)), metrics=segmentation_compat.METRICS, values=values)

  maps, points = "segmentation@compat-radzero-segmentation-v1", "grounding@compat-radzero-v2"
  sides = [
    {maps: overlaps(), points: means(shift, ("all",)), "grounding@centre": means(shift)}
    for shift in (0.0, 0.1)
  ]
  a, b = (run(tmp_path / name, side) for name, side in zip("ab", sides, strict=True))
  found = by_name(compare.compare(a, b)[0])
  assert {name for name, *_ in found} == {maps, points}
  assert found[points, "all", "score"].change.value == pytest.approx(0.1)
  assert (points, "macro", "score") not in found
  dices, shares = [], []
  for side in sides:
    values = side[maps].values
    best = np.nanmean(values[:, :-1], axis=0).argmax()
    dices.append(np.nanmean(values[:, best]))
    shares.append(np.nanmean(values[::3, -1] <= best / 100))
  for metric, pair in (("Dice", dices), ("specificity", shares)):
    one = found[maps, "f", metric]
    assert (one.a, one.b) == pytest.approx(tuple(pair))
    assert one.change.value == pytest.approx(pair[1] - pair[0])


def test_command_line(tmp_path):
  run(tmp_path / "a", {"g": means(0.0)})
  run(tmp_path / "b", {"g": means(0.1)})
  call = [sys.executable, "-m", "plan_jax.compare", str(tmp_path / "a")]
  done = subprocess.run([*call, str(tmp_path / "b")], capture_output=True, text=True, check=True)
  assert "better" in done.stdout
  done = subprocess.run([*call, str(tmp_path / "none")], capture_output=True, text=True)
  assert done.returncode == 1 and "there is no folder" in done.stderr
  (tmp_path / "empty").mkdir()
  done = subprocess.run([*call, str(tmp_path / "empty")], capture_output=True, text=True)
  assert done.returncode == 1 and "holds no evaluation" in done.stderr
  (tmp_path / "b" / "example_scores" / "g.csv").write_text("damaged")
  done = subprocess.run([*call, str(tmp_path / "b")], capture_output=True, text=True)
  assert done.returncode == 1 and "g.csv is not as it was written" in done.stderr


def detector(path, images, findings):
  run(path, {"detection": detection.detection_scores(images, findings)})
  boxes.write(path / "example_scores" / "detection.npz", images, findings)
  digests.write_sums(path / "example_scores")
  return path


def test_detectors_are_compared_by_precision_taken_anew_in_every_draw(tmp_path):
  findings = ("mass", "tube")
  images, worse = [], []
  rng = np.random.default_rng(0)
  for i in range(40):
    truth = np.array([[5, 5, 20, 20], [30, 30, 44, 50]], float)[: 1 + i % 2]
    predicted, scores = truth + rng.integers(-2, 3, truth.shape), rng.random(len(truth))
    labels = np.arange(len(truth))
    place = (f"image{i}", f"p{i // 2}", 60, 80, truth, labels)
    images.append(Image(*place, predicted, scores, labels))
    worse.append(Image(*place, predicted + 6, scores, labels))
  a, b = detector(tmp_path / "a", worse, findings), detector(tmp_path / "b", images, findings)
  differences = by_name(compare.compare(a, b, resamples=100)[0])
  ones = np.ones((1, 40))
  sides = [detection_metrics(some, 2, ones)[0] for some in (worse, images)]
  for m, metric in enumerate(METRICS):
    difference = differences["detection", "macro", metric]
    assert (difference.a, difference.b) == tuple(pytest.approx(side[:, m].mean()) for side in sides)
    assert differences["detection", "tube", metric].change.value == pytest.approx(
      sides[1][1, m] - sides[0][1, m]
    )
  assert differences["detection", "macro", "mAP .4-.75"].verdict == "better"
  same = compare.compare(b, b, resamples=20)[0]
  assert not any(d.verdict for d in same) and {d.change.value for d in same} == {0}
  kept, names = boxes.read(b / "example_scores" / "detection.npz")
  assert names == list(findings) and len(kept) == 40
  np.testing.assert_array_equal(kept[3].boxes, images[3].boxes.astype(np.float32))
  assert (kept[1].image_id, kept[1].patient_id, kept[1].height) == ("image1", "p0", 60)
  # One that learned a further finding, of which no image has a box.
  more = detector(tmp_path / "more", images, ("mass", "tube", "zebra"))
  for first, second in ((a, more), (more, a)):
    known = by_name(compare.compare(first, second, resamples=10)[0])
    assert {group for _, group, _ in known} == {"macro", "mass", "tube"}
    assert known["detection", "macro", "AP50"].patients == 20
  (b / "example_scores" / "detection.npz").write_bytes(b"damaged")
  with pytest.raises(UserError, match="detection.npz is not as it was written"):
    compare.compare(a, b)
  with pytest.raises(UserError, match="detection.npz holds no boxes"):
    boxes.read(b / "example_scores" / "detection.npz")


def test_words_are_compared_by_what_their_significance_tells_apart(tmp_path):
  kinds = [word_contrasts.KINDS[i % 3] for i in range(60)]
  rng = np.random.default_rng(0)
  ids = [example_id(f"i{i}", "0.0") for i in range(60)]
  high = np.array([kind == "finding" for kind in kinds])
  sides = []
  for name, gain in (("a", 0.2), ("b", 3.0)):
    values = np.stack([rng.normal(size=60) + gain * high, high], axis=1)
    sides.append(values[:, 0])
    run(
      tmp_path / name,
      {"terms": ExampleScores(ids, kinds, PATIENTS, word_contrasts.METRICS, values)},
    )
  differences = by_name(compare.compare(tmp_path / "a", tmp_path / "b", resamples=100)[0])
  assert {metric for _, _, metric in differences} == set(word_contrasts.CONTRASTS)
  difference = differences["terms", "all", "AUC finding against rest"]
  assert [difference.a, difference.b] == pytest.approx(
    [sklearn.metrics.roc_auc_score(high, s) for s in sides]
  )
  assert difference.verdict == "better"


def test_few_patients_get_no_verdict(tmp_path):
  first, second = means(0.0), means(1.0)
  few = [f"p{i % 19}" for i in range(60)]
  a, b = (
    run(tmp_path / f"{name}-few", {"grounding": replace(some, patients=few)})
    for name, some in (("a", first), ("b", second))
  )
  result, left_out = compare.compare(a, b, resamples=50)
  assert result[0].change.low > 0 and not any(d.verdict for d in result)
  text = compare.table(result, left_out)
  assert "0 of 0 differences are real" in text
  assert f"{len(result)} more are not judged: 19 patients or fewer are behind them, 20 are" in text
