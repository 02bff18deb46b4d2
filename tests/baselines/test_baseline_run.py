"""A baseline evaluated as a run is, and compared with a run."""

import copy
import json

import jax
import numpy as np
import pytest

from configs import baselines as baselines_config
from fakes import chestx_det10
from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax import compare, evaluate, experiment, suite
from plan_jax.evaluators import datasets
from plan_jax.inference import load
from plan_jax.results import example_scores, rows
from plan_jax.runtime.workdir import Workdir
from plan_jax.train import make_tokenizer
from plan_jax.training.assembly import assemble
from tiny_runs import TINY, tiny

pytest.importorskip("torch")
tiny_baselines = pytest.importorskip("tiny_baselines")
tiny_pairs = pytest.importorskip("tiny_pairs")
vocabulary, tokenizer = tiny_baselines.vocabulary, tiny_baselines.tokenizer


def config_of(name, **baseline):
  config = copy.deepcopy(baselines_config.get_config(f"{name},phantom"))
  known = {key: x for key, x in TINY.items() if key.startswith(("data.", "evaluation."))}
  known.pop("evaluation.every_steps")
  config.update_from_flattened_dict(known | {"evaluation.prompts": ("ours", "gloria")})
  config.baseline.update({key: str(path) for key, path in baseline.items()})
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """An untrained run, evaluated."""
  config, workdir = tiny(), Workdir(tmp_path_factory.mktemp("runs") / "plan")
  workdir.claim(config)
  datasets.make_records(config.data, workdir.records, config.data)
  own = datasets.own(config, workdir.records)
  words = make_tokenizer(config, workdir, records.RecordSource(workdir.records, "train"))
  parts = assemble(config, words)
  model = load.of_state(parts, jax.device_get(parts.initial_state()), words)
  evaluate.evaluate(model, config, workdir, [own])
  return workdir


def test_a_baseline_is_evaluated_and_compared_with_a_run(
  run, tmp_path, vocabulary, tokenizer, capsys
):
  files = tiny_baselines.files_of(tmp_path, "mgca_vit", vocabulary, tokenizer)
  config = config_of("mgca_vit", **files)
  config.data.records = str(run.records)
  workdir = Workdir(tmp_path / "mgca")
  experiment.run(config, workdir, "evaluate")
  message = "evaluation set rsna is left out: give config.evaluation.sets.rsna.source"
  assert capsys.readouterr().out.count(message) == 1
  evaluation = rows.read(workdir.evaluation)
  assert evaluation.step == 0 and evaluation.data == rows.read(run.evaluation).data
  assert {row.task for row in evaluation.rows} == {
    "grounding",
    "grounding-by-phrase",
    "retrieval",
    "presence",
    "mass-inside",
    "side",
    "terms",
    "zero-shot-ours",
    "zero-shot-gloria",
  }
  protocols = {row.protocol.split(",")[0] for row in evaluation.rows}
  assert {"compat-vios-s-v2", "compat-aep-v2", "compat-g2g-v2", "compat-instance"} < protocols
  grounded = example_scores.read(workdir.example_scores_of("grounding"))
  assert grounded.ids == example_scores.read(run.example_scores_of("grounding")).ids
  note = json.loads(workdir.weights.read_text())
  assert note["weights"]["source"] == "MGCA ViT: mgca_vit.ckpt" and note["weights"]["left_aside"]
  page = workdir.report.read_text()
  assert "MGCA (ViT)" in page and "phantom: MGCA (ViT)" in page
  differences, left_out = compare.compare(run.path, workdir.path, resamples=20)
  assert {d.name for d in differences} == {
    "grounding",
    "grounding-by-phrase",
    "retrieval",
    "presence",
    "mass-inside",
    "side",
    "terms",
    "zero-shot-ours",
  }
  assert sorted(text.split(":")[0] for text in left_out) == [
    "reranked-retrieval",
    "zero-shot-gloria",
  ]
  # Again, and with other weights.
  before = workdir.evaluation.read_bytes()
  experiment.run(config, workdir, "all")
  assert workdir.evaluation.read_bytes() == before
  config.baseline.name = "mgca_resnet"
  files = tiny_baselines.files_of(tmp_path, "mgca_resnet", vocabulary, tokenizer)
  config.baseline.weights = str(files["weights"])
  with pytest.raises(
    UserError, match="evaluation of another baseline .*baseline.name: 'mgca_vit' there"
  ):
    experiment.run(config, workdir, "evaluate")
  with pytest.raises(UserError, match="belongs to a run"):
    experiment.run(config, run, "evaluate")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [name for name in baselines_config.BASELINES if name != "mgca_vit"]
)
def test_every_baseline_is_evaluated(run, tmp_path, vocabulary, tokenizer, name, capsys):
  config = config_of(name, **tiny_pairs.files_of(tmp_path, name, vocabulary, tokenizer))
  config.data.records = str(run.records)
  workdir = Workdir(tmp_path / "run")
  experiment.run(config, workdir, "evaluate")
  evaluation = rows.read(workdir.evaluation)
  tasks = {row.task for row in evaluation.rows}
  assert ("reranked-retrieval" in tasks) == (name == "gloria")
  assert ("terms" in tasks) == (name == "mgca_resnet")
  message = "terms are left out: this model gives its words no weight"
  assert (message in capsys.readouterr().out) == (name != "mgca_resnet")
  assert all(np.isfinite(row.value) or row.metric == "signed CNR" for row in evaluation.rows)
  differences, _ = compare.compare(run.path, workdir.path, resamples=20)
  assert {"grounding", "retrieval", "presence"} <= {d.name for d in differences}


