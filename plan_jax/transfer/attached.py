"""The tasks that a config attaches to be learned on the run's image encoder, after evaluation."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.inference.predictor import Predictor
from plan_jax.results import rows as results
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.by_name import learn as learn_task
from plan_jax.transfer.encoder import encoder_weights, fingerprint
from plan_jax.transfer.settings import SETTINGS, Settings

# Fields that are no flags of an entry: they follow from the run, or from the entry itself.
_RESERVED = {"workdir", "records", "out", "encoder", "step", "fraction"}


@dataclass(frozen=True)
class Entry:
  """A task to be learned on the run's encoder, and on others to compare it with.

  Attributes:
    task: a name of `SETTINGS`.
    of: the evaluation set to learn from and to score on; "" for the run's own data.
    fractions: shares of the training patients, each learned by itself.
    encoders: "run" first; see `Settings.ENCODERS`.
    flags: further settings of the task.
  """

  task: str
  of: str
  fractions: tuple[float, ...]
  encoders: tuple[str, ...]
  flags: dict

  def settings(self, encoder: str, fraction: float, **places) -> Settings:
    """Returns the settings for one encoder and one share. Raises UserError, naming the flag."""
    return SETTINGS[self.task](encoder=encoder, fraction=fraction, **places, **self.flags)


def flags_of(task: str) -> set[str]:
  """Returns the names of the settings that an entry of this task may set."""
  return {field.name for field in dataclasses.fields(SETTINGS[task])} - _RESERVED


def entries(config: ConfigDict) -> dict[str, Entry]:
  """Returns the entries of a run's config by name; other projects' models have none.

  Raises UserError at the first impossible one: the key without its leading "config.", the value,
  and the rule.
  """
  common = {"resamples": config.evaluation.resamples, "seed": config.seed}
  out = {}
  for name, raw in config.evaluation.get("transfer", {}).items():
    key = f"evaluation.transfer.{name}"
    _require(raw.task in SETTINGS, f"{key}.task", raw.task, _choice(SETTINGS))
    sets = ("", *config.evaluation.sets)
    _require(raw.of in sets, f"{key}.of", raw.of, _choice(sets))
    flags, allowed = raw.flags.to_dict(), flags_of(raw.task)
    rule = f"its keys must be flags of --task={raw.task}: {', '.join(sorted(allowed))}"
    _require(set(flags) <= allowed, f"{key}.flags", flags, rule)
    entry = Entry(raw.task, raw.of, tuple(raw.fractions), tuple(raw.encoders), common | flags)
    _check(config, key, entry)
    out[name] = entry
  return out


def _check(config: ConfigDict, key: str, entry: Entry) -> None:
  rule = "must be shares above 0, and 1 at most"
  fits = all(0 < share <= 1 for share in entry.fractions)
  _require(fits, f"{key}.fractions", entry.fractions, rule)
  known = SETTINGS[entry.task].ENCODERS
  fits = entry.encoders[:1] == ("run",) and set(entry.encoders) <= set(known)
  rule = f"must begin with 'run'; there are {', '.join(known)}"
  _require(fits, f"{key}.encoders", entry.encoders, rule)
  scored = f"evaluation.sets.{entry.of}.split" if entry.of else "evaluation.split"
  split = config.evaluation.sets[entry.of].split if entry.of else config.evaluation.split
  rule = f"config.{key} is scored on the test split"
  _require(split == "test" or not entry.fractions, scored, split, rule)
  nowhere = Path()
  for encoder in entry.encoders:
    try:
      entry.settings(encoder, 1.0, records=nowhere, out=nowhere, workdir=nowhere)
    except UserError as error:
      raise UserError(f"{key}.flags: {error}") from error


def _choice(names: Iterable[str]) -> str:
  return f"must be one of {', '.join(names)}"


def _require(fits: bool, key: str, value, rule: str) -> None:
  if not fits:
    raise UserError(f"{key}: is {value!r}; {rule}")


def learn(
  config: ConfigDict, workdir: Workdir, model: Predictor, datasets: Sequence[EvaluationSet]
) -> Iterator[tuple[EvaluationSet, str, list[Row], list[Path]]]:
  """Learns what `config.evaluation.transfer` names, each once for every share of the patients.

  Yields the set that a task was learned from and scored on, "NAME-SHARE" (its name in rows), the
  rows of all encoders (others than the run's are models "random encoder", "supervised encoder"),
  and the files of example scores of the run's encoder.

  What is learned lies in WORKDIR/transfer/NAME/, and is taken from there where it is complete. A
  share that cannot be learned is left out, with the reason, and the others go on.

  All is of the run, whose own set is the first of `datasets`.
  """
  attached = entries(config)
  if attached and jax.process_count() > 1:
    log.info("transfer tasks are left out: one process learns them (--mode=evaluate, alone)")
    return
  weights = fingerprint(encoder_weights(model.variables)) if attached else ""
  by_name = {dataset.attached_name: dataset for dataset in datasets}
  for name, entry in attached.items():
    dataset = by_name.get(entry.of)
    if dataset is None:
      log.info(f"transfer task {name} is left out: evaluation set {entry.of} is not given")
      continue
    for fraction in entry.fractions:
      task, rows, files = f"{name}-{fraction:g}", [], None
      for encoder in entry.encoders:
        origin = weights if encoder == RUN else config.model.image.to_dict()
        key = _key(entry, origin, records.fingerprint(dataset.folder))
        out = Workdir(workdir.path / "transfer" / name / f"{encoder}-{fraction:g}-{key}")
        try:
          settings = entry.settings(
            encoder,
            fraction,
            records=Path(dataset.folder),
            out=out.path,
            workdir=workdir.path,
            step=model.step,
          )
          rows += _renamed(_rows(settings, out), task, dataset.data, encoder)
        except UserError as error:
          log.info(f"transfer task {task}, encoder {encoder}, is left out: {error}")
          continue
        if encoder == RUN:
          files = sorted(out.example_scores.iterdir())
      if files is not None:
        yield dataset, task, rows, files


def _key(entry: Entry, origin: str | dict, data: str) -> str:
  """Returns six letters: other flags, weights or data are another folder."""
  known = json.dumps([entry.task, entry.flags, origin, data], sort_keys=True)
  return hashlib.sha256(known.encode()).hexdigest()[:6]


def _rows(settings: Settings, out: Workdir) -> list[Row]:
  """Returns the rows of a task: those in its folder, where it is complete, or learned now."""
  if out.evaluation.exists():
    log.info(f"transfer: complete in {out.path}")
    return results.read(out.evaluation).rows
  log.info(f"transfer: {out.path}")
  return learn_task(settings)


def _renamed(rows: Sequence[Row], task: str, data: str, encoder: str) -> list[Row]:
  """Returns the rows of a task as rows of the run's evaluation."""
  named = [dataclasses.replace(row, task=task, data=data) for row in rows]
  if encoder == RUN:
    return named
  return [
    dataclasses.replace(row, model=f"{encoder} encoder")
    for row in named
    if row.model == RUN and not row.metric.startswith("threshold")
  ]
