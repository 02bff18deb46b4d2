"""A whole experiment: records, training, evaluation. What is done already is not done again."""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import digests, records
from input_pipeline.disk import disk_errors
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.locks import lock
from plan_jax import config as config_lib
from plan_jax.baselines import load as baselines
from plan_jax.evaluate import evaluate, validation_scalars
from plan_jax.evaluators import datasets
from plan_jax.evaluators.datasets import EvaluationSet, fingerprints, make_records
from plan_jax.inference.load import load, of_state
from plan_jax.inference.predictor import Predictor
from plan_jax.results import rows, tables
from plan_jax.runtime import processes
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.train import Validate, train
from plan_jax.training import extension, features, pretrained


@disk_errors()
def run(
  config: ConfigDict,
  workdir: Workdir,
  mode: str,
  given: Collection[str] = (),
  steps: int | None = None,
) -> None:
  """Runs what `mode` names: "train", "evaluate", or "all" for both in turn.

  "features" makes the records and the stored features of all sets, and stops.

  A config of configs/baselines.py is evaluated, for nothing of it is trained. `given` are the keys
  that the command line sets: weights do not replace them. With `steps` the
  training is made longer, see `extension.extended`; `config` is then the run's own.

  Raises UserError where config, data or workdir are not fit, before any work if it can be known,
  and where another start has the workdir.
  """
  with contextlib.ExitStack() as held:
    processes.on_primary(lambda: held.enter_context(lock(workdir.path)))
    if "baseline" in config:
      _run_baseline(config, workdir, mode)
    else:
      _run(config, workdir, mode, given, steps)


def _run(
  written: ConfigDict, workdir: Workdir, mode: str, given: Collection[str], steps: int | None
) -> None:
  config = pretrained.with_settings(written, workdir, given)
  if steps:
    config = extension.extended(config, workdir, steps)
  config_lib.check(config)
  trains = mode in ("train", "all")
  (config_lib.check_devices if trains else config_lib.check_mesh)(config)
  if steps:
    processes.on_primary(lambda: extension.extend(config, workdir))
  if mode == "features" and not config.data.store_features:
    raise UserError("--mode=features: needs config.data.store_features=True")
  if mode != "evaluate" and not workdir.begun():
    # Before hours of conversion; where a run goes on, the files may be gone.
    pretrained.check(config)
  folder = _claim(config, workdir, new=mode != "evaluate")
  pretrained.log_settings(written, config)
  if mode == "features":
    _make_sets(config, workdir, folder)
    return
  if mode == "evaluate":
    _evaluate(load(workdir, config), config, workdir, _make_sets(config, workdir, folder))
    return
  own = datasets.own_features(config, workdir)
  if mode == "all":
    sets = _make_sets(config, workdir, folder)
  elif own:
    features.store(config, [features.Source(folder, own)], workdir)
  train(config, workdir, folder, _validation(config, folder, own), own)
  if mode == "train":
    return
  model = load(workdir, config)
  evaluated = _read_rows(workdir, model.step, sets)
  status = "none" if evaluated is None else "complete"
  processes.assert_equal(f"the evaluation in {workdir.path}", status)
  if evaluated is None:
    _evaluate(model, config, workdir, sets)
    return
  log.info("evaluation is complete too (--mode=evaluate does it again)\n")
  log.info(f"{tables.headline(evaluated)}\n\nreport: {workdir.report}")


