"""Scores of an evaluation on disk, of which its rows are made again without model or data.

Beside the CSV files of `results.example_scores` lies tables.json, sealed: {"resamples", "seed",
"sets": [{"folder": "" or that of an attached set, "data", "evaluators": [{"name", "protocols",
"scores": names of the files, "facts": what is of no example}]}]}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline import digests
from input_pipeline.digests import DamagedError
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.by_name import EVALUATORS
from plan_jax.results import example_scores
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row

FILE = "tables.json"
_REMEDY = "evaluate again (--mode=evaluate)"
_OPTIONS = {"terms": {"listed": lambda sentence: []}}  # that rows do without


def describe(
  evaluator: Evaluator, scores: Any, kept: dict[str, ExampleScores]
) -> list[dict[str, Any]]:
  """Describes what an evaluator kept of its scores, as one entry; none where it kept nothing."""
  name = next(name for name, kind in EVALUATORS.items() if type(evaluator) is kind)
  entry = {"name": name, "protocols": evaluator.protocols, "scores": list(kept)}
  return [entry | {"facts": evaluator.facts(scores)}] if kept else []


def write(folder: Path, sets: Sequence[dict[str, Any]], *, resamples: int, seed: int) -> None:
  """Writes tables.json; each of `sets` has the entries of `describe` as its "evaluators"."""
  content = {"resamples": resamples, "seed": seed, "sets": list(sets)}
  replace_text(folder / FILE, digests.seal(content))


def remake(
  folder: Path, *, resamples: int | None = None, seed: int | None = None
) -> tuple[list[Row], list[str]]:
  """Makes the rows of all evaluators again, and lists the files that have no rows here.

  Without `resamples` and `seed` they are those of the evaluation, and the rows are the same to the
  last digit. Raises UserError where the folder has no scores, and DamagedError where a file is not
  as it was written.
  """
  if not (folder / FILE).exists():
    raise UserError(f"{folder} has no {FILE}: name the folder of a run, or {_REMEDY}")
  example_scores.check(folder)
  content = digests.read_sealed(folder / FILE, _REMEDY)
  draws = {
    "resamples": content["resamples"] if resamples is None else resamples,
    "seed": content["seed"] if seed is None else seed,
  }
  rows, used = [], set()
  for chosen in content["sets"]:
    for entry in chosen["evaluators"]:
      if entry["name"] not in EVALUATORS:
        raise DamagedError(f"{folder / FILE} is of another version; {_REMEDY}")
      files = {name: folder / chosen["folder"] / f"{name}.csv" for name in entry["scores"]}
      used |= {*files.values()}
      kept = {name: example_scores.read(file) for name, file in files.items()}
      options = _OPTIONS.get(entry["name"], {})
      evaluator = EVALUATORS[entry["name"]](protocols=tuple(entry["protocols"]), **options)
      scores = evaluator.restore(kept, entry["facts"])
      rows += evaluator.rows(scores, data=chosen["data"], **draws)
  rest = sorted({*folder.rglob("*.csv")} - used)
  return rows, [file.relative_to(folder).with_suffix("").as_posix() for file in rest]
