"""Detection: are findings boxed where they are, and nothing where there is nothing?

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
- Findings without a true box are left out, and that is said; `macro` is the plain mean over the
  others.
- Intervals are 95 % percentile intervals of 1,000 bootstrap draws of patients; all figures are
  taken anew from the images drawn. A finding without a true box in a draw is no part of its mean.
- Floor `typical box`: every image is given, for each finding, that box of the training split which
  overlaps the others most (in shares of width and height), scored by the share of the training
  images that have the finding.

Protocol "compat-mgca-detection": the mAP .4-.75 of MGCA's evaluation (Wang et al., NeurIPS 2022).
Predictions of at most .5 are dropped; then images without predictions, and images without true boxes,
are left out: what is missed on the former and falsely found on the latter does not count.

The units (for `plan_jax.compare`) are true boxes; a figure is 1 where it is hit, else 0.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from plan_jax.metrics import bootstrap
from plan_jax.metrics.bootstrap import MACRO
from plan_jax.metrics.boxes import area, iou
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

TASK, PROTOCOL, COMPAT = "detection", "detection-v1", "compat-mgca-detection"
TYPICAL = "typical box"
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(40, 100, 5))
# Name -> places in THRESHOLDS.
PRECISIONS = {"mAP .4-.75": slice(0, 8), "mAP .5-.95": slice(2, 12), "AP50": slice(2, 3)}
RATES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}
SENSITIVITIES = tuple(f"sensitivity at {name} FP" for name in RATES)
METRICS = (*PRECISIONS, "FROC", *SENSITIVITIES)
MOST = 100  # predictions of an image and finding
_COMPAT_SCORE = 0.5
_RECALLS = np.linspace(0, 1, 101)
_TIE = 1e-10  # as COCO has it: an IoU threshold of 1 can be met
_BLOCK = 4_000_000  # weights held at a time
_TYPICAL_OF = 1000  # boxes


@dataclass(frozen=True)
class Image:
  """True and predicted boxes of an image, in its pixels.

  Attributes:
    image_id, patient_id: of the image.
    height, width: of the image.
    truth: [T, 4] float.
    truth_labels: [T] int, the place of the finding among the findings.
    boxes: [D, 4] float.
    scores: [D] float.
    labels: [D] int.
  """

  image_id: str
  patient_id: str
  height: int
  width: int
  truth: np.ndarray
  truth_labels: np.ndarray
  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray


@dataclass(frozen=True)
class _Finding:
  """What the figures of one finding come from, predictions and truth by falling score.

  Attributes:
    image: [D] int, of each prediction.
    right: [thresholds, D] bool, matched to a true box.
    truths: [F] int, true boxes of each image.
    false_scores, false_image: [X], of the predictions that hit nothing.
    hit_scores, hit_image: [T], of the true boxes: the highest score that hits it, -inf without.
    hit_names: [T], names of the true boxes.
  """

  image: np.ndarray
  right: np.ndarray
  truths: np.ndarray
  false_scores: np.ndarray
  false_image: np.ndarray
  hit_scores: np.ndarray
  hit_image: np.ndarray
  hit_names: list[str]


def match(boxes: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
  """COCO's greedy matching on one image.

  Args:
    boxes: [D, 4], by falling score.
    truth: [T, 4].
    thresholds: of IoU.

  Returns:
    [thresholds, D] bool: matched to a true box that no earlier prediction has taken. Of boxes that
    overlap it alike the last is taken.
  """
  right = np.zeros((len(thresholds), len(boxes)), bool)
  overlaps = iou(boxes.astype(np.float64), truth.astype(np.float64))
  enough = np.minimum(np.array(thresholds), 1 - _TIE)[:, None]
  free = np.ones((len(thresholds), len(truth)), bool)
  rows = np.arange(len(thresholds))
  for d in np.flatnonzero(overlaps.max(1, initial=0) >= enough.min(initial=1)):
    fit = np.where(free & (overlaps[d] >= enough), overlaps[d], -1)
    last = len(truth) - 1 - fit[:, ::-1].argmax(1)
    right[:, d] = fit[rows, last] >= 0
    free[rows[right[:, d]], last[right[:, d]]] = False
  return right


def average_precision(
  image: np.ndarray, right: np.ndarray, truths: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """COCO's average precision for each of R weightings of F images.

  Args:
    image: [D] int, the image of each prediction, by falling score.
    right: [thresholds, D] bool.
    truths: [F] int, true boxes.
    weights: [R, F] >= 0, how often each image counts.

  Returns:
    float64 [R, thresholds]; NaN where there are no true boxes.
  """
  weights = np.asarray(weights, np.float64)
  total = weights @ truths
  reached = np.cumsum(weights[:, image], 1)
  out = np.full((len(weights), len(right)), np.nan)
  for t, row in enumerate(right):
    # Recall grows at right predictions alone, and precision is highest there.
    at = np.flatnonzero(row)
    found = np.cumsum(weights[:, image[at]], 1)
    precision = found / (reached[:, at] + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(weights), 1))], 1)
    for r in np.flatnonzero(total > 0):
      out[r, t] = precision[r, np.searchsorted(found[r] / total[r], _RECALLS)].mean()
  return out


def limits(false_scores: np.ndarray, false_weights: np.ndarray, images: np.ndarray) -> np.ndarray:
  """The score above which predictions may lie at each of RATES, [R, rates]; -inf: all may.

  Args:
    false_scores: [X], falling.
    false_weights: [R, X], how often the image of each counts.
    images: [R], how many images count.
  """
  reached = np.cumsum(false_weights, 1)
  # One more that is passed in any case.
  reached = np.concatenate([reached, np.full((len(reached), 1), np.inf)], 1)
  scores = np.append(false_scores, -np.inf)
  allowed = np.array(list(RATES.values())) * images[:, None]
  # Weights are whole numbers and rates powers of two: nothing is rounded.
  return np.stack([scores[(reached > allowed[:, [i]]).argmax(1)] for i in range(len(RATES))], 1)


def sensitivities(
  false_scores: np.ndarray,
  false_image: np.ndarray,
  hit_scores: np.ndarray,
  hit_image: np.ndarray,
  weights: np.ndarray,
) -> np.ndarray:
  """Shares of true boxes that are hit at each of RATES, for each of R weightings of F images.

  Args:
    false_scores, false_image: [X], of the predictions that hit nothing, falling.
    hit_scores, hit_image: [T], of true boxes, falling; -inf where nothing hits it.
    weights: [R, F] >= 0.

  Returns:
    float64 [R, rates]; NaN where there are no true boxes.
  """
  weights = np.asarray(weights, np.float64)
  above = limits(false_scores, weights[:, false_image], weights.sum(1))
  count = np.searchsorted(-hit_scores, -above)  # of true boxes whose score is higher
  found = np.cumsum(weights[:, hit_image], 1)
  total = found[:, -1:] if len(hit_image) else np.zeros((len(weights), 1))
  found = np.concatenate([np.zeros((len(weights), 1)), found], 1)
  found = np.take_along_axis(found, count, 1)
  return np.divide(found, total, out=np.full(found.shape, np.nan), where=total > 0)


def coco_precision(images: Sequence[Image], findings: int) -> np.ndarray:
  """Average precision by pycocotools, [findings, thresholds]; NaN without a true box."""
  truth, found = [], []
  for i, image in enumerate(images):
    for out, boxes, labels, scores in (
      (truth, image.truth, image.truth_labels, np.ones(len(image.truth))),
      (found, image.boxes, image.labels, image.scores),
    ):
      boxes = boxes.astype(np.float64)
      corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
      for box, label, score, size in zip(
        corners, labels.tolist(), scores.tolist(), area(boxes).tolist(), strict=True
      ):
        # Numbers begin at 1: pycocotools takes 0 for no match.
        out.append(
          {
            "id": len(out) + 1, "image_id": i + 1, "category_id": label + 1, "bbox": box,
            "score": score, "area": size, "iscrowd": 0,
          }
        )  # fmt: skip
  pictures = [{"id": i + 1} for i in range(len(images))]
  kinds = [{"id": i + 1} for i in range(findings)]
  with contextlib.redirect_stdout(io.StringIO()):
    sides = []
    for marks in (truth, found):
      side = COCO()
      side.dataset = {"images": pictures, "categories": kinds, "annotations": marks}
      side.createIndex()
      sides.append(side)
    judge = COCOeval(*sides, "bbox")
    judge.params.iouThrs = np.array(THRESHOLDS)
    judge.params.maxDets = [MOST]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
  precision = judge.eval["precision"][:, :, :, 0, 0]  # [thresholds, recalls, findings]
  return np.where((precision < 0).any(1), np.nan, precision.mean(1)).T


def figures(images: Sequence[Image], findings: int, weights: np.ndarray) -> np.ndarray:
  """All METRICS for each of R weightings of the F images.

  Args:
    images: F.
    findings: how many there are.
    weights: [R, F] whole numbers >= 0, how often each image counts.

  Returns:
    float64 [R, findings, METRICS]; NaN for a finding without true box.
  """
  return _figures([_finding(images, label) for label in range(findings)], weights)


def detection_rows(
  images: Sequence[Image],
  findings: Sequence[str],
  *,
  data: str,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
  floors: dict[str, Sequence[Image]] | None = None,
) -> list[Row]:
  """Rows of the run and its floors by finding, `macro` first.

  Args:
    images: of the split.
    findings: their names.
    data: the data set and split.
    resamples: of the bootstrap.
    seed: of the bootstrap.
    floors: name -> the same images with the predictions of a floor.
  """
  rows = []
  for model, some in {RUN: images, **(floors or {})}.items():
    draws = resamples if model == RUN else 0
    rows += _rows(some, findings, PROTOCOL, METRICS, model, data, draws, seed)
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
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows by the protocol "compat-mgca-detection"; none, and that is said, where no image is left."""
  kept = []
  for image in images:
    sure = image.scores > _COMPAT_SCORE
    if sure.any() and len(image.truth):
      kept.append(
        dataclasses.replace(
          image, boxes=image.boxes[sure], scores=image.scores[sure], labels=image.labels[sure]
        )
      )
  log.info(
    f"{COMPAT}: {len(images) - len(kept)} of {len(images)} images have no box, or no prediction above"
    f" {_COMPAT_SCORE:g}, and are left out"
  )
  metrics = tuple(PRECISIONS)[:1]
  return _rows(kept, findings, COMPAT, metrics, RUN, data, resamples, seed) if kept else []


