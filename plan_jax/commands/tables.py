"""Makes the tables of evaluations again from their per-example scores, without model or data.

  plan-jax tables runs/a
  plan-jax tables scores/a scores/b --resamples=10000
  plan-jax tables runs/a/suites/radzero
  plan-jax tables runs/a --json > rows.jsonl

SCORES is the folder of a run or of an evaluation, or its example_scores/ alone, which may be
copied; or the folder of a suite, whose own table comes last. The rows are those of evaluation.json,
the intervals of the same bootstrap; --resamples and --seed draw others. Tasks that are learned on
an encoder keep their rows in evaluation.json alone, and are named.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.command_line import Parser, at_least
from input_pipeline.errors import UserError
from input_pipeline.terminal import escape, escape_lines, join
from plan_jax.commands import inputs
from plan_jax.evaluators import suite_table
from plan_jax.results import tables
from plan_jax.results.rows import Row, as_json
from plan_jax.runtime.workdir import Workdir


def main(arguments: Sequence[str]) -> None:
  """Runs the command line."""
  parser = Parser("plan-jax tables", __doc__)
  parser.add_argument("scores", nargs="+", type=Path, help="folders of per-example scores")
  parser.add_argument("--resamples", type=at_least(0), help="bootstrap draws")
  parser.add_argument("--seed", type=at_least(0), help="of the draws")
  parser.add_argument("--json", action="store_true", help="one JSON object a row and line")
  options = parser.parse_args(arguments)
  draws = {"resamples": options.resamples, "seed": options.seed}
  with inputs.errors():
    for path in options.scores:
      head = suite_table.read_head(path)
      places = {"": path} if head is None else {key: path / key for key in head.scored}
      rows = {key: _print(place, draws, in_lines=options.json) for key, place in places.items()}
      if head is not None and not options.json:
        table = suite_table.table(head, suite_table.lines_of(head.suite, rows))
        print(escape_lines(f"{escape(str(path))}: suite {head.suite}\n\n{table}\n"))


def _print(path: Path, draws: dict[str, int | None], *, in_lines: bool) -> list[Row]:
  """Prints the tables of one evaluation, and returns their rows."""
  from plan_jax.evaluators import stored_scores  # takes seconds, which --help does without

  rows, rest = stored_scores.remake(folder_of(path), **draws)
  if in_lines:
    for row in rows:
      print(json.dumps({"scores": str(path)} | as_json(row)))
    return rows
  text = f"{escape(str(path))}\n\n{tables.table(rows)}\n"
  if rest:
    text += f"\nleft out, their rows are in evaluation.json alone: {join(rest)}\n"
  print(escape_lines(text))
  return rows


def folder_of(path: Path) -> Path:
  """Finds the scores of a run, or those that the folder itself holds. Raises UserError."""
  if not path.is_dir():
    raise UserError(f"there is no folder {path}")
  own = Workdir(path).example_scores
  return own if own.is_dir() else path
