"""Phrase grounding as published evaluators measure it, one emulated protocol each.

What is emulated is the measure: what the unit is, how a similarity map is brought to the image and
scored, and how figures are averaged. The image goes in as the evaluated model wants it. The map is
the model's signed similarity of its pixels to the phrase's vector on its own grid; the model brings
it to the image by its own geometry, and to a pixel that its crop left out it gives NaN. Our own runs
see the whole image. Sources, read as code unless said otherwise:

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
  phrase without a true pixel there has no figures; these are counted.
- "compat-mgvla" (MGVLA): the unit is a box, the mask the union of the boxes of the image's finding
  (not of its phrase); Gaussian of sigma 1.5 cells, nearest cell; absolute CNR.
- "compat-g2g" (G2G): scaled to [0, 1], bilinear; CNR with unbiased variances; the foreground is the
  brighter part of a mixture of two Gaussians over the pixels; mIoU is the mean of the IoU of fore-
  and background.
- "compat-radzero" (RadZero): bilinear; the maximum lies in the first box of the phrase.

The last three score the whole image; a pixel that was not seen has the least similarity that was
(ours: the models that these codes evaluate see everything).

The first three average by finding and then over findings ("macro"), the last two over the units.
Intervals as everywhere: 1,000 bootstrap draws of patients. A CNR that does not exist is left out.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from input_pipeline.example import Example, Region
from plan_jax.evaluators import grounding
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

_SIGMA = 1.5  # cells
_CENTRE = 196 / 224  # of AFLoc's square
_BINS = 256  # of the histogram that the mixture is fitted to


class Grounder(Protocol):
  """What the protocols need of a model.

  Attributes:
    map_sigma: of the Gaussian on the grid, in cells, that belongs to the map as the project that
      the model is from makes it; 0: none.
    map_nearest: whether that project takes the nearest cell; else bilinear.
  """

  map_sigma: float
  map_nearest: bool

  def similarities(self, images: list[np.ndarray], phrases: list[str], of: str) -> np.ndarray:
    """[N, rows, columns] float32, signed, of the phrase's vector with `of` "phrase"."""

  def to_image(
    self, grid: np.ndarray, shape: tuple[int, int], *, nearest: bool = False
  ) -> np.ndarray:
    """A map on the grid -> float32 [H, W] of an image, bilinear or by the nearest cell.

    NaN where the model did not look.
    """


@dataclass(frozen=True)
class Rules:
  """Of one protocol.

  Attributes:
    metrics: names of its figures.
    by_finding: whether figures are averaged by finding first.
    by_box: whether every box of a phrase counts as a unit.
    score: (model, similarity on the grid, unit) -> figures.
  """

  metrics: tuple[str, ...]
  by_finding: bool
  by_box: bool
  score: Callable[[Grounder, np.ndarray, "Unit"], list[float]]


@dataclass(frozen=True)
class Unit:
  """A phrase of an image.

  Attributes:
    image_id, patient_id, phrase, label: as in `grounding.Unit`.
    boxes: list of bool [H, W], one a box, in the regions' order (a mask where there is no box).
    mask: [H, W] bool, their union.
    category: [H, W] bool, the union of all regions of the image with that label.
  """

  image_id: str
  patient_id: str
  phrase: str
  label: str
  boxes: list[np.ndarray]
  mask: np.ndarray
  category: np.ndarray


def units(example: Example) -> list[Unit]:
  """The units of a study; masks as in `grounding.example_scores`."""
  found = []
  for one in grounding.units(example):
    own = [r for r in example.regions if grounding.same_phrase(r.phrase, one.phrase)]
    alike = [grounding.region_mask(r, example) for r in example.regions if r.label == one.label]
    found.append(
      Unit(
        one.image_id, one.patient_id, one.phrase, one.label,
        [mask for region in own for mask in _box_masks(region, example)],
        one.mask, np.logical_or.reduce(alike),
      )
    )  # fmt: skip
  return found


def cnr(heat: np.ndarray, inside: np.ndarray, outside: np.ndarray, ddof: int = 0) -> float:
  """(mean_A - mean_B) / sqrt(var_A + var_B) of bool masks A, B; NaN where it does not exist."""
  a, b = heat[inside].astype(np.float64), heat[outside].astype(np.float64)
  if min(a.size, b.size) <= ddof:
    return np.nan
  spread = np.sqrt(a.var(ddof=ddof) + b.var(ddof=ddof))
  return float((a.mean() - b.mean()) / spread) if spread > 1e-12 else np.nan


