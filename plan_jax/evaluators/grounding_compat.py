"""Phrase grounding as published evaluators measure it, one emulated protocol each.

Emulated is the measure: what an example is, how a similarity map is brought to the image and
scored, and how metrics are averaged. The image goes in as the evaluated model wants it. The map is
the model's signed similarity of its pixels to the phrase's embedding on its own grid; the model
brings it to the image by its own geometry, and to a pixel that its crop left out it gives NaN. Our
own runs see the whole image. Sources, read as code unless said otherwise:

- "compat-vios-s" (the evaluation of BioViL-T in a latent-diffusion grounding paper): the map as the
  model's project makes it (BioViL's: Gaussian of sigma 1.5 cells, nearest cell; all others:
  bilinear), clipped at 0; CNR of each box of a phrase, pixels of its earlier boxes and pixels not
  seen left out, mean over the boxes, signed and absolute, a CNR that does not exist counted as 0;
  mIoU over .1 to .5 of the union, where a pixel not seen is not predicted, but may be true. A box
  of which the crop leaves nothing is dropped, and so is a phrase that has no other; such phrases
  are counted.
- "compat-aep" (AFLoc and KAF): union of the boxes; Gaussian of sigma 1.5 cells on the grid,
  bilinear; the image stands centred in a square as wide as its longer side, and only the middle
  196 / 224 of that is scored, whatever the model saw (AFLoc, too, sees all of it), less what it did
  not see; all else is left out of everything (so is the margin that completes the square, which
  AFLoc scores). Scaled to [-1, 1] by the least and greatest value there; signed CNR; IoU and Dice
  over .1 to .5, thresholds with an empty prediction left out; P@1, the maximum in the mask. A
  phrase without a true pixel there has no metrics; these are counted.
- "compat-mgvla" (MGVLA): an example is a box, the mask the union of the boxes of the image's
  finding (not of its phrase); Gaussian of sigma 1.5 cells, nearest cell; absolute CNR.
- "compat-g2g" (G2G): scaled to [0, 1], bilinear; CNR with unbiased variances; the foreground is the
  brighter part of a mixture of two Gaussians over the pixels; mIoU is the mean of the IoU of fore-
  and background.
- "compat-radzero" (RadZero): bilinear; the maximum lies in the first box of the phrase.

The last three score the whole image; a pixel that was not seen has the least similarity that was
(ours: the models that these codes evaluate see everything).

The first three average by finding and then over findings ("macro"), the last two over the examples.
Intervals as everywhere: 1,000 bootstrap draws of patients. A CNR that does not exist is left out.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from input_pipeline.example import Example
from input_pipeline.regions import box_mask, region_mask
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import Phrase, phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import THRESHOLDS, cnr, foreground, mask_iou
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

_SIGMA = 1.5  # cells
_CENTRE = 196 / 224  # of AFLoc's square

Scores = dict[str, ExampleScores]  # by protocol


@dataclass(frozen=True)
class Rules:
  """Rules of one protocol."""

  metrics: tuple[str, ...]
  by_finding: bool  # averages by finding first
  by_box: bool  # counts every box of a phrase as an example
  score: Callable[[Predictor, np.ndarray, Phrase], list[float]]  # model, map on the grid, phrase


def box_masks(phrase: Phrase) -> list[np.ndarray]:
  """Masks the boxes of a phrase, bool [H, W] each, in order; a region without has its own mask."""
  masks = []
  for region in phrase.regions:
    masks += [box_mask(box, phrase.example) for box in region.boxes]
    if not len(region.boxes):
      masks.append(region_mask(region, phrase.example))
  return masks


@functools.lru_cache(maxsize=16)
def centre(height: int, width: int) -> np.ndarray:
  """Masks, bool [H, W], the middle 196 / 224 of the square that the image stands centred in."""
  side = max(height, width)
  rows, columns = (
    np.abs(np.arange(length) + 0.5 - length / 2) <= _CENTRE * side / 2 for length in (height, width)
  )
  inside = rows[:, None] & columns[None, :]
  inside.setflags(write=False)
  return inside


def _vios_s(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  if model.map_sigma:
    grid = ndimage.gaussian_filter(grid, model.map_sigma)
  heatmap = model.to_image(np.maximum(grid, 0), phrase.mask.shape, nearest=model.map_nearest)
  visible = ~np.isnan(heatmap)
  boxes = [box for box in box_masks(phrase) if (box & visible).any()]
  if not boxes:
    return [np.nan] * 3
  left, each = visible.copy(), []
  for box in boxes:
    each.append(cnr(heatmap, box & left, ~box & left))
    left &= ~box
  each = np.nan_to_num(each)
  mask = np.logical_or.reduce(boxes)
  overlap = np.mean([mask_iou(heatmap >= threshold, mask) for threshold in THRESHOLDS])
  return [float(np.mean(each)), float(np.mean(np.abs(each))), overlap]


def _aep(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  heatmap = model.to_image(ndimage.gaussian_filter(grid, _SIGMA), phrase.mask.shape)
  scored = centre(*heatmap.shape) & ~np.isnan(heatmap)
  heatmap, mask = heatmap[scored], phrase.mask[scored]
  if not mask.any():
    return [np.nan] * 4
  heatmap = 2 * _scaled(heatmap) - 1
  overlaps, dices = [], []
  for threshold in THRESHOLDS:
    predicted = heatmap >= threshold
    if predicted.any():
      overlaps.append(mask_iou(predicted, mask))
      size = np.count_nonzero(predicted) + np.count_nonzero(mask)
      dices.append(2 * np.count_nonzero(predicted & mask) / size)
  return [
    cnr(heatmap, mask, ~mask),
    float(np.mean(overlaps)) if overlaps else np.nan,
    float(np.mean(dices)) if dices else np.nan,
    float(mask[heatmap.argmax()]),
  ]


def _mgvla(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  smooth = ndimage.gaussian_filter(grid, _SIGMA)
  heatmap = model.to_image(smooth, phrase.mask.shape, nearest=True)
  regions = [region for region in phrase.example.regions if region.label == phrase.label]
  mask = np.logical_or.reduce([region_mask(region, phrase.example) for region in regions])
  return [abs(cnr(_filled(heatmap), mask, ~mask))]


def _g2g(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  heatmap = _scaled(_filled(model.to_image(grid, phrase.mask.shape)))
  bright, mask = foreground(heatmap), phrase.mask
  both = (mask_iou(bright, mask) + mask_iou(~bright, ~mask)) / 2
  return [cnr(heatmap, mask, ~mask, ddof=1), both]


def _radzero(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  heatmap = _filled(model.to_image(grid, phrase.mask.shape))
  return [float(box_masks(phrase)[0].flat[heatmap.argmax()])]


PROTOCOLS = {
  "compat-vios-s": Rules(("signed CNR", "absolute CNR", "mIoU"), True, False, _vios_s),
  "compat-aep": Rules(("signed CNR", "mIoU", "mean Dice", "P@1"), True, False, _aep),
  "compat-mgvla": Rules(("absolute CNR",), True, True, _mgvla),
  "compat-g2g": Rules(("unbiased CNR", "mIoU of both"), False, False, _g2g),
  "compat-radzero": Rules(("pointing first box",), False, False, _radzero),
}


def score_compat(
  model: Predictor, examples: Iterable[Example], protocols: Iterable[str] = tuple(PROTOCOLS)
) -> Scores:
  """Scores every phrase, by protocol; empty where no example has a region.

  Raises ValueError as `grounding.score_grounding`.
  """
  rules = {name: PROTOCOLS[name] for name in protocols}
  ids, labels, patients, boxes = [], [], [], []
  values: dict[str, list[list[float]]] = {name: [] for name in rules}
  for images, phrases in phrase_batches(examples):
    grids = model.similarities(images, [phrase.text for phrase in phrases], "phrase")
    for phrase, grid in zip(phrases, grids, strict=True):
      ids.append(phrase.id)
      labels.append(phrase.label)
      patients.append(phrase.example.patient_id)
      boxes.append(sum(max(1, len(region.boxes)) for region in phrase.regions))
      for name, rule in rules.items():
        values[name].append(rule.score(model, grid, phrase))
  if not ids:
    return {}
  scores = {}
  for name, rule in rules.items():
    if lost := int(np.isnan(values[name]).all(1).sum()):
      log.info(f"{name}: {lost} of {len(ids)} phrases have no region in what is scored; left out")
    times = boxes if rule.by_box else [1] * len(ids)
    scores[name] = ExampleScores(
      [f"{of} #{i}" if i else of for of, n in zip(ids, times, strict=True) for i in range(n)],
      list(np.repeat(labels if rule.by_finding else ["all"] * len(ids), times)),
      list(np.repeat(patients, times)),
      rule.metrics,
      np.repeat(np.array(values[name]), times, axis=0),
    )
  return scores


def compat_rows(scores: Scores, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by protocol, group and metric; there are no chance baselines."""
  rows = []
  for name, each in scores.items():
    means = bootstrap.grouped_means(each.values, each.groups, each.patients, **draws)
    for group, summaries in means.items():
      if PROTOCOLS[name].by_finding or group != bootstrap.MACRO:
        for metric, s in zip(each.metrics, summaries, strict=True):
          rows.append(Row("grounding", name, data, group, metric, RUN, s.value, s.low, s.high, s.n))
  return rows


@dataclass(frozen=True, kw_only=True)
class PublishedGrounding(Evaluator):
  """Evaluator of the emulated protocols; they have no chance baselines."""

  needs = "regions"
  protocols: tuple[str, ...] = tuple(PROTOCOLS)
  rows = staticmethod(compat_rows)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Scores:
    """Scores every phrase under each protocol."""
    return score_compat(model, dataset.examples("regions", "compatibility"), self.protocols)


def _filled(heatmap: np.ndarray) -> np.ndarray:
  """Gives cropped pixels the least value of the others."""
  cropped = np.isnan(heatmap)
  return np.where(cropped, heatmap[~cropped].min(), heatmap) if cropped.any() else heatmap


def _scaled(heatmap: np.ndarray) -> np.ndarray:
  """Scales to [0, 1] by the least and greatest value; a constant map becomes 0."""
  low, high = heatmap.min(), heatmap.max()
  return (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
