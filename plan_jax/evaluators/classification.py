"""Classification of images by scores that were learned from labels.

The scores, of a linear probe or a fine-tuned encoder, are scored as in "zero-shot-v1": AUC, average
precision, and with the threshold of the highest F1 on the validation split (.5 without one) F1,
accuracy, MCC, sensitivity, specificity; by finding, macro and view; chance baselines `chance` and
`constant`; 95 % bootstrap intervals of patients. An example is an image and a finding labelled 1 or
0; uncertain (-1) ones are left out, and so is a finding that all images have or none has.
"""

import math

import numpy as np

from plan_jax.evaluators.finding_rows import (
  example_places,
  finding_rows,
  finding_scores,
  view_rows,
)
from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics import auc, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log


def scored(
  scores: np.ndarray, images: Images, findings: list[str]
) -> tuple[ExampleScores | None, list[str]]:
  """Collects scores [N, K], of N images and K findings, as `finding_scores` does, and the views.

  Of findings that are both present and absent.
  """
  both = images.findings()[0]
  columns = {name: scores[:, k] for k, name in enumerate(findings) if name in both}
  return finding_scores(columns, images)


def macro_auc(scores: ExampleScores | None) -> float:
  """Averages the area under the curve over findings; NaN without examples."""
  if scores is None:
    return math.nan
  score, present = scores.values.T
  return auc.grouped(score, present == 1, scores.groups, scores.patients, resamples=0)[MACRO].value


def classified_rows(
  head: tuple[str, str, str],
  scores: ExampleScores,
  views: list[str],
  *,
  validation: ExampleScores | None,
  **draws: int,
) -> list[Row]:
  """Makes rows of all metrics; `head` is task, protocol and data, scores and views are of `scored`.

  Thresholds are of the highest F1 on `validation`, images of other patients; .5 for None.
  """
  thresholds, suffix, behind = dict.fromkeys(scores.groups, 0.5), " at .5", []
  if validation is not None:
    thresholds, suffix = {}, ""
    for name, places in example_places(validation).items():
      score, present = validation.values[places].T
      thresholds[name] = classification.best_threshold(score, present == 1)
      behind.append((name, len(score)))
  if without := sorted(set(scores.groups) - set(thresholds)):
    log.info(
      f"{head[0]}: of one kind in the validation split, so no threshold: {', '.join(without)}"
    )
  rows = finding_rows(head, scores, thresholds, draws, suffix=suffix)
  rows += [
    Row(*head, name, "threshold", RUN, thresholds[name], np.nan, np.nan, n)
    for name, n in behind
    if name in scores.groups
  ]
  return rows + view_rows(head, scores, views, draws)
