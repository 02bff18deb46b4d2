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
- "compat-radzero-v2" (RadZero on MS-CXR): bilinear; the maximum lies in the first box of the
  phrase, whose last edge, x1 and y1, belongs to it. "compat-any-box-v1" takes any of its boxes.
- "compat-radzero-findings-v1" (RadZero on ChestX-Det10): the same in any box of the phrase, where
  the model is asked not for the phrase but by the first prompt of its finding, "There is ...", of
  the first set of `config.evaluation.prompts`. Findings without a prompt are left out and counted.
  "compat-conns-findings-v1" (CoNNS) is the mean of the same examples over all findings.
- "compat-aep-sharpened-v1" (KAF's threshold sharpening): "compat-aep-v2" of another map, which is
  no measure of the map itself, so it is reported apart. On what is scored the map u in [0, 1]
  becomes 1 / (1 + exp(-96 (u - b))), b its quantile 1 - q, q the share of pixels above its mean
  plus its deviation, held in [.001, .6]. P@1 is that of the map itself.

All but compat-vios-s and both compat-aep score the whole image; a pixel that was not seen has the
least similarity that was (ours: the models that these codes evaluate see everything).

Ours, too, is that all score at the stored resolution: AFLoc draws boxes at 224 px, KAF at 518 px
(on images of 1,024 px with random maps and boxes CNR differs by .012, to .054, mIoU by .002, to
.010), and G2G scores the middle square at 512 px (mIoU .001, to .008, with where its k-means
starts). AFLoc and KAF also score the margin that completes the square (sides of 5 to 6: CNR .027,
to .085, mIoU .007, to .037). Phrases are one where they agree after normalisation; AFLoc ignores
case alone, vios-s nothing. Of maxima that tie the first counts. On PadChest-GR KAF unites the boxes
of a sentence, where on MS-CXR it sums them as above: pixels of two of its boxes differ.

compat-g2g, compat-radzero, compat-any-box and compat-conns average over the examples, all others by
finding and then over the findings ("macro"). Intervals as everywhere: 1,000 bootstrap draws of
patients. A CNR that does not exist is left out.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from input_pipeline import terminal
from input_pipeline.example import Example
from input_pipeline.regions import box_mask, finding_masks, region_mask
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import Phrase, phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.prompts import PromptSet
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import THRESHOLDS, cnr, mask_iou, mixture_threshold
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

_SIGMA = 1.5  # cells
_CENTRE = 196 / 224  # of AFLoc's square
_STEEPNESS, _FOREGROUND = 96, (0.001, 0.6)  # of KAF's sharpening
_CELLS = 64  # of G2G's maps, along the shorter side

Scores = dict[str, ExampleScores]  # by protocol


@dataclass(frozen=True)
class Rules:
  """Rules of one protocol."""

  metrics: tuple[str, ...]
  groups: Callable[[Phrase], list[str]]  # of the examples of a phrase: findings, or "all"
  # Model, map on the grid, phrase -> the metrics of its examples, one after another.
  score: Callable[[Predictor, np.ndarray, Phrase], list[float]]
  by_prompt: bool = False  # the map is that of the finding's prompt, not of the phrase


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


def sharpened(values: np.ndarray) -> np.ndarray:
  """Sharpens the scored values of a map, float64, as "compat-aep-sharpened-v1" has it."""
  values = _scaled(values.astype(np.float64))
  share = np.clip((values > values.mean() + values.std()).mean(), *_FOREGROUND)
  steep = np.clip(_STEEPNESS * (values - np.quantile(values, 1 - share)), -60, 60)
  return 1 / (1 + np.exp(-steep))


def _aep(
  model: Predictor, grid: np.ndarray, phrase: Phrase, *, sharpen: bool = False
) -> list[float]:
  heatmap = model.to_image(ndimage.gaussian_filter(grid, _SIGMA), phrase.mask.shape)
  scored = centre(*heatmap.shape) & ~np.isnan(heatmap)
  heatmap, times = heatmap[scored], _times(phrase)[scored]
  mask = times > 0
  if not mask.any():
    return [np.nan] * 4
  pointed = float(mask[heatmap.argmax()])  # of the map itself: a sharpened one has a plateau
  heatmap = 2 * _scaled(sharpened(heatmap) if sharpen else heatmap) - 1
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
    pointed,
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


def _point(model: Predictor, grid: np.ndarray, phrase: Phrase) -> tuple[int, int]:
  heatmap = _filled(model.to_image(grid, phrase.mask.shape))
  y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
  return int(x), int(y)


def _contains(box: np.ndarray, x: int, y: int) -> bool:
  x0, y0, x1, y1 = box
  return bool(x0 <= x <= x1 and y0 <= y <= y1)


def _first_box(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  (x, y), first = _point(model, grid, phrase), phrase.regions[0]
  if not len(first.boxes):
    return [float(region_mask(first, phrase.example)[y, x])]
  return [float(_contains(first.boxes[0], x, y))]


def _any_box(model: Predictor, grid: np.ndarray, phrase: Phrase) -> list[float]:
  x, y = _point(model, grid, phrase)
  hit = any(
    any(_contains(box, x, y) for box in region.boxes)
    if len(region.boxes)
    else region_mask(region, phrase.example)[y, x]
    for region in phrase.regions
  )
  return [float(hit)]


PROTOCOLS = {
  "compat-vios-s-v2": Rules(
    ("signed CNR", "absolute CNR", "mIoU"), lambda phrase: [phrase.label], _vios_s
  ),
  "compat-aep-v2": Rules(
    ("signed CNR", "mIoU", "mean Dice", "P@1"), lambda phrase: [phrase.regions[-1].label], _aep
  ),
  "compat-mgvla-v2": Rules(("absolute CNR",), _box_findings, _mgvla),
  "compat-g2g-v2": Rules(("unbiased CNR", "mIoU of both"), lambda phrase: ["all"], _g2g),
  "compat-radzero-v2": Rules(("pointing first box",), lambda phrase: ["all"], _first_box),
  "compat-any-box-v1": Rules(("pointing any box",), lambda phrase: ["all"], _any_box),
  "compat-radzero-findings-v1": Rules(
    ("pointing any box",), lambda phrase: [phrase.label], _any_box, by_prompt=True
  ),
  "compat-conns-findings-v1": Rules(
    ("pointing any box",), lambda phrase: ["all"], _any_box, by_prompt=True
  ),
  "compat-aep-sharpened-v1": Rules(
    ("signed CNR", "mIoU", "mean Dice", "P@1"),
    lambda phrase: [phrase.regions[-1].label],
    functools.partial(_aep, sharpen=True),
  ),
}


def score_compat(
  model: Predictor,
  examples: Iterable[Example],
  protocols: Iterable[str] = tuple(PROTOCOLS),
  prompts: PromptSet | None = None,
) -> Scores:
  """Scores every phrase, by protocol; empty where no example has a region.

  Without `prompts` protocols that ask by them are left out. Raises ValueError as
  `grounding.score_grounding`.
  """
  # Name -> (id, group, patient, metrics) of examples.
  tables = {name: [] for name in protocols if prompts or not PROTOCOLS[name].by_prompt}
  without: Counter[str] = Counter()
  for images, phrases in phrase_batches(examples):
    for by_prompt in (False, True):
      chosen = {n: table for n, table in tables.items() if PROTOCOLS[n].by_prompt == by_prompt}
      asked = [phrase.text for phrase in phrases]
      if by_prompt and chosen:
        each = [prompts.prompts(phrase.label) for phrase in phrases]
        without.update(p.label for p, texts in zip(phrases, each, strict=True) if not texts)
        asked = [texts.positive[0] if texts else "" for texts in each]
      places = [i for i, text in enumerate(asked) if text] if chosen else []
      if not places:
        continue
      grids = model.similarities([images[i] for i in places], [asked[i] for i in places], "phrase")
      for i, grid in zip(places, grids, strict=True):
        for name, table in chosen.items():
          table += _examples(PROTOCOLS[name], model, grid, phrases[i])
  if without:
    log.info(
      f"grounding by prompts {prompts.name}: {without.total()} phrases have findings without a"
      f" prompt and are left out: {terminal.join(sorted(without))}"
    )
  scores = {}
  for name, table in tables.items():
    if table:
      *texts, rows = zip(*table, strict=True)
      rule = PROTOCOLS[name]
      full = f"{name}, prompts {prompts.fingerprint}" if rule.by_prompt else name
      scores[full] = ExampleScores(*map(list, texts), rule.metrics, np.stack(rows))
      if lost := int(np.isnan(rows).all(1).sum()):
        log.info(
          f"{name}: {lost} of {len(rows)} examples have no region in what is scored; left out"
        )
  return scores


def _examples(
  rule: Rules, model: Predictor, grid: np.ndarray, phrase: Phrase
) -> list[tuple[str, str, str, np.ndarray]]:
  """Scores the examples of a phrase: (id, group, patient, metrics) of each."""
  rows = np.reshape(rule.score(model, grid, phrase), (-1, len(rule.metrics)))
  return [
    (f"{phrase.id} #{i}" if i else phrase.id, group, phrase.example.patient_id, row)
    for i, (group, row) in enumerate(zip(rule.groups(phrase), rows, strict=True))
  ]


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
  """Evaluator of the emulated protocols; they have no chance baselines.

  The first of the sets of `prompts` is asked by, where a protocol does so.
  """

  needs = "regions"
  protocols: tuple[str, ...] = tuple(PROTOCOLS)
  prompts: tuple[PromptSet, ...] = ()
  rows = staticmethod(compat_rows)

  def score(self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings) -> Scores:
    """Scores every phrase under each protocol."""
    prompts = self.prompts[0] if self.prompts else None
    examples = dataset.examples("regions", "compatibility")
    return score_compat(model, examples, self.protocols, prompts)

  def example_scores(self, scores: Scores) -> dict[str, ExampleScores]:
    """Names the scores of each protocol."""
    return {f"grounding@{_part(protocol)}": each for protocol, each in scores.items()}

  def facts(self, scores: Scores) -> dict[str, str]:
    """Collects the protocols by the names of their scores."""
    return {_part(protocol): protocol for protocol in scores}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores:
    """Takes the names back."""
    return {facts[name.partition("@")[2]]: each for name, each in kept.items()}


def _part(protocol: str) -> str:
  return protocol.replace(", prompts ", "-")


def _filled(heatmap: np.ndarray) -> np.ndarray:
  """Gives cropped pixels the least value of the others."""
  cropped = np.isnan(heatmap)
  return np.where(cropped, heatmap[~cropped].min(), heatmap) if cropped.any() else heatmap


def _scaled(heatmap: np.ndarray) -> np.ndarray:
  """Scales to [0, 1] by the least and greatest value; a constant map becomes 0."""
  low, high = heatmap.min(), heatmap.max()
  return (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
