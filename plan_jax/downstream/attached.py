"""The tasks that a config attaches to be learned on the run's image encoder, as evaluation goes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax import classify, detect, probe, segment
from plan_jax.evaluation_sets import EvaluationSet
from plan_jax.evaluators import results
from plan_jax.evaluators.results import RUN, Row
from plan_jax.reporting import say
from plan_jax.workdir import Workdir

# Name -> the module of its command, and what it does.
TASKS = {
  "detect": (detect, detect.detect),
  "segment": (segment, segment.segment),
  "classify": (classify, classify.classify),
  "probe": (probe, probe.probe),
}


def learned(
  config: ConfigDict, workdir: Workdir, step: int, sets: Sequence[EvaluationSet]
) -> Iterator[tuple[EvaluationSet, str, list[Row], list[Path]]]:
  """Learns what `config.evaluation.downstream` names, each once for every share of the patients.

  It lies in WORKDIR/downstream/NAME/; what is there already is taken from there. What cannot be
  learned is left out, with the reason: its other shares, and the rest of the evaluation, go on.

  Args:
    config: of the run.
    workdir: of the run.
    step: of the run's checkpoint that is evaluated.
    sets: the run's own first.

  Yields:
    The set, the name in rows and of the units ("NAME-SHARE"), rows (figures of other encoders are
    models "random encoder" and "supervised encoder"), and the files of units of the run's
    encoder.
  """
  entries = config.evaluation.get("downstream", {})  # other projects' models have none
  if entries and jax.process_count() > 1:
    say("downstream tasks are left out: they are learned by one process (--mode=evaluate, alone)")
    return
  by_name = {chosen.attached_name: chosen for chosen in sets}
  for name, entry in entries.items():
    chosen = by_name.get(entry.of)
    if chosen is None:
      say(f"downstream {name} is left out: evaluation set {entry.of} is not given")
      continue
    for fraction in entry.fractions:
      task, rows, found = f"{name}-{fraction:g}", [], None
      for encoder in entry.encoders:
        try:
          some, files = _one(workdir, name, entry, chosen, step, encoder, fraction)
        except UserError as error:
          say(f"downstream {task}, encoder {encoder}, is left out: {error}")
          continue
        if encoder == RUN:
          found = files
        rows += _renamed(some, task, chosen.data, encoder)
      if found is not None:
        yield chosen, task, rows, found


def flags_of(task: str) -> set[str]:
  """The flags of a task that an entry of the config may set."""
  module, _ = TASKS[task]
  parsed = module.parser().parse_args(["--workdir=x", "--records=x", "--out=x"])
  return set(vars(parsed)) - {"workdir", "records", "out", "encoder", "fraction"}


def _one(
  workdir: Workdir, name: str, entry: ConfigDict, chosen: EvaluationSet, step: int, encoder: str,
  fraction: float,
) -> tuple[list[Row], list[Path]]:  # fmt: skip
  """The rows, and the files of units, of one command, run here or found."""
  module, work = TASKS[entry.task]
  flags = {"encoder": encoder, "fraction": fraction, **entry.flags.to_dict()}
  # Other flags, another checkpoint and other data are another folder.
  known = [entry.task, flags, step if encoder == RUN else None, records.fingerprint(chosen.folder)]
  mark = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:6]
  out = Workdir(workdir.path / "downstream" / name / f"{encoder}-{fraction:g}-{mark}")
  if out.evaluation.exists():
    say(f"downstream {name}, encoder {encoder}, share {fraction:g}: found in {out.path}")
    rows = results.read(out.evaluation).rows
  else:
    say(f"downstream {name}, encoder {encoder}, share {fraction:g}: {out.path}")
    places = {"workdir": workdir.path, "records": chosen.folder, "out": out.path}
    given = [f"--{key}={value}" for key, value in (places | flags).items()]
    rows = work(module.parser().parse_args(given))
  return rows, sorted(out.units.iterdir())


def _renamed(rows: Sequence[Row], task: str, data: str, encoder: str) -> list[Row]:
  """Rows of a command as rows of the run's evaluation."""
  named = [replace(row, task=task, data=data) for row in rows]
  if encoder == RUN:
    return named
  return [
    replace(row, model=f"{encoder} encoder", low=float("nan"), high=float("nan"))
    for row in named
    if row.model == RUN and not row.metric.startswith("threshold")
  ]
