"""Images scored for findings by what was learned from labels: a linear probe, a fine-tuned encoder.

They are scored as in "zero-shot-v1": AUC, average precision, and with the threshold of the highest
F1 on the validation split (.5 without one) F1, accuracy, MCC, sensitivity, specificity; by finding,
macro and view; floors `chance` and `constant`; 95 % bootstrap intervals of patients. The unit is an
image and a finding labelled 1 or 0; uncertain (-1) ones are left out, and so is a finding that all
images have or none has.
"""

import math

import numpy as np

from plan_jax.evaluators.finding_rows import finding_rows, places_by_finding, view_rows
from plan_jax.evaluators.labelled_images import Images
from plan_jax.metrics import auc, bootstrap, classification
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.results import rows as results
from plan_jax.results.example_scores import SCORED, ExampleScores, example_id
from plan_jax.runtime.logging import log


def scored(
  scores: np.ndarray, images: Images, findings: list[str]
) -> tuple[ExampleScores | None, list[str]]:
  """ExampleScores of the findings that are both present and absent, with `units.SCORED`, and their views.

  None where there is no such finding.

  Args:
    scores: [N, K], of N images and K findings.
    images: N.
    findings: K names.
  """
  both = images.findings()[0]
  ids, groups, patients, views, values = [], [], [], [], []
  for k, name in enumerate(findings):
    if name not in both:
      continue
    places, present = images.labelled(name)
    ids += [example_id(images.ids[i], name) for i in places]
    groups += [name] * len(places)
    patients += [images.patients[i] for i in places]
    views += [images.views[i] for i in places]
    values.append(np.stack([scores[places, k], present], axis=1))
  if not ids:
    return None, []
  return ExampleScores(ids, groups, patients, SCORED, np.concatenate(values)), views


def macro_auc(found: ExampleScores | None) -> float:
  """The mean over findings of the area under the curve; NaN without units."""
  if found is None:
    return math.nan
  score, present = found.values.T
  return auc.grouped(score, present == 1, found.groups, found.patients, resamples=0)[MACRO].value


def classified_rows(
  head: tuple[str, str, str],
  found: ExampleScores,
  views: list[str],
  *,
  validation: ExampleScores | None,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[results.Row]:
  """Rows of the figures; thresholds are those of the highest F1 on `validation`, .5 for None.

  Args:
    head: task, protocol and data.
    found, views: of `scored`.
    validation: of `scored`, images of other patients.
    resamples, seed: of the bootstrap.
  """
  draws = {"resamples": resamples, "seed": seed}
  thresholds, suffix, behind = dict.fromkeys(found.groups, 0.5), " at .5", []
  if validation is not None:
    thresholds, suffix = {}, ""
    for name, places in places_by_finding(validation).items():
      score, present = validation.values[places].T
      thresholds[name] = classification.best_threshold(score, present == 1)
      behind.append((name, len(score)))
  if without := sorted(set(found.groups) - set(thresholds)):
    log.info(
      f"{head[0]}: of one kind in the validation split, so no threshold: {', '.join(without)}"
    )
  rows = finding_rows(head, found, thresholds, draws, suffix=suffix)
  rows += [
    results.Row(*head, name, "threshold", results.RUN, thresholds[name], np.nan, np.nan, n)
    for name, n in behind
    if name in found.groups
  ]
  return rows + view_rows(head, found, views, draws)
