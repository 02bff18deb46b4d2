"""Segmentation: is every pixel of a finding found, and no other?

Protocol "segmentation-v1":

- The unit is an image and a finding. The true mask is the union of the finding's regions at the
  stored resolution, as in "grounding-v1" (a box where there is no mask). The map is float32 [H, W]
  in [0, 1] at the stored resolution; a pixel is predicted where it reaches the threshold.
- Dice and IoU are means over the images that have the finding; an empty prediction scores 0.
- "Dice with empty images" is the mean over all images: one without the finding scores 1 where nothing
  is predicted and 0 otherwise (the measure of the SIIM-ACR challenge). It is left out where an image
  without the finding may only be one that nobody outlined (--empty_images=drop).
- The threshold of a finding is that of .05, .10, ... .95 with the highest mean on the validation
  split, chosen for Dice and IoU ("threshold") and for Dice with empty images apart; of equal ones
  the lowest. A finding that no validation image has gets none, and is named.
  Without a validation split the threshold is .5, and the metrics are called "Dice at .5" and so on.
- A finding scores the mean of its units, `macro` the plain mean of the findings. Findings that no
  image has are left out and named. Intervals are 95 % percentile intervals of 1,000 bootstrap draws
  of patients; thresholds stay as they are.
- Floors: `mean_mask`, the mean of the finding's training masks, stretched to the image, with
  thresholds chosen alike (of Dice and IoU; it never predicts nothing, as its maximum is 1), and
  `nothing`, an empty prediction for every image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from input_pipeline.example import Example
from plan_jax.evaluators import grounding
from plan_jax.evaluators.chance import BoxPrior
from plan_jax.evaluators.finding_rows import places_by_finding
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

TASK, PROTOCOL = "segmentation", "segmentation-v1"
METRICS = ("Dice", "IoU")
WITH_EMPTY = "Dice with empty images"
MEAN_MASK, NOTHING = "mean_mask", "nothing"
THRESHOLDS = tuple(twentieths / 20 for twentieths in range(1, 20))
_HALF = THRESHOLDS.index(0.5)


@dataclass(frozen=True)
class Overlaps:
  """Of U units, how map and mask overlap at each of the T thresholds.

  Attributes:
    ids: [U], see `units.example_id`.
    groups: [U], findings.
    patients: [U].
    shared: int64 [U, T], pixels predicted and true.
    sizes: int64 [U, T], pixels predicted.
    areas: int64 [U], true pixels; 0 on an image without the finding.
  """

  ids: list[str]
  groups: list[str]
  patients: list[str]
  shared: np.ndarray
  sizes: np.ndarray
  areas: np.ndarray

  def of(self, findings: Iterable[str]) -> "Overlaps":
    """The units of some findings."""
    kept = [i for i, name in enumerate(self.groups) if name in findings]
    texts = [[some[i] for i in kept] for some in (self.ids, self.groups, self.patients)]
    return Overlaps(*texts, self.shared[kept], self.sizes[kept], self.areas[kept])

  def figures(self) -> np.ndarray:
    """Dice, IoU (NaN on an image without the finding) and Dice with empty images, [U, T, 3]."""
    area, size = self.areas[:, None], self.sizes
    there = np.broadcast_to(area > 0, size.shape)
    dice = np.where(there, 2 * self.shared / np.maximum(size + area, 1), np.nan)
    iou = np.where(there, self.shared / np.maximum(size + area - self.shared, 1), np.nan)
    return np.stack([dice, iou, np.where(there, dice, size == 0)], axis=-1)


def true_masks(example: Example, findings: Sequence[str]) -> dict[int, np.ndarray]:
  """Place of each finding that the study has -> bool [H, W], the union of its regions."""
  found: dict[int, np.ndarray] = {}
  for region in example.regions:
    if region.label in findings:
      mask = grounding.region_mask(region, example)
      place = findings.index(region.label)
      found[place] = found[place] | mask if place in found else mask
  return found


def overlap(heat: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
  """Pixels shared with the mask, and predicted, at each threshold (int64 [T]), and the mask's area.

  Args:
    heat: float32 [H, W] in [0, 1].
    mask: bool [H, W], or None for an empty one.

  Raises ValueError where a shape or a value is wrong.
  """
  if mask is not None and heat.shape != mask.shape:
    raise ValueError(f"the map is {heat.shape}, the mask {mask.shape}")
  if not (heat.min() >= 0 and heat.max() <= 1):
    raise ValueError(f"the map ranges from {heat.min()} to {heat.max()}; it must stay in [0, 1]")
  reached = np.searchsorted(np.array(THRESHOLDS, np.float32), heat.ravel(), side="right")

  def from_above(some: np.ndarray) -> np.ndarray:
    return np.bincount(some, minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]

  sizes = from_above(reached)
  if mask is None:
    return np.zeros_like(sizes), sizes, 0
  return from_above(reached[mask.ravel()]), sizes, int(np.count_nonzero(mask))


def score_segmentation(
  maps: Iterable[tuple[Example, np.ndarray]], findings: Sequence[str], *, keep_empty: bool
) -> Overlaps | None:
  """The overlaps of all units; None of none.

  Args:
    maps: studies, and the maps [K, H, W] of their findings.
    findings: K names.
    keep_empty: whether images without a finding are units of it.

  Raises ValueError, naming the image, where map and study contradict each other.
  """
  ids, groups, patients, counts = [], [], [], []
  for example, heats in maps:
    masks = true_masks(example, findings)
    for k, name in enumerate(findings):
      if k not in masks and not keep_empty:
        continue
      try:
        counts.append(overlap(heats[k], masks.get(k)))
      except ValueError as error:
        raise ValueError(f"{example.image_id}, {name}: {error}") from error
      ids.append(example_id(example.image_id, name))
      groups.append(name)
      patients.append(example.patient_id)
  if not ids:
    return None
  shared, sizes, areas = map(np.array, zip(*counts, strict=True))
  return Overlaps(ids, groups, patients, shared, sizes, areas)


class Chosen(NamedTuple):
  """Of a finding.

  Attributes:
    alone: place in THRESHOLDS of the highest mean Dice of images that have it.
    with_empty: the same of "Dice with empty images".
    images: units behind both.
  """

  alone: int
  with_empty: int
  images: int


def choose(found: Overlaps | None) -> dict[str, Chosen]:
  """Finding -> the best thresholds on these images; one that no image has is missing."""
  if found is None:
    return {}
  figures, chosen = found.figures(), {}
  for name, places in places_by_finding(found).items():
    if found.areas[places].any():
      some = figures[places]
      best = np.nanmean(some[..., 0], axis=0).argmax(), some[..., 2].mean(0).argmax()
      chosen[name] = Chosen(*map(int, best), len(places))
  return chosen


def best_dice(found: Overlaps | None) -> float:
  """Macro Dice of images that have a finding, each finding at its best threshold; NaN of none."""
  chosen = choose(found)
  if not chosen:
    return np.nan
  values = at_thresholds(found, chosen).values[:, 0]
  places = places_by_finding(found)
  return float(np.mean([np.nanmean(values[places[name]]) for name in chosen]))


def at_thresholds(
  found: Overlaps, chosen: dict[str, Chosen] | None, *, keep_empty: bool = True
) -> ExampleScores:
  """The figures of all units: METRICS, then WITH_EMPTY where images without a finding are units.

  NaN without a threshold; it is .5 for None.
  """
  figures = found.figures()
  values = np.full((len(found.ids), len(METRICS) + 1), np.nan)
  for name, i in places_by_finding(found).items():
    best = Chosen(_HALF, _HALF, 0) if chosen is None else chosen.get(name)
    if best is not None:
      values[i, :-1] = figures[i, best.alone, :-1]
      values[i, -1] = figures[i, best.with_empty, -1]
  metrics = (*METRICS, WITH_EMPTY) if keep_empty else METRICS
  return ExampleScores(found.ids, found.groups, found.patients, metrics, values[:, : len(metrics)])


def _nothing(of: ExampleScores, areas: np.ndarray) -> ExampleScores:
  """The floor `nothing` on the same units."""
  some = np.stack([np.where(areas > 0, 0.0, np.nan)] * 2 + [1.0 * (areas == 0)], axis=1)
  return replace(of, values=np.where(np.isnan(of.values), np.nan, some[:, : len(of.metrics)]))


def segmentation_rows(
  scores: dict[str, Overlaps],
  validation: dict[str, Overlaps | None] | None,
  *,
  data: str,
  keep_empty: bool,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> tuple[list[Row], ExampleScores]:
  """Rows by group (macro first), metric and model, and the units of the run.

  There are no rows where no finding has both an image and a threshold.

  Args:
    scores: model -> overlaps on the split that is scored, `RUN` first.
    validation: model -> overlaps on the validation split; None without such a split.
    data: the data set and split.
    keep_empty: as of `score_segmentation`.
    resamples, seed: of the bootstrap.
  """
  chosen = dict.fromkeys(scores)
  if validation is not None:
    chosen = {model: choose(validation[model]) for model in scores}
  there = set(choose(scores[RUN]))
  _say_missing(sorted(set(scores[RUN].groups) - there), f"no image of {data} has")
  if validation is not None:
    _say_missing(sorted(there - set(chosen[RUN])), "no validation image, so no threshold, has")
  scores = {model: found.of(there) for model, found in scores.items()}
  tables = {
    model: at_thresholds(found, chosen[model], keep_empty=keep_empty)
    for model, found in scores.items()
  }
  for model in set(tables) - {RUN}:
    tables[model].values[:, len(METRICS) :] = np.nan
  tables[NOTHING] = _nothing(tables[RUN], scores[RUN].areas)
  if np.isnan(tables[RUN].values).all():
    return [], tables[RUN]
  means = {
    model: bootstrap.grouped_means(
      some.values, some.groups, some.patients, resamples=resamples if model == RUN else 0, seed=seed
    )
    for model, some in tables.items()
  }
  suffix = " at .5" if validation is None else ""
  head, rows = (TASK, PROTOCOL, data), []
  for group in means[RUN]:
    for m, metric in enumerate(tables[RUN].metrics):
      for model, by_group in means.items():
        s = by_group[group][m]
        if not np.isnan(s.value):
          rows.append(Row(*head, group, metric + suffix, model, s.value, s.low, s.high, s.n))
    if best := (chosen[RUN] or {}).get(group):
      places = {"threshold": best.alone, f"threshold of {WITH_EMPTY}": best.with_empty}
      if not keep_empty:
        del places[f"threshold of {WITH_EMPTY}"]
      for name, place in places.items():
        rows.append(Row(*head, group, name, RUN, THRESHOLDS[place], np.nan, np.nan, best.images))
  return rows, tables[RUN]


def _say_missing(names: Sequence[str], why: str) -> None:
  if names:
    log.info(f"{TASK}: {why} {', '.join(names)}: left out")


def mean_masks(
  examples: Iterable[Example], prior: BoxPrior, findings: Sequence[str]
) -> Iterable[tuple[Example, np.ndarray]]:
  """The maps of the floor `mean_mask`; a finding without training masks has a map of zeros."""
  for example in examples:
    shape = example.height, example.width
    yield (
      example,
      np.stack(
        [
          prior.mean_box_per_finding(name, *shape) if name in prior.counts else np.zeros(shape)
          for name in findings
        ]
      ).astype(np.float32),
    )