def score_limits(images: Sequence[Image], findings: int) -> np.ndarray:
  """The score above which predictions lie at each of RATES over the images, [findings, rates]."""
  return _limits([_finding(images, label) for label in range(findings)], len(images))


def detection_units(images: Sequence[Image], findings: Sequence[str]) -> ExampleScores:
  """Of every true box whether it is hit at each of RATES, over all images as they are."""
  ids, groups, patients, values = [], [], [], []
  parts = [_finding(images, label) for label in range(len(findings))]
  for name, one, above in zip(findings, parts, _limits(parts, len(images)), strict=True):
    values.append((one.hit_scores[:, None] > above).astype(np.float64))
    ids += [
      example_id(images[i].image_id, f"{name} {number}")
      for i, number in zip(one.hit_image.tolist(), one.hit_names, strict=True)
    ]
    groups += [name] * len(one.hit_image)
    patients += [images[i].patient_id for i in one.hit_image.tolist()]
  values = np.concatenate(values)
  order = sorted(range(len(ids)), key=lambda i: ids[i])  # the same in every run
  pick = [[some[i] for i in order] for some in (ids, groups, patients)]
  return ExampleScores(*pick, SENSITIVITIES, values[order])


def with_typical_boxes(images: Sequence[Image], boxes: list, shares: list[float]) -> list[Image]:
  """The images with the floor's predictions.

  Args:
    images: any.
    boxes: of each finding, [4] in shares of the image's width and height; None without one.
    shares: of each finding, the score.
  """
  labels = [label for label, box in enumerate(boxes) if box is not None]
  typical = np.array([boxes[label] for label in labels]).reshape(-1, 4)
  scores = np.array([shares[label] for label in labels])
  return [
    dataclasses.replace(
      image,
      boxes=typical * [image.width, image.height, image.width, image.height],
      scores=scores,
      labels=np.array(labels, np.int32),
    )
    for image in images
  ]


