"""Phrase grounding as published evaluators measure it, one emulated protocol each.

Emulated is the measure: what an example is, how a similarity map is brought to the image and
scored, and how metrics are averaged. The image goes in as the evaluated model wants it. The map is
the model's signed similarity of its pixels to the phrase's embedding on its own grid; the model
brings it to the image by its own geometry, and to a pixel that its crop left out it gives NaN. Our
own runs see the whole image. Sources, read as code unless said otherwise:

- "compat-vios-s-v2" (the evaluation of BioViL-T in a latent-diffusion grounding paper): the map as
  the model's project makes it (BioViL's: Gaussian of sigma 1.5 cells, nearest cell; all others:
  bilinear), clipped at 0; CNR of each box of a phrase, pixels of its earlier boxes and pixels not
  seen left out, mean over the boxes, signed and absolute, a CNR that does not exist counted as 0;
  mIoU of map > .1 to .5 and the union, where a pixel not seen is not predicted, but may be true. A
  box of which the crop and later boxes of the phrase leave nothing is dropped (theirs are painted
  over each other), and so is a phrase that has no other; such phrases are counted.
- "compat-aep-v2" (AFLoc and KAF): Gaussian of sigma 1.5 cells on the grid, bilinear; the image
  stands centred in a square as wide as its longer side, and only the middle 196 / 224 of that is
  scored, whatever the model saw (AFLoc, too, sees all of it), less what it did not see; all else is
  left out of everything. Scaled to [-1, 1] by the least and greatest value there. The masks of a
  phrase's boxes are summed: for the signed CNR, 0 where neither part varies, inside is 1 and
  outside 0, so that pixels of several boxes are neither; Dice counts them once for each box. IoU
  and Dice of map > .1 to .5, thresholds with an empty prediction left out; P@1, the maximum in a
  box. The phrase belongs to the finding of its last region. A phrase without a true pixel there
  has no metrics; these are counted.
- "compat-mgvla-v2" (MGVLA): an example is a box, the mask the union of the image's boxes of its
  finding (not of its phrase); Gaussian of sigma 1.5 cells, nearest cell; absolute CNR.
- "compat-g2g-v2" (G2G): scaled to [0, 1], bilinear; CNR with unbiased variances. The foreground is
  found on a map of 64 cells to the shorter side (G2G's own grid; others are brought to it): above
  the mean of the means of two fitted Gaussians; then, but for the edge, what most of the 3 x 3
  cells round a cell are; brought to the image bilinearly and rounded. mIoU is the mean of the IoU
  of fore- and background. Without foreground all metrics are 0.
- "compat-radzero-v2" (RadZero): bilinear; the maximum lies in the first box of the phrase, whose
  last edge, x1 and y1, belongs to it.

The last three score the whole image; a pixel that was not seen has the least similarity that was
(ours: the models that these codes evaluate see everything).

Ours, too, is that all score at the stored resolution: AFLoc draws boxes at 224 px, KAF at 518 px
(on images of 1,024 px with random maps and boxes CNR differs by .012, to .054, mIoU by .002, to
.010), and G2G scores the middle square at 512 px (mIoU .001, to .008, with where its k-means
starts). AFLoc and KAF also score the margin that completes the square (sides of 5 to 6: CNR .027,
to .085, mIoU .007, to .037). Phrases are one where they agree after normalisation; AFLoc ignores
case alone, vios-s nothing. Of maxima that tie the first counts.

The first three average by finding and then over findings ("macro"), the last two over the examples.
Intervals as everywhere: 1,000 bootstrap draws of patients. A CNR that does not exist is left out.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from input_pipeline.example import Example
from input_pipeline.regions import box_mask, finding_masks, region_mask
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import Phrase, phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import THRESHOLDS, cnr, mask_iou, mixture_threshold
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

_SIGMA = 1.5  # cells
_CENTRE = 196 / 224  # of AFLoc's square
_CELLS = 64  # of G2G's maps, along the shorter side

Scores = dict[str, ExampleScores]  # by protocol


@dataclass(frozen=True)
class Rules:
  """Rules of one protocol."""

  metrics: tuple[str, ...]
  groups: Callable[[Phrase], list[str]]  # of the examples of a phrase: findings, or "all"
  # Model, map on the grid, phrase -> the metrics of its examples, one after another.
  score: Callable[[Predictor, np.ndarray, Phrase], list[float]]


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


def _box_findings(phrase: Phrase) -> list[str]:
  return [region.label for region in phrase.regions for _ in range(max(1, len(region.boxes)))]


def _vios_s(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  if model.map_sigma:
    grid = ndimage.gaussian_filter(grid, model.map_sigma)
  heatmap = model.to_image(np.maximum(grid, 0), phrase.mask.shape, nearest=model.map_nearest)
  visible = ~np.isnan(heatmap)
  boxes, painted = [], ~visible
  for box in reversed(box_masks(phrase)):
    if (box & ~painted).any():
      boxes.insert(0, box)
    painted |= box
  if not boxes:
    return [np.nan] * 3
  left, each = visible.copy(), []
  for box in boxes:
    each.append(cnr(heatmap, box & left, ~box & left))
    left &= ~box
  each = np.nan_to_num(each)
  mask = np.logical_or.reduce(boxes)
  overlap = np.mean([mask_iou(heatmap > threshold, mask) for threshold in THRESHOLDS])
  return [float(np.mean(each)), float(np.mean(np.abs(each))), overlap]


def _times(phrase: Phrase) -> np.ndarray:
  """Counts the boxes that hold each pixel, uint8 [H, W]; a region with a mask counts once."""
  times = np.zeros(phrase.mask.shape, np.uint8)
  for region in phrase.regions:
    if region.mask:
      times += region_mask(region, phrase.example)
    else:
      for box in region.boxes:
        times += box_mask(box, phrase.example)
  return times


def _aep(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  heatmap = model.to_image(ndimage.gaussian_filter(grid, _SIGMA), phrase.mask.shape)
  scored = centre(*heatmap.shape) & ~np.isnan(heatmap)
  heatmap, times = heatmap[scored], _times(phrase)[scored]
  mask = times > 0
  if not mask.any():
    return [np.nan] * 4
  heatmap = 2 * _scaled(heatmap) - 1
  overlaps, dices = [], []
  for threshold in THRESHOLDS:
    predicted = heatmap > threshold
    if predicted.any():
      overlaps.append(mask_iou(predicted, mask))
      size = np.count_nonzero(predicted) + times.sum(dtype=int)
      dices.append(2 * np.count_nonzero(predicted & mask) / size)
  contrast = cnr(heatmap, times == 1, ~mask)
  if (times == 1).any() and not mask.all():
    contrast = np.nan_to_num(contrast)
  return [
    contrast,
    float(np.mean(overlaps)) if overlaps else np.nan,
    float(np.mean(dices)) if dices else np.nan,
    float(mask[heatmap.argmax()]),
  ]


def _mgvla(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  smooth = ndimage.gaussian_filter(grid, _SIGMA)
  heatmap = _filled(model.to_image(smooth, phrase.mask.shape, nearest=True))
  findings = _box_findings(phrase)
  contrasts = {}
  for place, mask in finding_masks(phrase.example, findings).items():
    contrasts[findings[place]] = abs(cnr(heatmap, mask, ~mask))
  return [contrasts[finding] for finding in findings]


def _g2g(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  mask = phrase.mask
  coarse_shape = tuple(round(length * _CELLS / min(mask.shape)) for length in mask.shape)
  coarse = _scaled(_filled(model.to_image(grid, coarse_shape)))
  bright = coarse > mixture_threshold(coarse)
  votes = ndimage.convolve(bright.astype(np.uint8), np.ones((3, 3), np.uint8))
  bright[1:-1, 1:-1] = votes[1:-1, 1:-1] >= 5
  if not bright.any():
    return [0.0, 0.0]
  bright = cv2.resize(bright.astype(np.float32), mask.shape[::-1]) > 0.5
  heatmap = _filled(model.to_image(grid, mask.shape))
  both = (mask_iou(bright, mask) + mask_iou(~bright, ~mask)) / 2
  return [cnr(heatmap, mask, ~mask, ddof=1), both]


def _radzero(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  heatmap = _filled(model.to_image(grid, phrase.mask.shape))
  y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
  if not len(boxes := phrase.regions[0].boxes):
    return [float(region_mask(phrase.regions[0], phrase.example)[y, x])]
  x0, y0, x1, y1 = boxes[0]
  return [float(x0 <= x <= x1 and y0 <= y <= y1)]


PROTOCOLS = {
  "compat-vios-s-v2": Rules(
    ("signed CNR", "absolute CNR", "mIoU"), lambda phrase: [phrase.label], _vios_s
  ),
  "compat-aep-v2": Rules(
    ("signed CNR", "mIoU", "mean Dice", "P@1"), lambda phrase: [phrase.regions[-1].label], _aep
  ),
  "compat-mgvla-v2": Rules(("absolute CNR",), _box_findings, _mgvla),
  "compat-g2g-v2": Rules(("unbiased CNR", "mIoU of both"), lambda phrase: ["all"], _g2g),
  "compat-radzero-v2": Rules(("pointing first box",), lambda phrase: ["all"], _radzero),
}


def score_compat(
  model: Predictor, examples: Iterable[Example], protocols: Iterable[str] = tuple(PROTOCOLS)
) -> Scores:
  """Scores every phrase, by protocol; empty where no example has a region.

  Raises ValueError as `grounding.score_grounding`.
  """
  tables = {name: [] for name in protocols}  # name -> (id, group, patient, metrics) of examples
  for images, phrases in phrase_batches(examples):
    grids = model.similarities(images, [phrase.text for phrase in phrases], "phrase")
    for phrase, grid in zip(phrases, grids, strict=True):
      for name, table in tables.items():
        rule, patient = PROTOCOLS[name], phrase.example.patient_id
        rows = np.reshape(rule.score(model, grid, phrase), (-1, len(rule.metrics)))
        for i, (group, row) in enumerate(zip(rule.groups(phrase), rows, strict=True)):
          table.append((f"{phrase.id} #{i}" if i else phrase.id, group, patient, row))
  scores = {}
  for name, table in tables.items():
    if table:
      *texts, rows = zip(*table, strict=True)
      scores[name] = ExampleScores(*map(list, texts), PROTOCOLS[name].metrics, np.stack(rows))
      if lost := int(np.isnan(rows).all(1).sum()):
        log.info(
          f"{name}: {lost} of {len(rows)} examples have no region in what is scored; left out"
        )
  return scores


def compat_rows(scores: Scores, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by protocol, group and metric; there are no chance baselines."""
  rows = []
  for name, each in scores.items():
    means = bootstrap.grouped_means(each.values, each.groups, each.patients, **draws)
    for group, summaries in means.items():
      if set(each.groups) != {"all"} or group != bootstrap.MACRO:
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
