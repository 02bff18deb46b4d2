"""The tasks that a config attaches to be learned on the run's image encoder, as evaluation goes."""

import argparse
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.inference.load import Grounder
from plan_jax.results import rows as results
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import classify, command, detect, linear_probe, segment
from plan_jax.transfer.encoder import mark_of, weights_of

# Name -> the module of its command, and what it does.
TASKS = {
  "detection": (detect, detect.detect),
  "segmentation": (segment, segment.segment),
  "classification": (classify, classify.classify),
  "linear_probe": (linear_probe, linear_probe.probe),
}
_OWN = {"workdir", "records", "out", "encoder", "step", "fraction"}  # not for a config to set


def learned(
  config: ConfigDict, workdir: Workdir, model: Grounder, sets: Sequence[EvaluationSet]
) -> Iterator[tuple[EvaluationSet, str, list[Row], list[Path]]]:
  """Learns what `config.evaluation.transfer` names, each once for every share of the patients.

  It lies in WORKDIR/downstream/NAME/; what is there already is taken from there. What cannot be
  learned is left out, with the reason: its other shares go on.

  Args:
    config: of the run.
    workdir: of the run.
    model: the run, as it is evaluated.
    sets: the run's own first.

  Yields:
    The set, the name in rows and of the units ("NAME-SHARE"), rows (figures of other encoders are
    models "random encoder" and "supervised encoder"), and the files of units of the run's
    encoder.
  """
  entries = config.evaluation.get("transfer", {})  # other projects' models have none
  if entries and jax.process_count() > 1:
    log.info(
      "downstream tasks are left out: they are learned by one process (--mode=evaluate, alone)"
    )
    return
  weights = mark_of(weights_of(model)) if entries else ""
  by_name = {chosen.attached_name: chosen for chosen in sets}
  for name, entry in entries.items():
    chosen = by_name.get(entry.of)
    if chosen is None:
      log.info(f"downstream {name} is left out: evaluation set {entry.of} is not given")
      continue
    for fraction in entry.fractions:
      task, rows, found = f"{name}-{fraction:g}", [], None
      for encoder in entry.encoders:
        flags = flags_of(config, entry, encoder, fraction)
        # Other flags, weights or data are another folder.
        known = weights if encoder == RUN else config.model.image.to_dict()
        mark = _mark(entry.task, flags, known, records.fingerprint(chosen.folder))
        out = Workdir(workdir.path / "downstream" / name / f"{encoder}-{fraction:g}-{mark}")
        flags |= {"workdir": workdir.path, "records": chosen.folder, "out": out.path}
        try:
          some = _one(entry.task, flags | {"step": model.step}, out)
        except UserError as error:
          log.info(f"downstream {task}, encoder {encoder}, is left out: {error}")
          continue
        if encoder == RUN:
          found = sorted(out.example_scores.iterdir())
        rows += _renamed(some, task, chosen.data, encoder)
      if found is not None:
        yield chosen, task, rows, found


def flags_of(config: ConfigDict, entry: ConfigDict, encoder: str, fraction: float) -> dict:
  """The flags of one command, but for its folders."""
  common = {"resamples": config.evaluation.resamples, "seed": config.seed}
  return common | entry.flags.to_dict() | {"encoder": encoder, "fraction": fraction}


def known_flags(task: str) -> set[str]:
  """The flags of a task that an entry of the config may set."""
  return set(vars(parsed(task, dict.fromkeys(("workdir", "records", "out"), "x")))) - _OWN


def parsed(task: str, flags: dict) -> argparse.Namespace:
  """The command line of a task. Raises UserError where a flag is unknown or cannot be."""
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      arguments = TASKS[task][0].parser().parse_args([f"--{k}={v}" for k, v in flags.items()])
  except SystemExit:
    raise UserError(said.getvalue().strip().rpartition("error: ")[2]) from None
  command.check_flags(arguments)
  return arguments


def _mark(*known) -> str:
  return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:6]


def _one(task: str, flags: dict, out: Workdir) -> list[Row]:
  """The rows of one command, run here or found."""
  if out.evaluation.exists():
    log.info(f"downstream: found in {out.path}")
    return results.read(out.evaluation).rows
  log.info(f"downstream: {out.path}")
  return TASKS[task][1](parsed(task, flags))


def _renamed(rows: Sequence[Row], task: str, data: str, encoder: str) -> list[Row]:
  """Rows of a command as rows of the run's evaluation."""
  named = [replace(row, task=task, data=data) for row in rows]
  if encoder == RUN:
    return named
  return [
    replace(row, model=f"{encoder} encoder")
    for row in named
    if row.model == RUN and not row.metric.startswith("threshold")
  ]
