"""Evaluation results: the row that every evaluator returns, and their file.

`evaluation.json` holds `{"step": int, "complete": bool, "data": {data: fingerprint of its records},
"rows": [{"task", "protocol", "data", "group", "metric", "model", "value", "low", "high", "n"}],
"digest": of all this}`; rows of retrieval also hold "gallery". A number that does not exist is null
in the file and NaN in memory.
"""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from input_pipeline import digests
from input_pipeline.digests import DamagedError
from input_pipeline.files import replace_text

RUN = "run"
# Models of rows beside a run that are no chance baselines: "radiologist 1", ...
RADIOLOGIST, MEAN_RADIOLOGIST = "radiologist", "mean radiologist"
REMEDY = "delete it, and evaluate again (--mode=evaluate)"
# Followed during training, on the validation split: (task, group, metric).
FOLLOWED = (
  ("grounding", "macro", "signed CNR"),
  ("grounding", "macro", "mIoU"),
  ("grounding", "macro", "pointing"),
  ("retrieval", "all", "R@5 image-to-text"),
  ("retrieval", "all", "R@5 text-to-image"),
  ("zero-shot-ours", "macro", "AUC"),
)
# Shown first to a reader.
HEADLINES = (
  *FOLLOWED,
  ("class-retrieval", "macro", "P@5 image-to-text without own"),
  ("presence", "macro", "AUC"),
  ("side", "macro", "on the named side"),
  ("side", "macro", "moves"),
  ("terms", "all", "AUC finding against rest"),
)


@dataclass(frozen=True)
class Row:
  """One value of a metric."""

  task: str  # "grounding", "retrieval", "class-retrieval", "presence", "zero-shot-ours", ...
  protocol: str  # name and version of the rules it is measured by, e.g. "grounding-v1"
  data: str  # the data set and split, e.g. "phantom/test"
  group: str  # a finding, "macro" for the mean over findings, or "all"
  metric: str  # e.g. "mIoU"
  model: str  # "run", the name of a chance baseline, or a radiologist's
  value: float  # NaN where no example has one
  low: float  # ends of its 95 % bootstrap interval; NaN where there is none
  high: float  # ends of its 95 % bootstrap interval; NaN where there is none
  n: int  # number of examples (phrases, queries, ...) behind the value
  gallery: int | None = None  # candidates that a query is ranked against


def scalar_name(task: str, metric: str) -> str:
  """Names a metric of `FOLLOWED` in the curves and as `best_metric`."""
  return f"validation/{task}/{metric.replace(' ', '_')}"


def is_chance(model: str) -> bool:
  """Tells whether the model of a row is a chance baseline: neither the run nor a radiologist."""
  return model not in (RUN, MEAN_RADIOLOGIST) and not model.startswith(f"{RADIOLOGIST} ")


def lower_is_better(metric: str) -> bool:
  """Returns True for metrics of which a smaller value is better: ranks, and nothing else here."""
  return metric.startswith("median rank")


@dataclass(frozen=True)
class Evaluation:
  """Content of `evaluation.json`."""

  step: int  # of training
  rows: list[Row]
  data: dict[str, str]  # data set and split, the run's own first -> fingerprint of the records
  complete: bool = True  # False where more rows are to come


def write(path: str | os.PathLike, evaluation: Evaluation) -> None:
  """Writes JSON, whole or not at all. Raises ValueError where a value is infinite."""
  content = {
    "step": int(evaluation.step),
    "complete": evaluation.complete,
    "data": evaluation.data,
    "rows": [as_json(row) for row in evaluation.rows],
  }
  replace_text(path, digests.seal(content, indent=1))


def read(path: str | os.PathLike) -> Evaluation:
  """Reads a file that `write` wrote. Raises DamagedError where it is not as it was written."""
  content = digests.read_sealed(Path(path), REMEDY)
  try:
    rows = [_from_json(row) for row in content["rows"]]
    return Evaluation(content["step"], rows, content["data"], content["complete"])
  except (KeyError, TypeError) as error:
    raise DamagedError(f"{path} is of another version ({error}); {REMEDY}") from error


def as_json(row: Row) -> dict:
  """Writes a row as JSON has it. Raises ValueError where a value is infinite."""
  fields = asdict(row)
  if row.gallery is None:
    del fields["gallery"]
  for name in ("value", "low", "high"):
    number = float(fields[name])
    if math.isinf(number):
      raise ValueError(f"{name} of {row.task} {row.group} {row.metric} {row.model} is infinite")
    fields[name] = None if math.isnan(number) else number
  fields["n"] = int(row.n)
  return fields


def _from_json(fields: dict) -> Row:
  numbers = {name: fields[name] for name in ("value", "low", "high")}
  return Row(**fields | {name: math.nan if x is None else x for name, x in numbers.items()})
