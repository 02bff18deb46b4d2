"""Which differences between two runs are real?

  python -m plan_jax.compare runs/a runs/b

Compares every figure whose units both runs keep (`example_scores/`), b minus a on the same units: 95 %
percentile intervals of a paired bootstrap of patients, the same draws for both. Images that are
scored for a finding are compared by AUC and average precision and, where both runs have a
threshold, by F1, accuracy, MCC, sensitivity and specificity, each at its own threshold; detectors
by mAP, AP50 and FROC; words by the areas that their significance gives. Figures without units are
not compared: published protocols (compat-), strata by view, galleries by kind of text, the F1 of
zero-shot classes, mean peaks and mean significance. A difference is called
real where its interval excludes zero and 20 patients or more are behind it. That tells apart two
models, not two methods: for those, train several seeds of each (`launch.sweep`).
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from plan_jax.evaluators import terms
from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import Summary
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.metrics.detection import METRICS, detection_metrics
from plan_jax.results import boxes
from plan_jax.results import example_scores as unit_scores
from plan_jax.results import rows as results
from plan_jax.results.example_scores import ExampleScores
from plan_jax.runtime.workdir import Workdir

LEAST = 20  # patients that a verdict needs


@dataclass(frozen=True)
class Difference:
  """One figure of two runs.

  Attributes:
    name: task, and the evaluation set where it is an attached one.
    group, metric: as in the rows of an evaluation.
    a, b: the figure of either run.
    change: b minus a, with its interval.
    patients: behind it.
  """

  name: str
  group: str
  metric: str
  a: float
  b: float
  change: Summary
  patients: int = 0

  @property
  def verdict(self) -> str:
    """What b is: "better", "worse", or "" where the interval holds zero or tells nothing."""
    if math.isnan(self.change.low) or self.change.low <= 0 <= self.change.high:
      return ""
    if self.patients < LEAST:
      return ""
    return "better" if (self.change.low > 0) != results.lower_is_better(self.metric) else "worse"


def compare(
  a: Path, b: Path, *, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> tuple[list[Difference], list[str]]:
  """All differences of two runs, and what could not be compared, with the reason.

  Raises UserError where a folder holds no evaluation, a file is damaged, or nothing can be
  compared.
  """
  evaluations = [_evaluation(path) for path in (a, b)]
  found, left_out = [], []
  sides = [_files(path) for path in (a, b)]
  for name in sorted(sides[0].keys() ^ sides[1].keys()):
    left_out.append(f"{name}: only {a if name in sides[0] else b} has its units")
  for name in sorted(sides[0].keys() & sides[1].keys()):
    first, second = (_read(side[name]) for side in sides)
    data, rows = zip(*(_rows(evaluation, name) for evaluation in evaluations), strict=True)
    rules = [{(row.protocol, row.gallery) for row in some} for some in rows]
    if first.metrics != second.metrics or rules[0] != rules[1]:
      left_out.append(f"{name}: measured by other rules; evaluate both again")
    elif data[0] != data[1]:
      left_out.append(f"{name}: other data: {' and '.join(map(str, data))}")
    elif (first.ids, first.groups, first.patients) != (second.ids, second.groups, second.patients):
      left_out.append(f"{name}: other units ({len(first.ids)} and {len(second.ids)})")
    else:
      paths = [side[name].with_suffix(".npz") for side in sides]
      if first.metrics == terms.METRICS:
        some = _contrast_differences(name, first, second, resamples, seed)
      elif all(path.exists() for path in paths):
        some = _box_differences(name, *map(_boxes, paths), resamples, seed)
      elif first.metrics == unit_scores.SCORED:
        thresholds = tuple(map(_thresholds, rows))
        some = _ranked_differences(name, (first, second), thresholds, resamples, seed)
      else:
        some = _differences(name, first, second, resamples, seed)
      counts = _patients(first)
      found += [replace(d, patients=counts.get(d.group, counts[bootstrap.MACRO])) for d in some]
  if not found:
    raise UserError(f"{a} and {b} cannot be compared: {'; '.join(left_out) or 'no units there'}")
  return found, left_out


def table(found: list[Difference], left_out: list[str]) -> str:
  """Lines to read: every figure of both, the change, and whether it is real."""
  lines = [["", "group", "metric", "a", "b", "b - a [95 %]", "n", ""]]
  for d in found:
    change = results.Row("", "", "", "", "", "", d.change.value, d.change.low, d.change.high, 0)
    lines.append(
      [
        d.name, d.group, d.metric, results.number(d.a), results.number(d.b),
        results.with_interval(change), str(d.change.n), d.verdict,
      ]
    )  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]
  real = sum(bool(d.verdict) for d in found)
  text.append(
    f"\n{real} of {len(found)} differences are real: their interval excludes zero. Of figures that"
    f" do not differ, one in twenty would seem to. Those of fewer than {LEAST} patients are called"
    " nothing: the bootstrap of so few tells too little."
  )
  return "\n".join(text + [f"left out: {reason}" for reason in left_out])


def _evaluation(path: Path) -> results.Evaluation:
  try:
    return results.read(Workdir(path).evaluation)
  except FileNotFoundError:
    raise UserError(f"{path} holds no evaluation: run it with --mode=evaluate first") from None
  except ValueError as error:
    raise UserError(f"{error}: evaluate the run again (--mode=evaluate)") from error


def _rows(evaluation: results.Evaluation, name: str) -> tuple[str, list[results.Row]]:
  """The data that a file of units is of, with its fingerprint, and the rows of its figures."""
  attached, _, task = name.rpartition("/")
  own = next(iter(evaluation.data), "")  # the run's own data comes first
  data = next((d for d in evaluation.data if d.split("/")[0] == attached), "") if attached else own
  rows = [
    row
    for row in evaluation.rows
    # The published protocols of others have no units here, and one run may do without them.
    if (row.task, row.data) == (task, data) and not row.protocol.startswith("compat-")
  ]
  return f"{data} ({evaluation.data.get(data)})", rows


def _thresholds(rows: list[results.Row]) -> dict[str, float]:
  """Finding -> the threshold of its figures, as the rows tell it."""
  at_half = {row.group: 0.5 for row in rows if row.metric.endswith(" at .5")}
  return at_half | {row.group: row.value for row in rows if row.metric == "threshold"}


def _files(path: Path) -> dict[str, Path]:
  """Name ("grounding", "ms_cxr/grounding") -> file of units."""
  folder = Workdir(path).example_scores
  return {
    file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.csv")
  }


def _read(path: Path) -> ExampleScores:
  try:
    return unit_scores.read(path)
  except ValueError as error:
    raise UserError(f"{error}: evaluate the run again (--mode=evaluate)") from error


def _patients(units: ExampleScores) -> dict[str, int]:
  """Group -> how many patients its units are of; macro: those of all."""
  of: dict[str, set[str]] = {bootstrap.MACRO: set(units.patients)}
  for group, patient in zip(units.groups, units.patients, strict=True):
    of.setdefault(group, set()).add(patient)
  return {group: len(some) for group, some in of.items()}


def _differences(
  name: str, a: ExampleScores, b: ExampleScores, resamples: int, seed: int
) -> Iterator[Difference]:
  draws = {"resamples": resamples, "seed": seed}
  # A unit without the figure on one side has no difference.
  known = np.where(np.isnan(a.values) | np.isnan(b.values), np.nan, 1.0)
  sides = [
    bootstrap.grouped_means(side.values * known, a.groups, a.patients, resamples=0)
    for side in (a, b)
  ]
  change = bootstrap.grouped_means((b.values - a.values) * known, a.groups, a.patients, **draws)
  for group in change:
    if group == bootstrap.MACRO and set(a.groups) == {"all"}:
      continue
    for m, metric in enumerate(a.metrics):
      figures = [side[group][m].value for side in sides]
      if not metric.startswith("rank "):
        yield Difference(name, group, metric, *figures, change[group][m])
        continue
      both = b.values[:, m], a.values[:, m]  # of one group: a gallery
      middle = bootstrap.median_difference(*both, a.patients, **draws)
      figures = (np.median(a.values[:, m]), np.median(b.values[:, m]))
      yield Difference(name, group, f"median {metric}", *map(float, figures), middle)


def _ranked_differences(
  name: str,
  sides: tuple[ExampleScores, ExampleScores],
  thresholds: tuple[dict[str, float], dict[str, float]],
  resamples: int,
  seed: int,
) -> Iterator[Difference]:
  """Of units with `units.SCORED` and, on each side, the thresholds by finding."""
  groups, patients = sides[0].groups, sides[0].patients
  positive = sides[0].values[:, 1] == 1
  shared = thresholds[0].keys() & thresholds[1].keys() & set(groups)
  metrics = ("AUC", "average precision", *(THRESHOLDED if shared else ()))

  def measure(side: int, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    scores, kinds, group = sides[side].values[places, 0], positive[places], groups[places[0]]
    found = np.full((len(weights), len(metrics)), np.nan)
    found[:, 0] = auc.auc(scores, kinds, weights)
    found[:, 1] = classification.average_precision(scores, kinds, weights)
    if group in shared:
      found[:, 2:] = classification.thresholded(scores >= thresholds[side][group], kinds, weights)
    return found

  def figures(of: Callable[..., np.ndarray], draws: int) -> dict[str, list[Summary]]:
    return bootstrap.grouped_metrics(of, len(metrics), groups, patients, resamples=draws, seed=seed)

  a, b = (figures(partial(measure, side), 0) for side in (0, 1))
  change = figures(lambda *some: measure(1, *some) - measure(0, *some), resamples)
  for group, summaries in change.items():
    for m, (metric, some) in enumerate(zip(metrics, summaries, strict=True)):
      if m < 2 or not np.isnan(some.value):
        yield Difference(name, group, metric, a[group][m].value, b[group][m].value, some)


def _contrast_differences(
  name: str, a: ExampleScores, b: ExampleScores, resamples: int, seed: int
) -> Iterator[Difference]:
  """Of the words of reports, by what their significance tells apart."""
  first, second = a.values[:, 0], b.values[:, 0]
  for metric, places, high, patients in terms.contrasts(a):
    rest = high, ["all"] * len(places), patients
    sides = [auc.grouped(some[places], *rest, resamples=0)["all"] for some in (first, second)]
    change = auc.grouped_difference(
      second[places], first[places], *rest, resamples=resamples, seed=seed
    )["all"]
    yield Difference(name, "all", metric, *(side.value for side in sides), change)


def _box_differences(
  name: str, a: tuple, b: tuple, resamples: int, seed: int
) -> Iterator[Difference]:
  """Of two detectors, each (images, findings): all figures taken anew in every draw."""
  patients = [image.patient_id for image in a[0]]
  # A finding that one of them learned besides has no true box, for the units are the same.
  findings = [name for name in a[1] if name in b[1]]
  ones = np.ones((1, len(patients)))

  def figures(weights: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(
      detection_metrics(images, len(names), weights)[:, [names.index(name) for name in findings]]
      for images, names in (a, b)
    )

  one, other = (some[0] for some in figures(ones))
  drawn = [np.zeros((0, *one.shape))]
  for weights in bootstrap.example_weights(patients, resamples=resamples, seed=seed):
    first, second = figures(weights)
    drawn.append(second - first)
  drawn = np.concatenate(drawn)
  if len(set(patients)) == 1:
    drawn[:] = np.nan
  known = [k for k in range(len(findings)) if not np.isnan(one[k]).any()]
  places = [a[1].index(findings[k]) for k in known]
  counts = [sum(int((image.truth_labels == k).sum()) for image in a[0]) for k in places]
  groups = [(bootstrap.MACRO, known, sum(counts))]
  groups += [(findings[k], [k], n) for k, n in zip(known, counts, strict=True)]
  for group, places, n in groups:
    draws = bootstrap.nanmean(drawn[:, places].swapaxes(1, 2))
    for m, metric in enumerate(METRICS):
      sides = [float(side[places, m].mean()) for side in (one, other)]
      change = Summary(sides[1] - sides[0], *bootstrap.interval(draws[:, m]), n)
      yield Difference(name, group, metric, *sides, change)


def _boxes(path: Path) -> tuple:
  try:
    return boxes.read(path)
  except ValueError as error:
    raise UserError(f"{error}: evaluate the run again") from error


def main() -> None:
  """The command line: the table, or one error and exit status 1."""
  parser = argparse.ArgumentParser(
    prog="python -m plan_jax.compare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("a", type=Path, help="workdir of the first run")
  parser.add_argument("b", type=Path, help="workdir of the second")
  parser.add_argument("--resamples", type=int, default=bootstrap.RESAMPLES, help="bootstrap draws")
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  arguments = parser.parse_args()
  try:
    print(table(*compare(**vars(arguments))))
  except UserError as error:
    raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
  main()
