"""Single radiologists beside a run: rows of their readings of the images that it classifies.

A radiologist reads studies, so a reading counts for each image of its study. The rows stand in the
tables of "zero-shot-v1", under the names "radiologist 1" and so on (in the order of their tables'
names), and "mean radiologist", the plain mean of their values:

- F1, accuracy, MCC, sensitivity and specificity of each, by finding and macro, on the pairs of
  image and finding that all of them have read, with the truth that the run is scored by. How many
  there are is logged. Where the run has thresholds, they are of the same findings as the run's.
  Sensitivity and specificity are the radiologist's operating point.
- "sensitivity at the specificity of radiologist 1": the run's own, read off its ROC curve there
  (`classification.sensitivity_at`), beside the radiologist's: where the run's is lower, the
  operating point lies above its curve.

They are no chance baselines, and no verdict compares with them. Intervals are those of the run's
rows: 1,000 bootstrap draws of patients.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from input_pipeline import terminal
from input_pipeline.readers import chexpert_radiologists
from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics import bootstrap, classification
from plan_jax.metrics.classification import THRESHOLDED
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import MEAN_RADIOLOGIST, RADIOLOGIST, RUN, Row
from plan_jax.runtime.logging import log

_AT = "sensitivity at the specificity of "
_SENSITIVITY, _SPECIFICITY = map(THRESHOLDED.index, ("sensitivity", "specificity"))


def readings(scores: ExampleScores, images: Images, folder: Path) -> ExampleScores | None:
  """Collects what each radiologist says of the examples, 1 or 0; None where there is none.

  Args:
    scores: of a run, by image and finding.
    images: the labelled images of these.
    folder: of the tables, see `chexpert_radiologists`.
  """
  tables = chexpert_radiologists.read(folder)
  names = [f"{RADIOLOGIST} {number}" for number in range(1, len(tables) + 1)]
  listed = terminal.join(map(" is ".join, zip(names, tables, strict=True)))
  study_of = dict(zip(images.ids, images.studies, strict=True))
  kept, values = [], []
  for place, (name, finding) in enumerate(zip(scores.ids, scores.groups, strict=True)):
    study = study_of[name.partition("\t")[0]]
    read = [table.get(study, {}).get(finding) for table in tables.values()]
    if None not in read:
      kept.append(place)
      values.append(read)
  log.info(f"zero-shot: radiologists have read {len(kept)} of {len(scores.ids)} pairs ({listed})")
  if not kept:
    return None
  columns = ([column[place] for place in kept] for column in (scores.ids, scores.groups))
  patients = [scores.patients[place] for place in kept]
  return ExampleScores(*columns, patients, tuple(names), np.array(values, np.float64))


def radiologist_rows(
  head: tuple[str, str, str],
  scores: ExampleScores,
  read: ExampleScores | None,
  thresholds: Collection[str],
  draws: dict[str, int],
  *,
  suffix: str = "",
) -> list[Row]:
  """Makes the rows of radiologists; none of no readings.

  Args:
    head: task, protocol and data.
    scores: of the run, with `example_scores.SCORED` as metrics, grouped by finding.
    read: of `readings`.
    thresholds: findings that the run has a threshold of; all where empty.
    draws: resamples and seed.
    suffix: of the names of `THRESHOLDED` in the run's rows.
  """
  if read is None:
    return []
  place_of = {name: place for place, name in enumerate(scores.ids)}
  score, truth = scores.values[[place_of[name] for name in read.ids]].T
  present, answers, names = truth == 1, read.values == 1, read.metrics

  def measure(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    example = score[places], present[places], weights
    each = np.stack([classification.thresholded(x, *example[1:]) for x in answers[places].T])
    own = [classification.sensitivity_at(x, *example) for x in each[..., _SPECIFICITY]]
    points = np.stack([*own, *each[..., _SENSITIVITY]], axis=1)
    if thresholds and read.groups[places[0]] not in thresholds:
      each = np.full_like(each, np.nan)
    return np.concatenate([*each, each.mean(0), points], axis=1)

  columns = [
    (f"{metric}{suffix}", name) for name in (*names, MEAN_RADIOLOGIST) for metric in THRESHOLDED
  ]
  columns += [(f"{_AT}{name}", RUN) for name in names] + [(f"{_AT}{name}", name) for name in names]
  summaries = bootstrap.grouped_metrics(measure, len(columns), read.groups, read.patients, **draws)
  return [
    Row(*head, group, metric, model, s.value, s.low, s.high, s.n)
    for group, by_column in summaries.items()
    for (metric, model), s in zip(columns, by_column, strict=True)
    if not np.isnan(s.value)
  ]
