"""The bootstrap: means, intervals that cover, patients drawn whole, medians."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from plan_jax.metrics import bootstrap


def _brute(values, groups, clusters, weights):
  """Means by group and macro of one draw, by plain loops; weights: cluster -> times drawn."""
  means = {}
  for name in sorted(set(groups)):
    total = count = 0.0
    for value, group, cluster in zip(values, groups, clusters, strict=True):
      if group == name and not math.isnan(value):
        total += value * weights[cluster]
        count += weights[cluster]
    if count:
      means[name] = total / count
  macro = sum(means.values()) / len(means) if means else math.nan
  return means, macro


def test_means_and_intervals_agree_with_plain_loops():
  rng = np.random.default_rng(0)
  units = 60
  values = rng.normal(size=(units, 2))
  values[rng.random((units, 2)) < 0.2] = np.nan
  groups = rng.choice(["a", "b", "c"], units, p=[0.6, 0.35, 0.05]).tolist()
  clusters = [f"p{i}" for i in rng.integers(0, 12, units)]
  got = bootstrap.grouped_means(values, groups, clusters, resamples=200, seed=3)
  assert list(got) == ["macro", "a", "b", "c"]

  first = {name: clusters.index(name) for name in clusters}
  draws = np.concatenate(list(bootstrap.example_weights(clusters, resamples=200, seed=3)))
  for m in range(2):
    column = values[:, m].tolist()
    means, macro = _brute(column, groups, clusters, dict.fromkeys(clusters, 1))
    drawn = [
      _brute(column, groups, clusters, {name: int(draw[i]) for name, i in first.items()})
      for draw in draws
    ]
    for name, mean in means.items():
      assert got[name][m].value == pytest.approx(mean)
      expected = [found[name] for found, _ in drawn if name in found]
      assert got[name][m].low == pytest.approx(np.percentile(expected, 2.5))
      assert got[name][m].high == pytest.approx(np.percentile(expected, 97.5))
    assert got["macro"][m].value == pytest.approx(macro)
    assert got["macro"][m].low == pytest.approx(np.percentile([x for _, x in drawn], 2.5))
    assert got["macro"][m].n == np.isfinite(values[:, m]).sum()


def test_units_of_a_patient_are_drawn_together():
  clusters = ["a", "b", "a", "c", "b", "a"]
  draws = np.concatenate(list(bootstrap.example_weights(clusters, resamples=500, seed=0)))
  assert draws.shape == (500, 6)
  assert (draws[:, 0] == draws[:, 2]).all() and (draws[:, 1] == draws[:, 4]).all()
  assert (draws[:, [0, 1, 3]].sum(1) == 3).all()
  assert draws.mean(0) == pytest.approx(np.ones(6), abs=0.15)


def test_copies_of_images_do_not_narrow_the_interval():
  rng = np.random.default_rng(1)
  values = rng.normal(size=(40, 1))
  names = [str(i) for i in range(40)]
  once = bootstrap.grouped_means(values, ["g"] * 40, names)["g"][0]
  copied = bootstrap.grouped_means(np.repeat(values, 9, 0), ["g"] * 360, np.repeat(names, 9))["g"][
    0
  ]
  assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
  apart = bootstrap.grouped_means(
    np.repeat(values, 9, 0), ["g"] * 360, [str(i) for i in range(360)]
  )["g"][0]
  assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(2)
  covered = 0
  for trial in range(200):
    patient = rng.normal(size=50)  # true mean 0; images of a patient share most of their value
    values = (np.repeat(patient, 3) + 0.1 * rng.normal(size=150))[:, None]
    summary = bootstrap.grouped_means(
      values, ["g"] * 150, np.repeat(np.arange(50), 3), resamples=300, seed=trial
    )["g"][0]
    covered += summary.low <= 0 <= summary.high
  assert 0.88 <= covered / 200 <= 0.985


def test_a_group_that_vanishes_is_left_out_of_that_draw():
  # One patient holds all of group b. Draws without that patient have macro 0, never NaN.
  values = np.array([[0.0], [0.0], [0.0], [9.0]])
  got = bootstrap.grouped_means(values, ["a", "a", "a", "b"], list("wxyz"))
  assert got["macro"][0].value == 4.5
  assert (got["macro"][0].low, got["macro"][0].high) == (0.0, 4.5)
  assert got["b"][0].value == 9.0
  assert math.isnan(got["b"][0].low) and math.isnan(got["b"][0].high)


def test_no_interval_from_one_patient_and_no_value_from_nothing():
  got = bootstrap.grouped_means(np.array([[1.0, np.nan]] * 2), ["g", "g"], ["p", "p"])
  assert got["macro"][0].value == 1.0 and math.isnan(got["macro"][0].low)
  assert math.isnan(got["g"][1].value) and got["g"][1].n == 0


def test_the_seed_fixes_the_draws():
  values, names = np.random.default_rng(0).random((30, 1)), [str(i) for i in range(30)]
  runs = [bootstrap.grouped_means(values, ["g"] * 30, names, seed=s)["g"][0] for s in (1, 1, 2)]
  assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("units", [31, 32])
def test_median_agrees_with_plain_loops(units):
  rng = np.random.default_rng(units)
  values = rng.integers(1, 20, units).astype(float)
  clusters = [str(i) for i in rng.integers(0, 10, units)]
  got = bootstrap.median(values, clusters, resamples=100, seed=5)
  drawn = [
    np.median([x for x, times in zip(values, draw, strict=True) for _ in range(times)])
    for draw in np.concatenate(list(bootstrap.example_weights(clusters, resamples=100, seed=5)))
  ]
  assert got.value == np.median(values)
  assert (got.low, got.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_without_draws_there_is_no_interval():
  got = bootstrap.grouped_means(np.array([[1.0], [3.0]]), ["g", "g"], ["p", "q"], resamples=0)
  middle = bootstrap.median(np.array([1.0, 3.0]), ["p", "q"], resamples=0)
  for summary in (got["g"][0], got["macro"][0], middle):
    assert summary.value == 2 and math.isnan(summary.low) and math.isnan(summary.high)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="macro"):
    bootstrap.grouped_means(np.ones((1, 1)), ["macro"], ["p"])
  with pytest.raises(ValueError, match="do not fit"):
    bootstrap.grouped_means(np.ones((2, 1)), ["g"], ["p", "q"])
  with pytest.raises(ValueError, match="no examples"):
    bootstrap.grouped_means(np.ones((0, 1)), [], [])
  with pytest.raises(ValueError, match="NaN"):
    bootstrap.median(np.array([1.0, np.nan]), ["p", "q"])


def test_it_is_fast():
  rng = np.random.default_rng(0)
  values, groups = rng.random((1000, 6)), [str(i) for i in rng.integers(0, 10, 1000)]
  start = time.process_time()
  bootstrap.grouped_means(values, groups, [str(i) for i in range(1000)])
  assert time.process_time() - start < 2  # about 0.2 s; room for a busy machine


def _macros(values, groups, clusters, patients):
  """Macro of each seed in one draw by plain loops; patients: name -> times."""
  macros = [_brute(v.tolist(), groups, clusters, patients)[1] for v in values]
  return [x for x in macros if not math.isnan(x)]


def test_seeded_means_agree_with_plain_loops():
  rng = np.random.default_rng(5)
  seeds, units = 3, 40
  values = rng.normal(size=(seeds, units, 1)) + rng.normal(size=(seeds, 1, 1))
  values[rng.random(values.shape) < 0.2] = np.nan
  groups = rng.choice(["a", "b"], units).tolist()
  clusters = [f"p{i}" for i in rng.integers(0, 8, units)]
  got = bootstrap.seeded_means(values, groups, clusters, resamples=150, seed=3)
  assert list(got) == ["macro", "a", "b"]

  once = dict.fromkeys(clusters, 1)
  every = [_brute(v[:, 0].tolist(), groups, clusters, once)[0] for v in values]
  for name in ("a", "b"):
    assert got[name][0].value == pytest.approx(np.mean([found[name] for found in every]))
  macros = _macros(values[..., 0], groups, clusters, once)
  assert got["macro"][0].value == pytest.approx(np.mean(macros))
  assert got["macro"][0].n == np.isfinite(values).any(0).sum()

  first = {name: clusters.index(name) for name in clusters}
  draws = np.concatenate(list(bootstrap.example_weights(clusters, resamples=150, seed=3)))
  drawn = [
    np.mean(_macros(values[..., 0], groups, clusters, {n: int(draw[i]) for n, i in first.items()}))
    for draw in draws
  ]
  patients = np.abs(np.percentile(drawn, [2.5, 97.5]) - np.mean(macros))
  low, high = stats.t.interval(0.95, seeds - 1, scale=stats.sem(macros))
  want = np.mean(macros) + np.hypot(patients, [low, high]) * [-1, 1]
  assert (got["macro"][0].low, got["macro"][0].high) == pytest.approx(tuple(want))


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_intervals_of_few_seeds_cover(spread):
  """Of 300 studies of 3 seeds and 30 patients, about 95 % of the intervals hold the truth, 0."""
  rng = np.random.default_rng(8)
  held = 0
  for _ in range(300):
    values = rng.normal(size=(1, 30, 1)) + spread * rng.normal(size=(3, 1, 1))
    got = bootstrap.seeded_means(values, ["g"] * 30, [str(i) for i in range(30)], resamples=200)
    held += got["g"][0].low <= 0 <= got["g"][0].high
  assert 0.9 < held / 300 <= 1


def test_one_seed_draws_patients_only_and_more_seeds_add_their_spread():
  rng = np.random.default_rng(6)
  values, patients = rng.normal(size=(60, 2)), [str(i) for i in range(60)]
  one = bootstrap.seeded_means(values[None], ["g"] * 60, patients, seed=4)
  assert one == bootstrap.grouped_means(values, ["g"] * 60, patients, seed=4)
  same = bootstrap.seeded_means(np.stack([values] * 3), ["g"] * 60, patients, seed=4)["g"][0]
  assert (same.low, same.high) == pytest.approx((one["g"][0].low, one["g"][0].high))
  apart = values + np.array([-1.0, 0.0, 1.0])[:, None, None]
  wide = bootstrap.seeded_means(apart, ["g"] * 60, patients, seed=4)["g"][0]
  assert wide.value == pytest.approx(one["g"][0].value)
  assert wide.high - wide.low > 2 * (same.high - same.low)


def test_a_paired_difference_is_narrower_than_either():
  rng = np.random.default_rng(7)
  hard, patients = rng.normal(size=(80, 1)), [str(i) for i in range(80)]
  a, b = (hard + 0.1 * rng.normal(size=(2, 80, 1)) + shift for shift in (0.3, 0.0))
  either = bootstrap.seeded_means(a, ["g"] * 80, patients)["macro"][0]
  paired = bootstrap.seeded_means(a - b, ["g"] * 80, patients)["macro"][0]
  assert paired.low > 0.2 and paired.high < 0.4
  assert paired.high - paired.low < (either.high - either.low) / 3


def test_seeds_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="do not fit"):
    bootstrap.seeded_means(np.ones((2, 1)), ["g"], ["p"])
  with pytest.raises(ValueError, match="no examples"):
    bootstrap.seeded_means(np.ones((0, 1, 1)), ["g"], ["p"])
