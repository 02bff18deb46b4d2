"""Compares two runs: which differences between their metrics are real?

  plan-jax compare runs/a runs/b
  plan-jax compare runs/a runs/b --all

It says first how many differences are real, then shows the rows of all findings together; --all
shows those of each finding too. Every metric whose scores both runs keep by example
(`example_scores/`) is compared, b minus a on the same examples: 95 % percentile intervals of a
paired bootstrap of patients, the same draws for both. Images that are scored for a finding are
compared by AUC and average precision and, where both runs have a threshold, by F1, accuracy, MCC,
sensitivity and specificity, each at its own threshold; detectors by mAP, AP50 and FROC; words by
the areas that their significance gives. Of published protocols those of grounding and segmentation
are compared. Not compared are the others, strata by view, galleries by kind of text, the F1 of
zero-shot classes, mean peaks and mean significance. A difference is called real where its interval
excludes zero and 20 patients or more are behind it. That tells apart two models, not two methods:
for those, train several seeds of each (`launch.sweep`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from input_pipeline.command_line import Parser, at_least
from input_pipeline.errors import UserError
from input_pipeline.terminal import escape_lines
from plan_jax.evaluators import differences
from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import MACRO, Summary
from plan_jax.results import boxes, example_scores, rows, tables, word_contrasts
from plan_jax.results.example_scores import PART, SCORED, ExampleScores
from plan_jax.results.tables import LEAST_PATIENTS
from plan_jax.runtime.workdir import Workdir

_PUBLISHED = tuple(f"{task}{PART}compat-" for task in ("grounding", "segmentation"))


@dataclass(frozen=True)
class Difference:
  """One metric of two runs."""

  name: str  # task, with the evaluation set before it where it is an attached one
  group: str
  metric: str
  a: float
  b: float
  change: Summary  # b minus a, with its interval
  patients: int = 0  # number behind it

  @property
  def verdict(self) -> str:
    """Judges b: "better", "worse", or "" where the interval holds zero or patients are few."""
    low, high = self.change.low, self.change.high
    if math.isnan(low) or low <= 0 <= high or self.patients < LEAST_PATIENTS:
      return ""
    return "better" if (low > 0) != rows.lower_is_better(self.metric) else "worse"


@dataclass(frozen=True)
class _Task:
  """The per-example scores of a task in one run, with the rows and the data that they belong to."""

  file: Path
  scores: ExampleScores
  rows: list[rows.Row]
  data: str

  @property
  def boxes(self) -> Path:
    return self.file.with_suffix(".npz")

  @property
  def thresholds(self) -> dict[str, float]:
    """Finding -> threshold of its metrics."""
    at_half = {row.group: 0.5 for row in self.rows if row.metric.endswith(" at .5")}
    return at_half | {row.group: row.value for row in self.rows if row.metric == "threshold"}


def compare(
  a: Path, b: Path, *, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> tuple[list[Difference], list[str]]:
  """Returns all differences of two runs, and what is left out, with the reason.

  Raises UserError where a folder holds no evaluation, a file is damaged, or nothing can be
  compared.
  """
  runs = [_tasks(path) for path in (a, b)]
  compared, left_out = [], []
  for name in sorted(runs[0].keys() ^ runs[1].keys()):
    if PART in name:  # one run may do without published protocols
      continue
    left_out.append(f"{name}: only {a if name in runs[0] else b} has its per-example scores")
  for name in sorted(runs[0].keys() & runs[1].keys()):
    first, second = (run[name]() for run in runs)
    if reason := _mismatch(first, second):
      left_out.append(f"{name}: {reason}")
      continue
    patients = first.scores.patients_by_group()
    for group, *rest in _changes(first, second, {"resamples": resamples, "seed": seed}):
      behind = min(patients.get(group, patients[MACRO]), rest[-1].n)  # n: examples that have it
      compared.append(Difference(name, group, *rest, behind))
  if not compared:
    reasons = "; ".join(left_out) or "they have no per-example scores"
    raise UserError(f"{a} and {b} cannot be compared: {reasons}")
  return compared, left_out


def table(compared: list[Difference], left_out: list[str], *, every: bool = False) -> str:
  """Returns how many differences are real, a table of them, and what is left out.

  A row has both values, the change, and its verdict. Without `every` there are only the rows of all
  findings, and the others are counted.
  """
  head = ["", "group", "metric", "a", "b", "b - a [95 %]", "n", ""]
  lines = [
    [d.name, d.group, d.metric, tables.number(d.a), tables.number(d.b)]
    + [tables.with_interval(d.change), d.change.n, d.verdict]
    for d in compared
    if every or d.group in (MACRO, "all")
  ]
  verdicts = Counter(d.verdict for d in compared)
  few = [d for d in compared if d.patients < LEAST_PATIENTS]
  note = (
    f"{len(compared) - verdicts['']} of {len(compared) - len(few)} differences are real"
    f" ({verdicts['better']} better, {verdicts['worse']} worse): their interval excludes zero. Of"
    " metrics that do not differ, one in twenty would seem to."
  )
  if few:
    most = max(d.patients for d in few)
    note += (
      f" {len(few)} more are not judged: {most} patients or fewer are behind them,"
      f" {LEAST_PATIENTS} are needed, for the bootstrap of so few tells too little."
    )
  parts = [note, tables.aligned(lines, head, texts=len(head))]
  if rest := len(compared) - len(lines):
    parts.append(f"{rest} rows of single findings are not shown: --all shows them")
  if left_out:
    parts.append("\n".join(f"left out: {reason}" for reason in left_out))
  return "\n\n".join(parts)


def _tasks(path: Path) -> dict[str, partial[_Task]]:
  """Maps names ("grounding", "ms_cxr/grounding") to readers of the run's tasks."""
  if not Path(path).is_dir():
    raise UserError(f"there is no folder {path}")
  if not Workdir(path).evaluation.exists():
    raise UserError(f"{path} holds no evaluation: run it with --mode=evaluate first")
  evaluation = rows.read(Workdir(path).evaluation)
  folder = Workdir(path).example_scores
  example_scores.check(folder)
  names = {
    file.relative_to(folder).with_suffix("").as_posix(): file
    for file in folder.rglob("*.csv")
    if PART not in file.name or file.name.startswith(_PUBLISHED)  # others are chance baselines
  }
  return {name: partial(_task, evaluation, name, file) for name, file in names.items()}


