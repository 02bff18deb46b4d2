"""Detection of findings by boxes.

Protocol "detection-v1":

- All images of the split count: predictions on an image without boxes are false, boxes of an image
  without predictions are missed. Of an image and finding the 100 highest predictions count.
- mAP is COCO's (Lin et al., "Microsoft COCO: common objects in context", ECCV 2014), by
  pycocotools: predictions of a finding in the order of their scores over all images (ties in the
  order of the images), each matched to the free true box of its image that it overlaps most, if by
  the threshold or more; precision, made monotone, is averaged over the 101 recalls 0, .01, ... 1.
  "mAP .4-.75" is the mean over the IoU thresholds .4, .45, ... .75 (that of LoVT and MGCA, which
  leave images out; see below), "mAP .5-.95" over .5, .55, ... .95, and AP50 is at .5 alone.
- "sensitivity at F FP" is the share of true boxes that are hit where F predictions an image hit
  nothing: the most that F allows, and tied predictions go together. A true box is hit where it
  holds the centre of a prediction; further hits are neither right nor false (the rule of the
  Object-CXR challenge, by bounding boxes: its own also goes by ellipses and polygons). FROC is the
  mean over F = 1/8, 1/4, 1/2, 1, 2, 4, 8.
- Findings without a true box are left out, and that is logged; `macro` is the plain mean over the
  others.
- Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients; all metrics are
  taken anew from the images drawn. A finding without a true box in a draw is no part of its mean.
- Chance baseline `typical box`: every image is given, for each finding, that box of the training
  split which overlaps the others most (in shares of width and height), scored by the share of the
  training images that have the finding.

Protocol "compat-mgca-detection-v2": the mAP .4-.75 of MGCA's evaluation (Wang et al., NeurIPS
2022). Predictions below .5 are dropped; then images without predictions, and images without true
boxes, are left out: what is missed on the former and falsely found on the latter does not count.
Ours is the score, objectness times the finding's probability, which is 1 where there is one finding
and the head is sure of it: MGCA's is objectness alone.

The examples (for `plan_jax.compare`) are true boxes; a metric is 1 where it is hit, else 0.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from input_pipeline.boxes import iou
from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.metrics.coco import coco_precision
from plan_jax.metrics.detection import (
  METRICS,
  PRECISIONS,
  SENSITIVITIES,
  Image,
  all_limits,
  match_finding,
  matched_metrics,
  mean_precision,
)
from plan_jax.results.contact_sheet import spread_over
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

TASK, PROTOCOL, COMPAT = "detection", "detection-v1", "compat-mgca-detection-v2"
TYPICAL = "typical box"
_COMPAT_SCORE = 0.5
_TYPICAL_OF = 1000  # boxes


def detection_rows(
  images: Sequence[Image],
  findings: Sequence[str],
  *,
  data: str,
  baselines: dict[str, Sequence[Image]] | None = None,
  **draws: int,
) -> list[Row]:
  """Makes rows of the run by finding, `macro` first, then those of chance, without intervals.

  `baselines` are the same images with the predictions of a chance baseline, by its name.
  """
  sides = {RUN: images, **(baselines or {})}
  rows = []
  for model, predictions in sides.items():
    own = draws if model == RUN else {"resamples": 0}
    rows += _rows(predictions, findings, METRICS, (PROTOCOL, data), model, **own)
  if missing := sorted(set(findings) - {row.group for row in rows}):
    log.info(
      f"detection: {len(missing)} of {len(findings)} findings have no box in {data} and are left"
      f" out: {', '.join(missing)}"
    )
  return rows


def compat_rows(
  images: Sequence[Image],
  findings: Sequence[str],
  *,
  data: str,
  **draws: int,
) -> list[Row]:
  """Makes rows of "compat-mgca-detection-v2"; none, and that is logged, where no image is left."""
  kept = []
  for image in images:
    sure = image.scores >= _COMPAT_SCORE
    if sure.any() and len(image.truth):
      sides = {name: getattr(image, name)[sure] for name in ("boxes", "scores", "labels")}
      kept.append(replace(image, **sides))
  log.info(
    f"{COMPAT}: {len(images) - len(kept)} of {len(images)} images have no box, or no prediction"
    f" of {_COMPAT_SCORE:g} or more, and are left out"
  )
  if not kept:
    return []
  metrics = tuple(PRECISIONS)[:1]
  return _rows(kept, findings, metrics, (COMPAT, data), RUN, **draws)


def detection_scores(images: Sequence[Image], findings: Sequence[str]) -> ExampleScores:
  """Scores every true box: is it hit at each of the rates, over all images as they are?"""
  ids, groups, patients, values = [], [], [], []
  for label, name in enumerate(findings):
    matches = match_finding(images, label)
    above = all_limits(matches, len(images))
    values.append((matches.hit_scores[:, None] > above).astype(np.float64))
    ids += [
      example_id(images[i].image_id, f"{name} {number}")
      for i, number in zip(matches.hit_image.tolist(), matches.hit_names, strict=True)
    ]
    groups += [name] * len(matches.hit_image)
    patients += [images[i].patient_id for i in matches.hit_image.tolist()]
  values = np.concatenate(values)
  order = sorted(range(len(ids)), key=lambda i: ids[i])  # the same in every run
  ordered = [[texts[i] for i in order] for texts in (ids, groups, patients)]
  return ExampleScores(*ordered, SENSITIVITIES, values[order])


def with_typical_boxes(images: Sequence[Image], boxes: list, shares: list[float]) -> list[Image]:
  """Replaces the predictions of the images by those of the chance baseline.

  `boxes` are of each finding, [4] in shares of the image's width and height, None without one, and
  `shares` their scores.
  """
  labels = [label for label, box in enumerate(boxes) if box is not None]
  typical = np.array([boxes[label] for label in labels]).reshape(-1, 4)
  fixed = {
    "scores": np.array([shares[label] for label in labels]),
    "labels": np.array(labels, np.int32),
  }
  return [
    replace(image, boxes=typical * ([image.width, image.height] * 2), **fixed) for image in images
  ]


def typical_box(boxes: np.ndarray) -> np.ndarray | None:
  """Picks the one of boxes [N, 4] that overlaps the others most; None of none.

  Of more than 1,000 it is chosen among, and by, as many, evenly spread.
  """
  if not len(boxes):
    return None
  chosen = boxes[spread_over(len(boxes), _TYPICAL_OF)]
  return chosen[iou(chosen, chosen).mean(1).argmax()]


def _rows(
  images: Sequence[Image],
  findings: Sequence[str],
  metrics: Sequence[str],
  head: tuple[str, str],
  model: str,
  **draws: int,
) -> list[Row]:
  """Makes rows of the findings that have a true box, `macro` first."""
  matched = [match_finding(images, label) for label in range(len(findings))]
  kept = [i for i, matches in enumerate(matched) if matches.truths.any()]
  if not kept:
    return []
  matched = [matched[i] for i in kept]
  value = matched_metrics(matched, np.ones((1, len(images))))[0]
  value[:, : len(PRECISIONS)] = mean_precision(coco_precision(images, len(findings))[kept])
  patients = [image.patient_id for image in images]
  drawn = [np.zeros((0, *value.shape))]
  for weights in bootstrap.example_weights(patients, **draws):
    drawn.append(matched_metrics(matched, weights))
  drawn = np.concatenate(drawn)
  known = ~np.isnan(drawn)
  macro = bootstrap.ratio(np.where(known, drawn, 0).sum(1), known.sum(1))
  behind = [{patients[i] for i in matches.hit_image.tolist()} for matches in matched]
  counts = [int(matches.truths.sum()) for matches in matched]
  groups = [(MACRO, value.mean(0), macro, set.union(*behind), sum(counts))]
  for k, i in enumerate(kept):
    groups.append((findings[i], value[k], drawn[:, k], behind[k], counts[k]))
  rows = []
  for group, values, sampled, clusters, count in groups:
    for metric in metrics:
      m = METRICS.index(metric)
      low, high = bootstrap.interval(sampled[:, m]) if len(clusters) > 1 else (np.nan, np.nan)
      rows.append(Row(TASK, *head, group, metric, model, float(values[m]), low, high, count))
  return rows
