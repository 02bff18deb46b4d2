"""All evaluators together: what they write, and that it is written again."""

import copy
import dataclasses
import errno
import math
import shutil

import jax
import numpy as np
import pytest

from configs import base
from input_pipeline import records
from input_pipeline.conversion import convert
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer
from plan_jax import config as config_lib
from plan_jax import evaluate
from plan_jax.evaluators import datasets, stored_scores
from plan_jax.evaluators.by_name import configured
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference import calibration
from plan_jax.inference.load import load, of_state
from plan_jax.metrics import localization
from plan_jax.results import example_scores, tables
from plan_jax.results import rows as results
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from tiny_runs import tiny, untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An untrained model, evaluated on the phantom: config, model, workdir, records, rows."""
  config, workdir = tiny(), Workdir(tmp_path_factory.mktemp("run"))
  convert.convert("phantom", workdir.records, image_px=64, **config.data.options)
  texts = [" ".join(radiograph.example(1, i, 64).sentences) for i in range(20)]
  trained = tokenizer.train(texts, workdir.tokenizer, vocabulary_size=200)
  parts = assemble(config, trained)
  state = jax.device_get(parts.initial_state())
  model = of_state(parts, state.replace(step=config.train.steps), trained)
  workdir.example_scores.mkdir()
  (workdir.example_scores / "old.csv").write_text("of an earlier evaluation")
  sets = [datasets.own(config, workdir.records)]
  return config, model, workdir, evaluate.evaluate(model, config, workdir, sets)


def test_every_task_has_rows_beside_its_chance_baselines(run):
  _, _, workdir, rows = run
  assert {row.task for row in rows} == {
    "grounding",
    "grounding-by-phrase",
    "retrieval",
    "reranked-retrieval",
    "presence",
    "mass-inside",
    "side",
    "zero-shot-ours",
    "terms",
  }
  assert {row.data for row in rows} == {"phantom/test"}
  written = results.read(workdir.evaluation)
  assert written.step == 6 and repr(written.rows) == repr(rows)
  assert written.data == {"phantom/test": records.fingerprint(workdir.records)}
  cells = {(row.task, row.group, row.metric, row.model): row for row in rows}
  assert cells["presence", "macro", "AUC", "chance"].value == 0.5
  assert 0 <= cells["presence", "macro", "AUC", "run"].value <= 1
  assert cells["terms", "all", "AUC finding against rest", "run"].n > 100
  lines = tables.headline(rows).splitlines()
  # Eight images hold too few classes for P@5.
  assert len(lines) == len(results.HEADLINES) - 1 == 10
  assert "side-v1" in lines[3] and "moves" in lines[4]
  assert "presence-v1" in lines[7] and "zero-shot-v1" in lines[8]
  assert "terms-v1" in lines[9] and "chance 0.500" in lines[9]
  page = workdir.report.read_text()
  for text in ("Presence on phantom/test", "Protocol terms-v1", "mean peak absent", "side-v1"):
    assert text in page
  assert "method plan on phantom, in 6 steps of" in page and "Synthetic data (phantom)" in page
  # The images are of few patients, which no verdict may be based on.
  assert "not judged: only" in page and 'class="run better"' not in page


def test_the_step_is_calibrated_on_its_validation_images(run):
  _, model, workdir, _ = run
  measured = calibration.read(workdir.calibration, 6)
  assert measured.step == model.step == 6 and len(measured.affirmed) == 101
  assert -1 <= measured.affirmed[0] < measured.affirmed[100] <= 1 and -1 < measured.chance < 1


def test_protocols_that_need_more_images_or_are_published(tmp_path):
  """Classes, thresholds of validation images, and every protocol of others."""
  config = untrained(
    tmp_path,
    **{
      "data.options.validation_images": 40,
      "data.options.test_images": 80,
      "evaluation.compatibility": True,
      "evaluation.prompts": ("ours", "gloria"),
    },
  )
  workdir = Workdir(tmp_path / "a")
  sets = [datasets.own(config, tmp_path / "records")]
  rows = evaluate.evaluate(load(workdir), config, workdir, sets)
  scores = {(row.task, row.protocol.partition(",")[0]) for row in rows}
  assert scores >= {
    ("class-retrieval", "class-retrieval-v1"),
    ("reranked-class-retrieval", "reranked-class-retrieval-v1"),
    ("retrieval", "compat-instance"),
    ("zero-shot-ours", "zero-shot-v1"),
    ("zero-shot-ours", "compat-test-threshold-v2"),
    ("zero-shot-classes-ours", "zero-shot-classes-v1"),
    ("zero-shot-classes-gloria", "compat-gloria"),
  }
  assert {protocol for task, protocol in scores if task == "grounding"} == {
    "grounding-v1",
    "compat-vios-s-v2",
    "compat-aep-v2",
    "compat-mgvla-v2",
    "compat-g2g-v2",
    "compat-radzero-v2",
  }
  files = {file.stem for file in workdir.example_scores.glob("*.csv")}
  assert files >= {"class-retrieval", "reranked-class-retrieval", "zero-shot-classes-ours"}
  assert files >= {"grounding@compat-aep-v2", "retrieval@compat-limitr-v2"}
  assert repr(stored_scores.remake(workdir.example_scores)) == repr((rows, []))
  cells = {(row.task, row.group, row.metric, row.model): row for row in rows}
  assert cells["zero-shot-ours", "macro", "F1", "run"].n > 80
  median = next(row for row in rows if row.protocol == "compat-instance" and "median" in row.metric)
  assert median.low <= median.value <= median.high


def test_rows_average_the_example_scores(run):
  _, _, workdir, rows = run
  cells = {(row.task, row.group, row.metric): row for row in rows if row.model == "run"}
  scores = example_scores.read(workdir.example_scores / "grounding.csv")
  assert scores.metrics == localization.METRICS
  for name in set(scores.groups):
    values = scores.values[np.array(scores.groups) == name]
    for m, metric in enumerate(scores.metrics):
      row = cells["grounding", name, metric]
      assert row.n == np.isfinite(values[:, m]).sum()
      assert row.value == pytest.approx(
        np.nanmean(values[:, m]) if row.n else math.nan, nan_ok=True
      )
  scores = example_scores.read(workdir.example_scores / "retrieval.csv")
  assert set(scores.groups) == {"all"} and len(scores.ids) == 8
  assert all(name.endswith("\t") for name in scores.ids)
  for m, metric in enumerate(scores.metrics):
    if metric.startswith("rank"):
      row = cells["retrieval", "all", f"median {metric}"]
      assert row.value == np.median(scores.values[:, m])
    else:
      assert cells["retrieval", "all", metric].value == pytest.approx(scores.values[:, m].mean())
  assert len(scores.metrics) == 8


def test_evaluating_again_writes_the_same(run):
  config, model, workdir, _ = run
  paths = [workdir.evaluation, *workdir.example_scores.iterdir()]
  before = [path.read_bytes() for path in paths]
  for path in paths:
    path.write_text("broken")
  evaluate.evaluate(model, config, workdir, [datasets.own(config, workdir.records)])
  assert [path.read_bytes() for path in paths] == before


def test_attached_sets_have_rows_scores_and_pictures_of_their_own(run, tmp_path, capsys):
  config, model, _, _ = run
  config, workdir = copy.deepcopy(config), Workdir(tmp_path / "run")
  given = base.evaluation_set(
    "phantom", size_px=64, train_images=0, validation_images=0, test_images=12
  )
  config.unlock()
  config.evaluation.sets = {"small": given, "absent": base.evaluation_set("folder")}
  config_lib.check(config)
  datasets.make_records(config.data, workdir.records, config.data)
  datasets.make_attached(config, workdir)
  assert "evaluation set absent is left out" in capsys.readouterr().out
  sets = [
    datasets.own(config, workdir.records),
    *datasets.attached(config, workdir),
  ]
  rows = evaluate.evaluate(model, config, workdir, sets)
  assert {row.data for row in rows} == {"phantom/test", "small/test"}
  gallery = {row.data: row.gallery for row in rows if row.task == "retrieval"}
  assert gallery == {"phantom/test": 8, "small/test": 12}
  assert len(example_scores.read(workdir.example_scores_of("retrieval")).ids) == 8
  assert len(example_scores.read(workdir.example_scores_of("retrieval", "small")).ids) == 12
  assert repr(stored_scores.remake(workdir.example_scores)) == repr((rows, []))
  assert (workdir.path / "records_small" / "dataset_info.json").exists()
  # Without regions in a training split there is no mean box.
  models = {row.model for row in rows if (row.data, row.task) == ("small/test", "grounding")}
  assert models == {"run", "random", "centre"}


def test_learned_tasks_stand_beside_the_rest(run, tmp_path):
  config, model, done, before = run
  config = copy.deepcopy(config).unlock()
  config.evaluation.transfer.boxes = base.transfer_task("detection")
  workdir = Workdir(tmp_path / "run")
  files = [tmp_path / "detection.csv", tmp_path / "detection.npz"]
  shutil.copy(done.example_scores / "grounding.csv", files[0])
  files[1].write_text(".npz")
  row = dataclasses.replace(before[0], task="boxes-0.1")

  def learned(dataset):
    # What comes before is safe already.
    kept = results.read(workdir.evaluation)
    assert not kept.complete and len(kept.rows) == len(before)
    yield dataset, "boxes-0.1", [row], files

  sets = [datasets.own(config, done.records)]
  rows = evaluate.evaluate(model, config, workdir, sets, learned=learned(sets[0]))
  remade, rest = stored_scores.remake(workdir.example_scores)
  assert repr(remade) == repr(rows[:-1]) and rest == ["boxes-0.1"]
  assert results.read(workdir.evaluation).complete
  assert rows[-1] is row and repr(results.read(workdir.evaluation).rows[-1]) == repr(row)
  for suffix in (".csv", ".npz"):
    own = (tmp_path / f"detection{suffix}").read_bytes()
    assert (workdir.example_scores / f"boxes-0.1{suffix}").read_bytes() == own
  assert "Boxes-0.1 on" in workdir.report.read_text()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"dataset": "none"}, "evaluation.sets.a.dataset"),
    ({"split": "all"}, "evaluation.sets.a.split"),
    ({"options": {"sise_px": 1}}, "evaluation.sets.a.options"),
  ],
)
def test_impossible_sets(changes, words):
  config = tiny()
  config.unlock()
  config.evaluation.sets = {"a": base.evaluation_set("phantom")}
  config.evaluation.sets.a.update(changes)
  with pytest.raises(config_lib.ConfigError, match=words):
    config_lib.check(config)
  config.evaluation.sets = {"phantom": base.evaluation_set("phantom")}
  with pytest.raises(config_lib.ConfigError, match="name of the run's own data"):
    config_lib.check(config)


def test_scores_of_an_earlier_evaluation_do_not_stay(run):
  *_, workdir, _ = run
  assert sorted(p.name for p in workdir.example_scores.iterdir()) == [
    "SHA256SUMS",
    "grounding-by-phrase.csv",
    "grounding.csv",
    "grounding@centre.csv",
    "grounding@mean_box.csv",
    "grounding@mean_box_per_finding.csv",
    "grounding@mean_box_per_place.csv",
    "grounding@random.csv",
    "mass-inside.csv",
    "mass-inside@chance.csv",
    "presence.csv",
    "reranked-retrieval.csv",
    "retrieval.csv",
    "side.csv",
    "tables.json",
    "terms.csv",
    "zero-shot-ours.csv",
  ]


@pytest.mark.parametrize("place", ["write", "write_report"])
def test_a_full_disk_leaves_a_whole_evaluation_or_none(run, tmp_path, monkeypatch, place):
  """Scores of one evaluation beside the rows of another, or an old page, would pass for whole."""
  config, model, workdir, _ = run
  workdir = Workdir(shutil.copytree(workdir.path, tmp_path / "run"))
  files = sorted(workdir.example_scores.iterdir())
  before = {path: path.read_bytes() for path in (workdir.evaluation, workdir.report, *files)}
  scores = example_scores.read(files[-1])
  by_task = {task: scores for task in ("grounding", "retrieval")}

  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(evaluate, "_score", lambda *_: ([], by_task, []))
  monkeypatch.setattr(evaluate, "image_views", lambda *_: [])
  owner = example_scores if place == "write" else evaluate.report
  monkeypatch.setattr(owner, place, full)
  with pytest.raises(DiskError, match="No space left on device; free some space"):
    evaluate.evaluate(model, config, workdir, [datasets.own(config, workdir.records)])
  assert not list(workdir.path.glob("*.tmp-*"))
  if place == "write":
    assert {path: path.read_bytes() for path in before} == before
  else:
    assert not workdir.evaluation.exists()


def zero_shot(model, config, workdir):
  """Scores by every set of prompts."""
  dataset = datasets.own(config, workdir.records)
  evaluator = configured(config)[-2]
  return evaluator.score(model, dataset, Embeddings(model, dataset))


def test_every_set_of_prompts_has_scores_of_its_own(run):
  config, model, workdir, rows = run
  config = copy.deepcopy(config)
  config.unlock()
  config.evaluation.prompts = ("chexzero", "gloria")
  scores = zero_shot(model, config, workdir)
  assert [each.prompts.name for each in scores] == ["chexzero", "gloria"]
  # The five classes of GLoRIA, of which "effusion" is one, and only those.
  five = {"atelectasis", "cardiomegaly", "consolidation", "edema", "effusion"}
  assert (
    set(scores[1].example_scores.groups)
    <= five
    < {"nodule", *scores[0].example_scores.groups, *five}
  )
  (row,) = (
    r
    for r in rows
    if (r.task, r.group, r.metric, r.model) == ("zero-shot-ours", "macro", "AUC", "run")
  )
  assert set(scores[0].example_scores.groups) == set(
    example_scores.read(workdir.example_scores_of("zero-shot-ours")).groups
  )
  assert row.n == len(scores[0].example_scores.ids)
  # Validation images chose the thresholds; a set that is the validation split has .5.
  assert all(each.thresholds is not None for each in scores)
  config.evaluation.split = "validation"
  assert all(each.thresholds is None for each in zero_shot(model, config, workdir))
  config.evaluation.prompts = ()
  assert zero_shot(model, config, workdir) == []
  config.evaluation.prompts = ("none",)
  with pytest.raises(UserError, match="config.evaluation.prompts: there is no set 'none'"):
    config_lib.check(config)


def test_followed_metrics_are_those_of_best_metric(run):
  config, model, workdir, _ = run
  scores = evaluate.validation_scalars(model, workdir.records, config)
  assert set(scores) == {results.scalar_name(task, metric) for task, _, metric in results.FOLLOWED}
  assert set(results.FOLLOWED) < set(results.HEADLINES)
  for name in scores:
    config_lib.check(tiny(**{"checkpoint.best_metric": name, "evaluation.every_steps": 2}))
  with pytest.raises(config_lib.ConfigError, match="best_metric"):
    config_lib.check(tiny(**{"checkpoint.best_metric": "validation/presence/AUC"}))
  with pytest.raises(config_lib.ConfigError, match="needs 'ours' in config.evaluation.prompts"):
    name = "validation/zero-shot-ours/AUC"
    config_lib.check(
      tiny(
        **{"checkpoint.best_metric": name, "evaluation.every_steps": 2, "evaluation.prompts": ()}
      )
    )


def test_all_wait_for_the_first_to_write(run, tmp_path, monkeypatch):
  """A process that left before would be thought lost, and all would be ended."""
  config, model, done, _ = run
  waits = []
  monkeypatch.setattr("plan_jax.runtime.processes.is_primary", lambda: False)
  monkeypatch.setattr("plan_jax.runtime.processes.on_primary", waits.append)
  workdir = Workdir(tmp_path / "run")
  evaluate.evaluate(model, config, workdir, [datasets.own(config, done.records)])
  assert len(waits) == 1 and not workdir.path.exists()
  waits[0]()
  assert workdir.evaluation.exists() and workdir.report.exists()


def test_the_config_chooses_evaluators_and_protocols(run, tmp_path):
  """Rows of what is chosen stay as they are, in their order."""
  config, model, done, rows = run
  config, workdir = copy.deepcopy(config).unlock(), Workdir(tmp_path / "run")
  for name in ("grounding", "mass_inside", "side", "retrieval", "reranking"):
    config.evaluation.evaluators[name].protocols = ()
  config.evaluation.evaluators.zero_shot.protocols = ("zero-shot-classes-v1",)
  sets = [datasets.own(config, done.records)]
  kept = [row for row in rows if row.task in ("class-retrieval", "presence", "terms")]
  assert repr(evaluate.evaluate(model, config, workdir, sets)) == repr(kept)


def test_unknown_evaluators_and_protocols_are_named():
  config = tiny().unlock()
  config.evaluation.evaluators.presence.protocols = ("presence-v2",)
  with pytest.raises(UserError, match="evaluators.presence.protocols: is 'presence-v2'; must be"):
    configured(config)
  config.evaluation.evaluators.absence = {"protocols": ()}
  with pytest.raises(UserError, match="^evaluators: is 'absence'; must be"):
    configured(config)
