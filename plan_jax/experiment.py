"""A whole experiment: records, training, evaluation. What is done already is not done again."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records, terms
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax import evaluation_sets, hosts, settings
from plan_jax.evaluate import evaluate
from plan_jax.evaluation_sets import EvaluationSet, fingerprints, make_records
from plan_jax.evaluators import prompts, results
from plan_jax.grounder import load
from plan_jax.models import pretrained
from plan_jax.peers import peer
from plan_jax.reporting import say
from plan_jax.train import train
from plan_jax.workdir import Workdir


def run(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Runs what `mode` names: "train", "evaluate", or "all" for both in turn.

  A config of configs/peers.py is evaluated, for nothing of it is trained.

  Raises UserError where config, data or workdir are not fit, before any work if it can be known.
  """
  if "peer" in config:
    _run_peer(config, workdir, mode)
    return
  config = settings.localised(config)
  settings.check(config)
  settings.check_devices(config)
  if mode != "evaluate" and not workdir.begun():
    # Before hours of conversion; where a run goes on, the files may be gone.
    pretrained.tokenizer_folder(config)
    pretrained.load_towers(config.model)
  folder = _claimed(config, workdir, new=mode != "evaluate")
  if mode == "evaluate":
    evaluate(load(workdir, config), config, workdir, _sets(config, workdir, folder))
    return
  if mode == "all":
    sets = _sets(config, workdir, folder)
  train(config, workdir, folder)
  if mode == "train":
    return
  model = load(workdir, config)
  rows = _evaluated(workdir, model.step, sets)
  hosts.agree(f"the evaluation in {workdir.path}", "none" if rows is None else "complete")
  if rows is None:
    evaluate(model, config, workdir, sets)
    return
  say("evaluation is complete too (--mode=evaluate does it again)\n")
  say(f"{results.headline(rows)}\n\nreport: {workdir.report}")


def _run_peer(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Evaluates another project's model, as `config.peer` names it."""
  if mode == "train":
    raise UserError("--mode=train: a peer is not trained, only evaluated (--mode=evaluate)")
  config = _without_own(config)
  settings.check_sets(config)
  prompts.load(config.evaluation.prompts)
  terms.load(config.text.terms)
  # Before hours of conversion.
  loaded = peer.load(config)
  model = peer.on_devices(loaded, config)
  workdir.refuse_other_peer(config)
  folder = _claimed(config, workdir, new=True)
  note = json.dumps(loaded.provenance, indent=2)
  hosts.agree("the weights of the peer", note)
  hosts.first_does(lambda: replace_text(workdir.weights, f"{note}\n"))
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
  if own is not None and not evaluation_sets.is_given(own):
    del config.evaluation.sets[config.data.dataset]
  return config


def _sets(config: ConfigDict, workdir: Workdir, folder) -> list[EvaluationSet]:
  """What the run is evaluated on; all processes see the same."""
  hosts.first_does(lambda: evaluation_sets.make_attached(config, workdir))
  sets = [evaluation_sets.own(config, folder), *evaluation_sets.attached(config, workdir)]
  hosts.agree("the evaluation sets", json.dumps(fingerprints(sets)))
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

  hosts.agree("the config", json.dumps(config.to_dict(), sort_keys=True))
  hosts.first_does(claim)
  for path in (workdir.config, folder):
    if not hosts.appears(path):
      raise UserError(
        f"process {jax.process_index()} does not see {path}, which process 0 has: --workdir and"
        " config.data.records must be folders that all hosts share"
      )
  hosts.agree(f"the data in {folder} (its fingerprint)", records.fingerprint(folder))
  return folder
