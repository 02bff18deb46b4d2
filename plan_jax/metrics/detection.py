"""Detection metrics: matching of boxes, average precision, FROC, for many weightings of the images.

Average precision is COCO's (Lin et al., "Microsoft COCO: common objects in context", ECCV 2014);
sensitivity at F false positives an image is the rule of the Object-CXR challenge. Both are written
out in `plan_jax.evaluators.detection`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Num, Real

from input_pipeline.boxes import iou
from plan_jax.metrics.bootstrap import ratio

THRESHOLDS = tuple(hundredths / 100 for hundredths in range(40, 100, 5))
# Name -> places in THRESHOLDS.
PRECISIONS = {"mAP .4-.75": slice(0, 8), "mAP .5-.95": slice(2, 12), "AP50": slice(2, 3)}
RATES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}
SENSITIVITIES = tuple(f"sensitivity at {name} FP" for name in RATES)
METRICS = (*PRECISIONS, "FROC", *SENSITIVITIES)
MOST = 100  # predictions of an image and finding
_RECALLS = np.linspace(0, 1, 101)
_TIE = 1e-10  # as COCO has it: an IoU threshold of 1 can be met
_BLOCK = 4_000_000  # weights held at a time


@dataclass(frozen=True)
class Image:
  """True and predicted boxes of an image, in its pixels."""

  image_id: str
  patient_id: str
  height: int
  width: int
  truth: np.ndarray  # [T, 4] float
  truth_labels: np.ndarray  # [T] int, the place of the finding among the findings
  boxes: np.ndarray  # [D, 4] float
  scores: np.ndarray  # [D] float
  labels: np.ndarray  # [D] int


@dataclass(frozen=True)
class Matches:
  """Predictions and true boxes of one finding, matched, by falling score."""

  image: Int[np.ndarray, " D"]  # the image of each prediction
  right: Bool[np.ndarray, "thresholds D"]  # matched to a true box, at each of `THRESHOLDS`
  truths: Int[np.ndarray, " F"]  # true boxes of each image
  false_scores: Float64[np.ndarray, " X"]  # of the predictions that hit nothing
  false_image: Int[np.ndarray, " X"]  # of the predictions that hit nothing
  hit_scores: Float64[np.ndarray, " T"]  # of true boxes: the highest that hits it, -inf without
  hit_image: Int[np.ndarray, " T"]
  hit_names: list[str]  # of the true boxes


def match(
  boxes: Real[np.ndarray, "D 4"], truth: Real[np.ndarray, "T 4"], thresholds: Sequence[float]
) -> Bool[np.ndarray, "thresholds D"]:
  """Matches predictions to true boxes on one image, greedily, as COCO does.

  Boxes come by falling score, thresholds are of IoU. True where a prediction is matched to a true
  box that no earlier one has taken; of boxes that overlap it alike the last is taken.
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


def match_finding(images: Sequence[Image], label: int) -> Matches:
  """Matches the predictions of one finding, the `MOST` highest of each image."""
  scores, image_of, right, truths = [], [], [], []
  false_scores, false_image, hit_scores, hit_image, names = [], [], [], [], []
  for i, image in enumerate(images):
    places = np.flatnonzero(image.labels == label)
    places = places[np.argsort(-image.scores[places], kind="stable")][:MOST]
    boxes, score = image.boxes[places], image.scores[places].astype(np.float64)
    truth = image.truth[image.truth_labels == label]
    scores.append(score)
    image_of.append(np.full(len(places), i))
    right.append(match(boxes, truth, THRESHOLDS))
    truths.append(len(truth))
    x, y = (boxes[:, None, :2] + boxes[:, None, 2:]).transpose(2, 0, 1) / 2
    inside = (truth[:, 0] <= x) & (x < truth[:, 2]) & (truth[:, 1] <= y) & (y < truth[:, 3])
    false = ~inside.any(1)
    false_scores.append(score[false])
    false_image.append(np.full(false.sum(), i))
    hit_scores.append(np.where(inside, score[:, None], -np.inf).max(0, initial=-np.inf))
    hit_image.append(np.full(len(truth), i))
    names += [str(number) for number in range(1, len(truth) + 1)]
  order, false, hit = (
    np.argsort(-np.concatenate(parts), kind="stable")
    for parts in (scores, false_scores, hit_scores)
  )
  return Matches(
    image=np.concatenate(image_of)[order],
    right=np.concatenate(right, 1)[:, order],
    truths=np.array(truths),
    false_scores=np.concatenate(false_scores)[false],
    false_image=np.concatenate(false_image)[false],
    hit_scores=np.concatenate(hit_scores)[hit],
    hit_image=np.concatenate(hit_image)[hit],
    hit_names=[names[i] for i in hit],
  )