def typical_box(boxes: np.ndarray) -> np.ndarray | None:
  """The one of boxes [N, 4] that overlaps the others most; None of none.

  Of more than 1,000 it is chosen among, and by, as many, evenly spread.
  """
  if not len(boxes):
    return None
  chosen = boxes[np.unique(np.linspace(0, len(boxes) - 1, _TYPICAL_OF).round().astype(int))]
  return chosen[iou(chosen, chosen).mean(1).argmax()]


def _finding(images: Sequence[Image], label: int) -> _Finding:
  scores, image_of, right, truths = [], [], [], []
  false_scores, false_image, hit_scores, hit_image, names = [], [], [], [], []
  for i, image in enumerate(images):
    own = np.flatnonzero(image.labels == label)
    own = own[np.argsort(-image.scores[own], kind="stable")][:MOST]
    boxes, some = image.boxes[own], image.scores[own].astype(np.float64)
    truth = image.truth[image.truth_labels == label]
    scores.append(some)
    image_of.append(np.full(len(own), i))
    right.append(match(boxes, truth, THRESHOLDS))
    truths.append(len(truth))
    x, y = (boxes[:, None, :2] + boxes[:, None, 2:]).transpose(2, 0, 1) / 2
    inside = (truth[:, 0] <= x) & (x < truth[:, 2]) & (truth[:, 1] <= y) & (y < truth[:, 3])
    false = ~inside.any(1)
    false_scores.append(some[false])
    false_image.append(np.full(false.sum(), i))
    hit_scores.append(np.where(inside, some[:, None], -np.inf).max(0, initial=-np.inf))
    hit_image.append(np.full(len(truth), i))
    names += [str(number) for number in range(1, len(truth) + 1)]
  order, false, hit = (
    np.argsort(-np.concatenate(some), kind="stable") for some in (scores, false_scores, hit_scores)
  )
  return _Finding(
    image=np.concatenate(image_of)[order],
    right=np.concatenate(right, 1)[:, order],
    truths=np.array(truths),
    false_scores=np.concatenate(false_scores)[false],
    false_image=np.concatenate(false_image)[false],
    hit_scores=np.concatenate(hit_scores)[hit],
    hit_image=np.concatenate(hit_image)[hit],
    hit_names=[names[i] for i in hit],
  )


