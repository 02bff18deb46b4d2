"""A whole experiment: records, training, evaluation. What is done already is not done again."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import convert, records
from plan_jax import settings
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
  if mode == "evaluate":
    workdir.claim(config, new=False)
    evaluate(load(workdir, config), config, workdir, _records(config, workdir))
    return
  workdir.claim(config)
  folder = _records(config, workdir)
  if mode == "all":
    data = evaluation_data(config, folder)
  train(config, workdir, folder)
  if mode == "train":
    return
  model = load(workdir, config)
  if workdir.evaluation.exists() and workdir.report.exists():
    step, rows = results.read(workdir.evaluation)
    if step == model.step and all(row.data == data for row in rows):
      say("evaluation is complete too (--mode=evaluate does it again)\n")
      say(f"{results.headline(rows)}\n\nreport: {workdir.report}")
      return
  evaluate(model, config, workdir, folder)


def _records(config: ConfigDict, workdir: Workdir) -> Path:
  """The folder of shards, checked to be those the run has always had."""
  folder = Path(config.data.records or workdir.records)
  make_records(config, folder)
  workdir.claim_records(folder, records.fingerprint(folder))
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
