"""A whole experiment: records, training, evaluation. What is done already is not done again."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax import config as config_lib
from plan_jax.baselines import baseline
from plan_jax.evaluate import evaluate
from plan_jax.evaluators import datasets
from plan_jax.evaluators.by_name import configured
from plan_jax.evaluators.datasets import EvaluationSet, fingerprints, make_records
from plan_jax.inference.load import Grounder, load
from plan_jax.models.weights import load as pretrained
from plan_jax.results import rows as results
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.train import train
from plan_jax.transfer import attached


def run(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Runs what `mode` names: "train", "evaluate", or "all" for both in turn.

  A config of configs/baselines.py is evaluated, for nothing of it is trained.

  Raises UserError where config, data or workdir are not fit, before any work if it can be known.
  """
  if "baseline" in config:
    _run_baseline(config, workdir, mode)
    return
  config = config_lib.localised(config)
  config_lib.check(config)
  config_lib.check_devices(config)
  if mode != "evaluate" and not workdir.begun():
    # Before hours of conversion; where a run goes on, the files may be gone.
    pretrained.tokenizer_folder(config)
    pretrained.load_encoders(config.model)
  folder = _claimed(config, workdir, new=mode != "evaluate")
  if mode == "evaluate":
    _evaluate(load(workdir, config), config, workdir, _sets(config, workdir, folder))
    return
  if mode == "all":
    sets = _sets(config, workdir, folder)
  train(config, workdir, folder)
  if mode == "train":
    return
  model = load(workdir, config)
  rows = _evaluated(workdir, model.step, sets)
  processes.assert_equal(
    f"the evaluation in {workdir.path}", "none" if rows is None else "complete"
  )
  if rows is None:
    _evaluate(model, config, workdir, sets)
    return
  log.info("evaluation is complete too (--mode=evaluate does it again)\n")
  log.info(f"{results.headline(rows)}\n\nreport: {workdir.report}")


def _evaluate(
  model: Grounder, config: ConfigDict, workdir: Workdir, sets: list[EvaluationSet]
) -> None:
  """Evaluates a run, and then what is learned on its encoder."""
  learned = attached.learned(config, workdir, model, sets)
  evaluate(model, config, workdir, sets, learned=learned)


def _run_baseline(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Evaluates another project's model, as `config.baseline` names it."""
  if mode == "train":
    raise UserError("--mode=train: a baseline is not trained, only evaluated (--mode=evaluate)")
  config = _without_own(config)
  config_lib.check_sets(config)
  configured(config)
  # Before hours of conversion.
  loaded = baseline.load(config)
  model = baseline.on_devices(loaded, config)
  workdir.refuse_other_baseline(config)
  folder = _claimed(config, workdir, new=True)
  note = json.dumps(loaded.provenance, indent=2)
  processes.assert_equal("the weights of the baseline", note)
  processes.on_primary(lambda: replace_text(workdir.weights, f"{note}\n"))
  sets = _sets(config, workdir, folder)
  what = loaded.kind.title
  notes = {"model": f"{what}, grid {model.grid[0]} x {model.grid[1]}"}
  notes |= {
    key: f"{one['source']} ({one['sha256'][:12]})" for key, one in loaded.provenance.items()
  }
  evaluate(model, config, workdir, sets, title=f"{config.data.dataset}: {what}", notes=notes)


def _without_own(config: ConfigDict) -> ConfigDict:
  """Without the sets that wait for a source, and are called as the data is: here it may be any."""
  config = ConfigDict(config.to_dict())
  own = config.evaluation.sets.get(config.data.dataset)
  if own is not None and not datasets.is_given(own):
    del config.evaluation.sets[config.data.dataset]
  return config


def _sets(config: ConfigDict, workdir: Workdir, folder) -> list[EvaluationSet]:
  """What the run is evaluated on; all processes see the same."""
  processes.on_primary(lambda: datasets.make_attached(config, workdir))
  sets = [datasets.own(config, folder), *datasets.attached(config, workdir)]
  processes.assert_equal("the evaluation sets", json.dumps(fingerprints(sets)))
  return sets


def _evaluated(workdir: Workdir, step: int, sets: list[EvaluationSet]) -> list[results.Row] | None:
  """What a whole evaluation of this step on these sets found."""
  if not (workdir.evaluation.exists() and workdir.report.exists()):
    return None
  found = results.read(workdir.evaluation)
  wanted = (step, fingerprints(sets), True)
  return found.rows if (found.step, found.data, found.complete) == wanted else None


def _claimed(config: ConfigDict, workdir: Workdir, *, new: bool) -> Path:
  """Claims workdir and records for the run; all processes then see the same. The record folder."""
  folder = Path(config.data.records or workdir.records)

  def claim():
    workdir.claim(config, new=new)
    make_records(config.data, folder, config.data)
    workdir.claim_records(folder, records.fingerprint(folder))

  processes.assert_equal("the config", json.dumps(config.to_dict(), sort_keys=True))
  processes.on_primary(claim)
  for path in (workdir.config, folder):
    if not processes.wait_for(path):
      raise UserError(
        f"process {jax.process_index()} does not see {path}, which process 0 has: --workdir and"
        " config.data.records must be folders that all hosts share"
      )
  processes.assert_equal(f"the data in {folder} (its fingerprint)", records.fingerprint(folder))
  return folder