def test_errors_come_before_any_conversion(tmp_path):
  config, workdir = config_of("gloria"), Workdir(tmp_path / "run")
  with pytest.raises(UserError, match="config.baseline.weights: is empty"):
    experiment.run(config, workdir, "evaluate")
  with pytest.raises(UserError, match="a baseline is not trained"):
    experiment.run(config, workdir, "train")
  config.evaluation.batch_size = 0
  with pytest.raises(UserError, match="config.evaluation.batch_size: is 0; must be positive"):
    experiment.run(config, workdir, "evaluate")
  config.data.dataset = "none"
  with pytest.raises(UserError, match="config.data.dataset: is 'none'"):
    experiment.run(config, workdir, "evaluate")
  assert not workdir.path.exists()
  for wrong in ("", "convirt", "gloria,chexpert"):
    with pytest.raises(ValueError, match="no variant .* of baselines.py; there are gloria, "):
      baselines_config.get_config(wrong)


def test_configs():
  config = baselines_config.get_config("gloria,mimic")
  config.data.source = "physionet"
  assert config.evaluation.sets.ms_cxr.source == "physionet"
  assert config.data.selection == "without_5x200" and config.data.options.views == "frontal"
  config = baselines_config.get_config("biovil")
  config.data.source = "mine"
  assert {entry.source for entry in config.evaluation.sets.values()} == {""}
  config.evaluation.sets.vindr.source = "vindr"
  assert config.data.source == "mine" and "model" not in config and "train" not in config
  assert set(baselines_config.BASELINES) == set(experiment.baselines.BASELINES)
  # The data's own name may be that of a set which waits.
  config.data.dataset = "rsna"
  assert "rsna" not in experiment._without_own_set(config).evaluation.sets
  config.data.dataset = "vindr"
  assert "vindr" in experiment._without_own_set(config).evaluation.sets


def test_a_suite_of_a_baseline(tmp_path, vocabulary, tokenizer):
  """By the images of the suite alone: the baseline needs no data of its own."""
  files = tiny_baselines.files_of(tmp_path, "mgca_vit", vocabulary, tokenizer)
  config, workdir = config_of("mgca_vit", **files), Workdir(tmp_path / "mgca")
  config.data.update(dataset="folder", source="", records="")
  chestx_det10.write(tmp_path / "sets" / "chestx_det10")
  lines = suite.evaluate_suite(config, workdir, "radzero", tmp_path / "sets")
  scored = {line.shown.metric: line.row for line in lines if line.row}
  assert scored.keys() == {"AUC", "pointing any box"}
  assert all(0 <= row.value <= 1 for row in scored.values())
  assert json.loads(workdir.weights.read_text())["weights"]["source"] == "MGCA ViT: mgca_vit.ckpt"
  assert "MGCA" in (workdir.suites / "radzero" / "suite.md").read_text()
  config.baseline.name = "mgca_resnet"
  with pytest.raises(UserError, match="evaluation of another baseline"):
    workdir.refuse_other_baseline(config)