def bright_part(heat: np.ndarray) -> np.ndarray:
  """[H, W] bool: pixels that a mixture of two Gaussians, fitted by EM, gives to the brighter one.

  The mixture is fitted to a histogram of 256 bins, from the means of the halves below and above
  the mid-range; of a constant map nothing is bright.
  """
  low, high = float(heat.min()), float(heat.max())
  if not high > low:
    return np.zeros(heat.shape, bool)
  counts, edges = np.histogram(heat, _BINS, (low, high))
  x, n = (edges[:-1] + edges[1:]) / 2, counts.astype(np.float64)
  upper = x > (low + high) / 2
  least = ((high - low) / _BINS) ** 2  # no part is narrower than a bin
  share = np.stack([~upper, upper]).astype(np.float64)
  for _ in range(200):
    weight = (share * n).sum(1) + 1e-12
    mean = (share * n * x).sum(1) / weight
    variance = np.maximum((share * n * (x - mean[:, None]) ** 2).sum(1) / weight, least)
    log_density = np.log(weight / n.sum())[:, None] - 0.5 * (
      np.log(variance)[:, None] + (x - mean[:, None]) ** 2 / variance[:, None]
    )
    log_density -= log_density.max(0)
    before, share = share, np.exp(log_density) / np.exp(log_density).sum(0)
    if np.abs(share - before).max() < 1e-6:
      break
  brighter = int(mean[1] > mean[0])
  bins = np.clip(((heat - low) * (_BINS / (high - low))).astype(int), 0, _BINS - 1)
  return (share[brighter] > 0.5)[bins]


@functools.lru_cache(maxsize=16)
def centre(height: int, width: int) -> np.ndarray:
  """[H, W] bool: pixels in the middle 196 / 224 of the square that the image stands centred in."""
  side = max(height, width)
  rows, columns = (
    np.abs(np.arange(length) + 0.5 - length / 2) <= _CENTRE * side / 2 for length in (height, width)
  )
  inside = rows[:, None] & columns[None, :]
  inside.setflags(write=False)
  return inside


def iou(a: np.ndarray, b: np.ndarray) -> float:
  """Of two bool masks; 0 where both are empty."""
  either = np.count_nonzero(a | b)
  return np.count_nonzero(a & b) / either if either else 0.0


def _vios_s(model: Grounder, grid: np.ndarray, unit: Unit) -> list[float]:
  if model.map_sigma:
    grid = ndimage.gaussian_filter(grid, model.map_sigma)
  heat = model.to_image(np.maximum(grid, 0), unit.mask.shape, nearest=model.map_nearest)
  seen = ~np.isnan(heat)
  boxes = [box for box in unit.boxes if (box & seen).any()]
  if not boxes:
    return [np.nan] * 3
  left, each = seen.copy(), []
  for box in boxes:
    each.append(cnr(heat, box & left, ~box & left))
    left &= ~box
  each = np.nan_to_num(each)
  mask = np.logical_or.reduce(boxes)
  overlap = np.mean([iou(heat >= threshold, mask) for threshold in grounding.THRESHOLDS])
  return [float(np.mean(each)), float(np.mean(np.abs(each))), overlap]


def _aep(model: Grounder, grid: np.ndarray, unit: Unit) -> list[float]:
  heat = model.to_image(ndimage.gaussian_filter(grid, _SIGMA), unit.mask.shape)
  scored = centre(*heat.shape) & ~np.isnan(heat)
  heat, mask = heat[scored], unit.mask[scored]
  if not mask.any():
    return [np.nan] * 4
  heat = 2 * _scaled(heat) - 1
  overlaps, dices = [], []
  for threshold in grounding.THRESHOLDS:
    predicted = heat >= threshold
    if predicted.any():
      overlaps.append(iou(predicted, mask))
      size = np.count_nonzero(predicted) + np.count_nonzero(mask)
      dices.append(2 * np.count_nonzero(predicted & mask) / size)
  return [
    cnr(heat, mask, ~mask),
    float(np.mean(overlaps)) if overlaps else np.nan,
    float(np.mean(dices)) if dices else np.nan,
    float(mask[heat.argmax()]),
  ]