def _task(evaluation: rows.Evaluation, name: str, file: Path) -> _Task:
  scores = example_scores.read(file)
  attached, _, task = name.rpartition("/")
  own = next(iter(evaluation.data), "")  # the run's own data comes first
  data = next((d for d in evaluation.data if d.split("/")[0] == attached), "") if attached else own
  chosen = [
    row
    for row in evaluation.rows
    # The rules of published protocols are in the names of their files.
    if (row.task, row.data) == (task, data) and not row.protocol.startswith("compat-")
  ]
  return _Task(file, scores, chosen, f"{data} ({evaluation.data.get(data)})")


def _mismatch(a: _Task, b: _Task) -> str:
  """Returns why two tasks cannot be compared; "" where they can."""
  rules = [{(row.protocol, row.gallery) for row in task.rows} for task in (a, b)]
  if a.scores.metrics != b.scores.metrics or rules[0] != rules[1]:
    return "measured by other rules; evaluate both again"
  if a.data != b.data:
    return f"other data: {a.data} and {b.data}"
  if any(getattr(a.scores, k) != getattr(b.scores, k) for k in ("ids", "groups", "patients")):
    return f"other examples ({len(a.scores.ids)} and {len(b.scores.ids)})"
  return ""


def _changes(a: _Task, b: _Task, draws: dict[str, int]) -> Iterator[differences.Change]:
  if a.scores.metrics == word_contrasts.METRICS:
    return differences.word_changes(a.scores, b.scores, draws)
  if a.boxes.exists() and b.boxes.exists():
    return differences.detector_changes(boxes.read(a.boxes), boxes.read(b.boxes), draws)
  if a.file.name.startswith(f"segmentation{PART}"):
    from plan_jax.evaluators import segmentation_compat  # takes seconds, which --help does without

    (first, _), (second, _) = (segmentation_compat.at_best(x.scores) for x in (a, b))
    return differences.mean_changes(first, second, draws)
  if a.scores.metrics == SCORED:
    return differences.ranked_changes(a.scores, b.scores, (a.thresholds, b.thresholds), draws)
  return differences.mean_changes(a.scores, b.scores, draws)


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table, or one error with exit status 1."""
  parser = Parser("plan-jax compare", __doc__)
  parser.add_argument("a", type=Path, help="workdir of the first run")
  parser.add_argument("b", type=Path, help="workdir of the second")
  parser.add_argument("--all", action="store_true", help="show the rows of each finding too")
  parser.add_argument(
    "--resamples", type=at_least(1), default=bootstrap.RESAMPLES, help="bootstrap draws"
  )
  parser.add_argument("--seed", type=at_least(0), default=0, help="of the draws")
  options = vars(parser.parse_args(arguments))
  every = options.pop("all")
  try:
    print(escape_lines(table(*compare(**options), every=every)))
  except UserError as error:
    raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
  main()