def average_precision(
  image: Int[np.ndarray, " D"],
  right: Bool[np.ndarray, "thresholds D"],
  truths: Int[np.ndarray, " F"],
  weights: Num[np.ndarray, "R F"],
) -> Float64[np.ndarray, "R thresholds"]:
  """Computes COCO's average precision for each of R weightings (>= 0) of F images.

  Image, right and truths are as in `Matches`; NaN where there are no true boxes.
  """
  weights = np.asarray(weights, np.float64)
  total = weights @ truths
  reached = np.cumsum(weights[:, image], 1)
  out = np.full((len(weights), len(right)), np.nan)
  for t, row in enumerate(right):
    # Recall grows at right predictions alone, and precision is highest there.
    at = np.flatnonzero(row)
    hits = np.cumsum(weights[:, image[at]], 1)
    precision = hits / (reached[:, at] + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(weights), 1))], 1)
    for r in np.flatnonzero(total > 0):
      out[r, t] = precision[r, np.searchsorted(hits[r] / total[r], _RECALLS)].mean()
  return out


def limits(
  false_scores: Float64[np.ndarray, " X"],
  false_weights: Num[np.ndarray, "R X"],
  images: Num[np.ndarray, " R"],
) -> Float64[np.ndarray, "R rates"]:
  """Finds the score above which predictions may lie at each of `RATES`; -inf: all may.

  Scores are falling; `false_weights` tell how often the image of each counts, `images` how many do.
  """
  reached = np.cumsum(false_weights, 1)
  # One more that is passed in any case.
  reached = np.concatenate([reached, np.full((len(reached), 1), np.inf)], 1)
  scores = np.append(false_scores, -np.inf)
  allowed = np.array(list(RATES.values())) * images[:, None]
  # Weights are whole numbers and rates powers of two: nothing is rounded.
  return np.stack([scores[(reached > allowed[:, [i]]).argmax(1)] for i in range(len(RATES))], 1)


def all_limits(matches: Matches, images: int) -> Float64[np.ndarray, "1 rates"]:
  """Finds `limits` where every image counts once."""
  return limits(matches.false_scores, np.ones((1, len(matches.false_scores))), np.array([images]))


def sensitivities(
  matches: Matches, weights: Num[np.ndarray, "R F"]
) -> Float64[np.ndarray, "R rates"]:
  """Computes shares of true boxes that are hit at each of `RATES`, for R weightings of F images.

  NaN where there are no true boxes.
  """
  weights = np.asarray(weights, np.float64)
  above = limits(matches.false_scores, weights[:, matches.false_image], weights.sum(1))
  count = np.searchsorted(-matches.hit_scores, -above)  # of true boxes whose score is higher
  hits = np.cumsum(weights[:, matches.hit_image], 1)
  total = hits[:, -1:] if len(matches.hit_image) else np.zeros((len(weights), 1))
  hits = np.concatenate([np.zeros((len(weights), 1)), hits], 1)
  hits = np.take_along_axis(hits, count, 1)
  return ratio(hits, total)


def detection_metrics(
  images: Sequence[Image], findings: int, weights: Num[np.ndarray, "R F"]
) -> Float64[np.ndarray, "R findings M"]:
  """Computes `METRICS` for each of R weightings (whole numbers >= 0) of the F images.

  NaN for a finding without true box.
  """
  return matched_metrics([match_finding(images, label) for label in range(findings)], weights)


def matched_metrics(
  findings: Sequence[Matches], weights: Num[np.ndarray, "R F"]
) -> Float64[np.ndarray, "R findings M"]:
  """Computes `METRICS` as `detection_metrics`, of findings that are matched already."""
  out = np.full((len(weights), len(findings), len(METRICS)), np.nan)
  for f, matches in enumerate(findings):
    rows = max(1, _BLOCK // max(1, len(matches.image)))
    for start in range(0, len(weights), rows):
      block = weights[start : start + rows]
      precision = average_precision(matches.image, matches.right, matches.truths, block)
      sensitivity = sensitivities(matches, block)
      parts = [mean_precision(precision), sensitivity.mean(1, keepdims=True), sensitivity]
      out[start : start + rows, f] = np.concatenate(parts, 1)
  return out


def mean_precision(
  precision: Float64[np.ndarray, "N thresholds"],
) -> Float64[np.ndarray, "N P"]:
  """Averages precision at `THRESHOLDS` to `PRECISIONS`."""
  return np.stack([precision[:, part].mean(1) for part in PRECISIONS.values()], 1)


def score_limits(images: Sequence[Image], findings: int) -> Float64[np.ndarray, "findings rates"]:
  """Finds the score above which predictions lie at each of `RATES` over the images."""
  matched = [match_finding(images, label) for label in range(findings)]
  return np.concatenate([all_limits(matches, len(images)) for matches in matched])