def _mgvla(model: Grounder, grid: np.ndarray, unit: Unit) -> list[float]:
  heat = model.to_image(ndimage.gaussian_filter(grid, _SIGMA), unit.mask.shape, nearest=True)
  return [abs(cnr(_filled(heat), unit.category, ~unit.category))]


def _g2g(model: Grounder, grid: np.ndarray, unit: Unit) -> list[float]:
  heat = _scaled(_filled(model.to_image(grid, unit.mask.shape)))
  bright = bright_part(heat)
  both = (iou(bright, unit.mask) + iou(~bright, ~unit.mask)) / 2
  return [cnr(heat, unit.mask, ~unit.mask, ddof=1), both]


def _radzero(model: Grounder, grid: np.ndarray, unit: Unit) -> list[float]:
  heat = _filled(model.to_image(grid, unit.mask.shape))
  return [float(unit.boxes[0].flat[heat.argmax()])]


PROTOCOLS = {
  "compat-vios-s": Rules(("signed CNR", "absolute CNR", "mIoU"), True, False, _vios_s),
  "compat-aep": Rules(("signed CNR", "mIoU", "mean Dice", "P@1"), True, False, _aep),
  "compat-mgvla": Rules(("absolute CNR",), True, True, _mgvla),
  "compat-g2g": Rules(("unbiased CNR", "mIoU of both"), False, False, _g2g),
  "compat-radzero": Rules(("pointing first box",), False, False, _radzero),
}


def score_compat(
  model: Grounder, examples: Iterable[Example], *, batch: int = 64
) -> dict[str, ExampleScores]:
  """Protocol -> the figures of its units; empty where no study has a region.

  Raises ValueError as `grounding.score_grounding` does.
  """
  ids, labels, patients, boxes = [], [], [], []
  figures: dict[str, list[list[float]]] = {name: [] for name in PROTOCOLS}
  for images, some in grounding.batches(examples, batch, units):
    grids = model.similarities(images, [unit.phrase for unit in some], "phrase")
    for unit, grid in zip(some, grids, strict=True):
      ids.append(example_id(unit.image_id, unit.phrase))
      labels.append(unit.label)
      patients.append(unit.patient_id)
      boxes.append(len(unit.boxes))
      for name, protocol in PROTOCOLS.items():
        figures[name].append(protocol.score(model, grid, unit))
  if not ids:
    return {}
  found = {}
  for name, protocol in PROTOCOLS.items():
    if lost := int(np.isnan(figures[name]).all(1).sum()):
      log.info(f"{name}: {lost} of {len(ids)} phrases have no region in what is scored; left out")
    times = boxes if protocol.by_box else [1] * len(ids)
    found[name] = ExampleScores(
      [f"{of} #{i}" if i else of for of, n in zip(ids, times, strict=True) for i in range(n)],
      list(np.repeat(labels if protocol.by_finding else ["all"] * len(ids), times)),
      list(np.repeat(patients, times)),
      protocol.metrics,
      np.repeat(np.array(figures[name]), times, axis=0),
    )
  return found


def compat_rows(
  scores: dict[str, ExampleScores],
  *,
  data: str,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows of `score_compat` by protocol, group and metric; there are no floors."""
  rows = []
  for name, found in scores.items():
    means = bootstrap.grouped_means(
      found.values, found.groups, found.patients, resamples=resamples, seed=seed
    )
    for group, summaries in means.items():
      if PROTOCOLS[name].by_finding or group != bootstrap.MACRO:
        for metric, s in zip(found.metrics, summaries, strict=True):
          rows.append(Row("grounding", name, data, group, metric, RUN, s.value, s.low, s.high, s.n))
  return rows


def _filled(heat: np.ndarray) -> np.ndarray:
  """What was not seen takes the least value that was."""
  unseen = np.isnan(heat)
  return np.where(unseen, heat[~unseen].min(), heat) if unseen.any() else heat


def _scaled(heat: np.ndarray) -> np.ndarray:
  """To [0, 1] by its least and greatest value; a constant map becomes 0."""
  low, high = heat.min(), heat.max()
  return (heat - low) / (high - low) if high > low else np.zeros_like(heat)


def _box_masks(region: Region, example: Example) -> list[np.ndarray]:
  if not len(region.boxes):
    return [grounding.region_mask(region, example)]
  one = (Region(region.phrase, region.label, box[None]) for box in region.boxes)
  return [grounding.region_mask(box, example) for box in one]
