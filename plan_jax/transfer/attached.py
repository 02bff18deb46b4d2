"""The tasks that a config attaches to be learned on the run's image encoder, after evaluation."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.digests import SUMS
from input_pipeline.disk import DiskError
from input_pipeline.errors import UserError
from input_pipeline.locks import LockedError
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.inference.predictor import Predictor
from plan_jax.results import example_scores
from plan_jax.results import rows as results
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.by_name import learn as learn_task
from plan_jax.transfer.encoder import encoder_weights, fingerprint
from plan_jax.transfer.entries import Entry, entries
from plan_jax.transfer.settings import Settings


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
        except (DiskError, LockedError):
          raise  # the same command goes on here
        except UserError as error:
          log.info(f"transfer task {task}, encoder {encoder}, is left out: {error}")
          continue
        if encoder == RUN:
          files = sorted(file for file in out.example_scores.iterdir() if file.name != SUMS)
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
    example_scores.check(out.example_scores)
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
