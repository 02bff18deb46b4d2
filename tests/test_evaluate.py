"""All evaluators together: what they write, and that it is written again."""

import math

import jax
import numpy as np
import pytest

from experiments import tiny
from input_pipeline import convert, phantom, tokens
from plan_jax import evaluate, grounder, settings
from plan_jax.assembly import assemble
from plan_jax.evaluators import grounding, results, units
from plan_jax.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An untrained model, evaluated on the phantom: config, model, workdir, records, rows."""
  config, workdir = tiny(), Workdir(tmp_path_factory.mktemp("run"))
  convert.convert("phantom", workdir.records, image_px=64, **config.data.options)
  texts = [" ".join(phantom.study(1, i, 64).sentences) for i in range(20)]
  tokenizer = tokens.train(texts, workdir.tokenizer, vocabulary_size=200)
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  model = grounder.of_state(parts, state.replace(step=config.train.steps), tokenizer)
  workdir.units.mkdir()
  (workdir.units / "grounding.csv").write_text("of an earlier evaluation")
  return config, model, workdir, evaluate.evaluate(model, config, workdir, workdir.records)


def test_every_task_has_rows_beside_its_floors(run):
  _, _, workdir, rows = run
  assert {row.task for row in rows} == {"grounding", "retrieval", "presence", "terms"}
  assert {row.data for row in rows} == {"phantom/test"}
  step, written = results.read(workdir.evaluation)
  assert step == 6 and repr(written) == repr(rows)
  cells = {(row.task, row.group, row.metric, row.model): row for row in rows}
  assert cells["presence", "macro", "AUC", "chance"].value == 0.5
  assert 0 <= cells["presence", "macro", "AUC", "run"].value <= 1
  assert cells["terms", "all", "AUC finding against rest", "run"].n > 100
  lines = results.headline(rows).splitlines()
  assert len(lines) == len(results.HEADLINES) == 7
  assert "presence-v1" in lines[5] and "terms-v1" in lines[6] and "chance 0.500" in lines[6]
  page = workdir.report.read_text()
  for text in ("Presence on phantom/test", "Protocol terms-v1", "mean peak absent"):
    assert text in page


def test_units_are_what_the_rows_average(run):
  _, _, workdir, rows = run
  cells = {(row.task, row.group, row.metric): row for row in rows if row.model == "run"}
  found = units.read(workdir.units / "grounding.csv")
  assert found.metrics == grounding.METRICS
  for name in set(found.groups):
    some = found.values[np.array(found.groups) == name]
    for m, metric in enumerate(found.metrics):
      row = cells["grounding", name, metric]
      assert row.n == np.isfinite(some[:, m]).sum()
      assert row.value == pytest.approx(np.nanmean(some[:, m]) if row.n else math.nan, nan_ok=True)
  found = units.read(workdir.units / "retrieval.csv")
  assert set(found.groups) == {"all"} and len(found.ids) == 8
  assert all(name.endswith("\t") for name in found.ids)
  for m, metric in enumerate(found.metrics):
    if metric.startswith("rank"):
      row = cells["retrieval", "all", f"median {metric}"]
      assert row.value == np.median(found.values[:, m])
    else:
      assert cells["retrieval", "all", metric].value == pytest.approx(found.values[:, m].mean())
  assert len(found.metrics) == 8


def test_evaluating_again_writes_the_same(run):
  config, model, workdir, _ = run
  paths = [workdir.evaluation, *workdir.units.iterdir()]
  before = [path.read_bytes() for path in paths]
  for path in paths:
    path.write_text("broken")
  evaluate.evaluate(model, config, workdir, workdir.records)
  assert [path.read_bytes() for path in paths] == before


def test_scores_of_an_earlier_evaluation_do_not_stay(tmp_path):
  workdir = Workdir(tmp_path)
  evaluate._write_units(workdir, "grounding", None)  # there was none
  workdir.units.mkdir()
  for task in ("grounding", "retrieval"):
    (workdir.units / f"{task}.csv").write_text("old")
  evaluate._write_units(workdir, "grounding", None)
  assert [path.name for path in workdir.units.iterdir()] == ["retrieval.csv"]


def test_what_is_followed_is_what_best_metric_offers(run):
  config, model, workdir, _ = run
  found = evaluate.validation_scalars(model, workdir.records, config)
  assert set(found) == {results.scalar_name(task, metric) for task, _, metric in results.FOLLOWED}
  assert set(results.FOLLOWED) < set(results.HEADLINES)
  for name in found:
    settings.check(tiny(**{"checkpoint.best_metric": name, "evaluation.every_steps": 2}))
  with pytest.raises(settings.ConfigError, match="best_metric"):
    settings.check(tiny(**{"checkpoint.best_metric": "validation/presence/AUC"}))
