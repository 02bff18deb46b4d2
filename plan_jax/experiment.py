"""A whole experiment: records, training, evaluation. What is done already is not done again."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import convert, records
from input_pipeline.errors import UserError
from plan_jax import hosts, settings
from plan_jax.evaluate import evaluate, evaluation_data
from plan_jax.evaluators import results
from plan_jax.grounder import load
from plan_jax.reporting import say
from plan_jax.train import train
from plan_jax.workdir import Workdir


def run(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Runs what `mode` names: "train", "evaluate", or "all" for both in turn.

  Raises UserError where config, data or workdir are not fit, before any work if it can be known.
  """
  settings.check(config)
  settings.check_devices(config)
  folder = _claimed(config, workdir, new=mode != "evaluate")
  if mode == "evaluate":
    evaluate(load(workdir, config), config, workdir, folder)
    return
  if mode == "all":
    data = evaluation_data(config, folder)
  train(config, workdir, folder)
  if mode == "train":
    return
  model = load(workdir, config)
  rows = _evaluated(workdir, model.step, data)
  hosts.agree(f"the evaluation in {workdir.path}", "none" if rows is None else "complete")
  if rows is None:
    evaluate(model, config, workdir, folder)
    return
  say("evaluation is complete too (--mode=evaluate does it again)\n")
  say(f"{results.headline(rows)}\n\nreport: {workdir.report}")


def _evaluated(workdir: Workdir, step: int, data: str) -> list[results.Row] | None:
  """What a whole evaluation of this step on this data found."""
  if not (workdir.evaluation.exists() and workdir.report.exists()):
    return None
  evaluated, rows = results.read(workdir.evaluation)
  return rows if evaluated == step and all(row.data == data for row in rows) else None


def _claimed(config: ConfigDict, workdir: Workdir, *, new: bool) -> Path:
  """Claims workdir and records for the run; all processes then see the same. The record folder."""
  folder = Path(config.data.records or workdir.records)

  def claim():
    workdir.claim(config, new=new)
    make_records(config, folder)
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


def make_records(config: ConfigDict, folder: Path) -> None:
  """Sees to it that `folder` holds the shards of the config: converts the source if it does not.

  Raises UserError where shards without a source are not whole, or the source is not fit.
  """
  data = config.data
  if data.dataset == "folder" and not data.source:
    records.splits(folder)  # raises where they are not whole
    return
  summary = convert.convert(
    data.dataset,
    folder,
    source=data.source,
    image_px=data.stored_px,
    max_skipped_fraction=data.max_skipped_fraction,
    # What stopped a conversion may have been repaired since.
    retry_skipped=not records.is_complete(folder),
    **data.options,
  )
  if not summary["already"]:
    say(convert.describe(summary))