def _limits(parts: Sequence[_Finding], images: int) -> np.ndarray:
  each = [
    limits(one.false_scores, np.ones((1, len(one.false_scores))), np.array([images]))
    for one in parts
  ]
  return np.concatenate(each)


def _figures(parts: Sequence[_Finding], weights: np.ndarray) -> np.ndarray:
  out = np.full((len(weights), len(parts), len(METRICS)), np.nan)
  for f, one in enumerate(parts):
    rows = max(1, _BLOCK // max(1, len(one.image)))
    for start in range(0, len(weights), rows):
      some = weights[start : start + rows]
      precision = average_precision(one.image, one.right, one.truths, some)
      sensitivity = sensitivities(
        one.false_scores, one.false_image, one.hit_scores, one.hit_image, some
      )
      out[start : start + rows, f] = np.concatenate(
        [
          np.stack([precision[:, part].mean(1) for part in PRECISIONS.values()], 1),
          sensitivity.mean(1, keepdims=True),
          sensitivity,
        ],
        1,
      )
  return out


def _rows(images, findings, protocol, metrics, model, data, resamples, seed) -> list[Row]:
  """Of findings that have a true box."""
  parts = [_finding(images, label) for label in range(len(findings))]
  kept = [i for i, one in enumerate(parts) if one.truths.any()]
  if not kept:
    return []
  parts = [parts[i] for i in kept]
  value = _figures(parts, np.ones((1, len(images))))[0]
  precision = coco_precision(images, len(findings))[kept]
  value[:, : len(PRECISIONS)] = np.stack(
    [precision[:, part].mean(1) for part in PRECISIONS.values()], 1
  )
  patients = [image.patient_id for image in images]
  drawn = [np.zeros((0, *value.shape))]
  for weights in bootstrap.unit_weights(patients, resamples=resamples, seed=seed):
    drawn.append(_figures(parts, weights))
  drawn = np.concatenate(drawn)
  behind = [{patients[i] for i in one.hit_image.tolist()} for one in parts]
  counts = [int(one.truths.sum()) for one in parts]
  known = ~np.isnan(drawn)
  total = known.sum(1)
  macro = np.divide(
    np.where(known, drawn, 0).sum(1), total, out=np.full(total.shape, np.nan), where=total > 0
  )
  groups = [(MACRO, value.mean(0), macro, set.union(*behind), sum(counts))]
  groups += [(findings[i], value[k], drawn[:, k], behind[k], counts[k]) for k, i in enumerate(kept)]
  rows = []
  for group, figure, draws, clusters, count in groups:
    for metric in metrics:
      m = METRICS.index(metric)
      several = len(clusters) > 1
      low, high = bootstrap.interval(draws[:, m]) if several else (math.nan, math.nan)
      rows.append(
        Row(TASK, protocol, data, group, metric, model, float(figure[m]), low, high, count)
      )
  return rows