@disk_errors()
def evaluate_on(config: ConfigDict, workdir: Workdir, chosen: ConfigDict, out: str = "") -> None:
  """Evaluates a run on a data set that is not its own; nothing of the run changes.

  Args:
    config: of the run.
    workdir: of the run; its newest checkpoint may be of a training that goes on.
    chosen: as an entry of config.evaluation.sets, or with a folder of records as its source; split
      "all" stands for all images as one test split, and so does none for a manifest without a
      column of splits.
    out: folder of records, example_scores/, evaluation.json and the report; by default
      WORKDIR/on/NAME-SPLIT-DIGEST, of the data set and how it is converted.

  Raises UserError where run, data or folder are not fit.
  """
  if "baseline" in config:
    raise UserError(
      f"--on: {workdir.path} is of a baseline: evaluate that anew, in another --workdir, with"
      " --config=configs/baselines.py:NAME and the data in --config.data.source"
    )
  config, chosen = ConfigDict(config.to_dict()), ConfigDict(chosen.to_dict())
  config.mesh = {"data": -1, "fsdp": 1}  # of the devices here
  config.data.limit = 0  # of the run's own images
  config.evaluation.sets, config.evaluation.transfer = ConfigDict(), ConfigDict()
  name = datasets.settle(chosen)
  config_lib.check(config)
  digest = datasets.conversion_digest(config, chosen)
  place = Workdir(out or workdir.path / "on" / f"{name}-{chosen.split}-{digest}")
  if out and place.evaluation.exists():
    raise UserError(f"--out={out} holds an evaluation already: name another folder")
  model = load(workdir, config)  # before a conversion, which may take hours
  title = f"{name}: {workdir.path.resolve().name} after {model.step} steps"
  evaluate_set(model, config, workdir, place, (name, chosen), title=title)


def evaluate_set(
  model: Predictor,
  config: ConfigDict,
  workdir: Workdir,
  place: Workdir,
  named: tuple[str, ConfigDict],
  *,
  findings: tuple[str, ...] = (),
  **head: Any,
) -> list[rows.Row]:
  """Converts one data set, evaluates a model on it, and writes all into a folder of its own.

  Args:
    model, config, workdir: of the run, or of a baseline.
    place: the folder.
    named: the set's name, and an entry of config.evaluation.sets with a source or records.
    findings: those that are scored; all where empty.
    head: `title` and `notes` of the report.

  Raises UserError where data or folder are not fit.
  """
  name, chosen = named

  def claim():
    try:
      place.claim(ConfigDict({"on": chosen.to_dict()}))
    except UserError as error:
      raise UserError(str(error).replace("--workdir", "--out")) from error
    if chosen.source:
      if records.is_complete(records_folder):
        log.info(f"converted before: delete {records_folder} if {chosen.source} has changed since")
      make_records(chosen, records_folder, config.data)

  records_folder = Path(chosen.records or place.path / "records")
  with contextlib.ExitStack() as held:
    processes.on_primary(lambda: held.enter_context(lock(place.path)))
    processes.on_primary(claim)
    stored = place.features if datasets.stores_features(config) else None
    readers = datasets.radiologists(chosen, records_folder, chosen.split)
    dataset = EvaluationSet(
      name, chosen.dataset, records_folder, chosen.split, False, stored, findings, readers
    )
    sets = [datasets.checked(dataset, "--split")]
    if stored:
      features.store(
        config, [features.Source(records_folder, stored, dataset.image_splits)], workdir
      )
    return evaluate(model, config, place, sets, **head)


def _evaluate(
  model: Predictor, config: ConfigDict, workdir: Workdir, sets: list[EvaluationSet]
) -> None:
  """Evaluates a run, and then the tasks that are learned on its encoder."""
  from plan_jax.transfer import attached  # detectors and COCO, which training does without

  learned = attached.learn(config, workdir, model, sets)
  evaluate(model, config, workdir, sets, learned=learned)


def load_baseline(config: ConfigDict, workdir: Workdir) -> tuple[Predictor, dict[str, dict]]:
  """Loads another project's model, and where its files come from; `workdir` must be of no other.

  Raises UserError where weights or folder are not fit.
  """
  model, provenance = config_lib.with_key(baselines.load, config, key="baseline.")
  workdir.refuse_other_baseline(config)
  return model, provenance


def note_baseline(workdir: Workdir, provenance: dict[str, dict]) -> None:
  """Writes where the files of a baseline come from, which all processes must agree on."""
  processes.assert_equal("the weights of the baseline", json.dumps(provenance))
  processes.on_primary(lambda: replace_text(workdir.weights, digests.seal(provenance, indent=2)))


def baseline_notes(model: Predictor, provenance: dict[str, dict]) -> dict[str, str]:
  """Collects facts of a baseline for the head of the report."""
  notes = {"model": f"{model.spec.title}, grid {model.grid[0]} x {model.grid[1]}"}
  return notes | {
    name: f"{file['source']} ({file['sha256'][:12]})" for name, file in provenance.items()
  }


def _run_baseline(config: ConfigDict, workdir: Workdir, mode: str) -> None:
  """Evaluates another project's model, as `config.baseline` names it."""
  if mode in ("train", "features"):
    raise UserError(f"--mode={mode}: a baseline is not trained, only evaluated (--mode=evaluate)")
  config = _without_own_set(config)
  config_lib.check_baseline(config)
  # Before hours of conversion.
  model, provenance = load_baseline(config, workdir)
  folder = _claim(config, workdir, new=True)
  note_baseline(workdir, provenance)
  sets = _make_sets(config, workdir, folder)
  title, notes = f"{config.data.dataset}: {model.spec.title}", baseline_notes(model, provenance)
  evaluate(model, config, workdir, sets, title=title, notes=notes)


def _validation(config: ConfigDict, folder: Path, stored: Path | None) -> Validate:
  """Makes the function that scores a state of training on validation images."""
  model = None

  def validate(parts, tokenizer, state) -> dict[str, float]:
    nonlocal model
    if model is None:
      model = of_state(parts, state, tokenizer)
    else:
      model.take(state)
    return validation_scalars(model, folder, config, stored)

  return validate


def _without_own_set(config: ConfigDict) -> ConfigDict:
  """Drops an evaluation set that waits for a source and has the name of the data, which is any."""
  config = ConfigDict(config.to_dict())
  own = config.evaluation.sets.get(config.data.dataset)
  if own is not None and not datasets.is_given(own):
    del config.evaluation.sets[config.data.dataset]
  return config


def _make_sets(config: ConfigDict, workdir: Workdir, folder: Path) -> list[EvaluationSet]:
  """The sets that the run is evaluated on; all processes see the same."""
  processes.on_primary(lambda: datasets.make_attached(config, workdir))
  stored = datasets.own_features(config, workdir)
  sets = [datasets.own(config, folder, stored), *datasets.attached(config, workdir)]
  if datasets.stores_features(config):
    sources = [
      features.Source(each.folder, each.features, () if each.is_own else each.image_splits)
      for each in sets
    ]
    features.store(config, sources, workdir)
  processes.assert_equal("the evaluation sets", json.dumps(fingerprints(sets)))
  return sets


def _read_rows(workdir: Workdir, step: int, sets: list[EvaluationSet]) -> list[rows.Row] | None:
  """The rows of a whole evaluation of this step on these sets, None if there is none."""
  if not (workdir.evaluation.exists() and workdir.report.exists()):
    return None
  old = rows.read(workdir.evaluation)
  same = (old.step, old.data, old.complete) == (step, fingerprints(sets), True)
  return old.rows if same else None


def _claim(config: ConfigDict, workdir: Workdir, *, new: bool) -> Path:
  """Claims workdir and records for the run, for all processes; gives the folder of the records."""
  folder = Path(config.data.records or workdir.records)

  def claim():
    workdir.claim(config, new=new)
    make_records(config.data, folder, config.data)
    workdir.claim_records(folder, records.fingerprint(folder))

  processes.assert_equal("the config", json.dumps(config.to_dict(), sort_keys=True))
  processes.on_primary(claim)
  for path in (workdir.config, folder):
    processes.require(path)
  processes.assert_equal(f"the data in {folder} (its fingerprint)", records.fingerprint(folder))
  return folder
