"""Segmentation of findings by pixels.

Protocol "segmentation-v1":

- An example is an image and a finding. The true mask is the union of the finding's regions at the
  stored resolution, as in "grounding-v1" (a box where there is no mask). The map is float32 [H, W]
  in [0, 1] at the stored resolution; a pixel is predicted where it reaches the threshold.
- Dice and IoU are means over the images that have the finding; an empty prediction scores 0.
- "Dice with empty images" is the mean over all images: one without the finding scores 1 where
  nothing is predicted and 0 otherwise (the measure of the SIIM-ACR challenge). It is left out where
  an image without the finding may only be one that nobody outlined (--empty_images=drop).
- The threshold of a finding is that of .05, .10, ... .95 with the highest mean on the validation
  split, chosen for Dice and IoU ("threshold") and for Dice with empty images apart; of equal ones
  the lowest. A finding that no validation image has gets none, and is named.
  Without a validation split the threshold is .5, and the metrics are called "Dice at .5" and so on.
- A finding scores the mean of its examples, `macro` the plain mean of the findings. Findings that
  no image has are left out and named. Intervals are 95 % percentile intervals of 1,000 bootstrap
  draws of patients; thresholds stay as they are.
- Chance baselines: `mean_mask`, the mean of the finding's training masks, stretched to the image,
  with thresholds chosen alike (of Dice and IoU; it never predicts nothing, as its maximum is 1),
  and `nothing`, an empty prediction for every image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from input_pipeline import terminal
from input_pipeline.example import Example
from input_pipeline.regions import finding_masks
from plan_jax.evaluators.chance import BoxPrior
from plan_jax.evaluators.classification import example_places
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import overlaps
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
  """Overlaps of map and mask of U examples at each of the T thresholds."""

  ids: list[str]  # [U], see `example_scores.example_id`
  groups: list[str]  # [U], findings
  patients: list[str]  # [U]
  shared: np.ndarray  # int64 [U, T], pixels predicted and true
  sizes: np.ndarray  # int64 [U, T], pixels predicted
  areas: np.ndarray  # int64 [U], true pixels; 0 on an image without the finding

  def select(self, findings: Iterable[str]) -> "Overlaps":
    """Keeps the examples of these findings."""
    kept = [i for i, name in enumerate(self.groups) if name in findings]
    texts = [[column[i] for i in kept] for column in (self.ids, self.groups, self.patients)]
    return Overlaps(*texts, self.shared[kept], self.sizes[kept], self.areas[kept])

  def metrics(self) -> np.ndarray:
    """Computes Dice, IoU (NaN on an image without the finding), Dice with empty: [U, T, 3]."""
    area, size = self.areas[:, None], self.sizes
    present = np.broadcast_to(area > 0, size.shape)
    dice = np.where(present, 2 * self.shared / np.maximum(size + area, 1), np.nan)
    iou = np.where(present, self.shared / np.maximum(size + area - self.shared, 1), np.nan)
    return np.stack([dice, iou, np.where(present, dice, size == 0)], axis=-1)


class Thresholds(NamedTuple):
  """Best thresholds of a finding."""

  alone: int  # place in `THRESHOLDS` of the highest mean Dice of images that have it
  with_empty: int  # that of "Dice with empty images"
  images: int  # examples behind both


def score_segmentation(
  maps: Iterable[tuple[Example, np.ndarray]], findings: Sequence[str], *, keep_empty: bool
) -> Overlaps | None:
  """Measures the overlaps of all examples; None of none.

  `maps` are images, and the maps [K, H, W] of their findings; where `keep_empty`, images without a
  finding are examples of it. Raises ValueError, naming it, where an image and its map disagree.
  """
  ids, groups, patients, counts = [], [], [], []
  for example, heatmaps in maps:
    masks = finding_masks(example, findings)
    for k, name in enumerate(findings):
      if k not in masks and not keep_empty:
        continue
      try:
        counts.append(overlaps(heatmaps[k], masks.get(k), THRESHOLDS))
      except ValueError as error:
        raise ValueError(f"{example.image_id}, {name}: {error}") from error
      ids.append(example_id(example.image_id, name))
      groups.append(name)
      patients.append(example.patient_id)
  if not ids:
    return None
  shared, sizes, areas = map(np.array, zip(*counts, strict=True))
  return Overlaps(ids, groups, patients, shared, sizes, areas)


def choose(scores: Overlaps | None) -> dict[str, Thresholds]:
  """Chooses the best thresholds of each finding; one that no image has is missing."""
  if scores is None:
    return {}
  metrics, chosen = scores.metrics(), {}
  for name, places in example_places(scores).items():
    if scores.areas[places].any():
      values = metrics[places]
      best = np.nanmean(values[..., 0], axis=0).argmax(), values[..., 2].mean(0).argmax()
      chosen[name] = Thresholds(*map(int, best), len(places))
  return chosen


def best_dice(scores: Overlaps | None) -> float:
  """Averages Dice over findings, each at its best threshold on its images; NaN of none."""
  chosen = choose(scores)
  if not chosen:
    return np.nan
  values = at_thresholds(scores, chosen).values[:, 0]
  places = example_places(scores)
  return float(np.mean([np.nanmean(values[places[name]]) for name in chosen]))


def at_thresholds(
  scores: Overlaps, chosen: dict[str, Thresholds] | None, *, keep_empty: bool = True
) -> ExampleScores:
  """Takes `METRICS` of all examples, then `WITH_EMPTY` where `keep_empty`, at the thresholds.

  NaN without a threshold; it is .5 for None.
  """
  metrics = scores.metrics()
  values = np.full((len(scores.ids), len(METRICS) + 1), np.nan)
  for name, i in example_places(scores).items():
    best = Thresholds(_HALF, _HALF, 0) if chosen is None else chosen.get(name)
    if best is not None:
      values[i, :-1] = metrics[i, best.alone, :-1]
      values[i, -1] = metrics[i, best.with_empty, -1]
  names = (*METRICS, WITH_EMPTY) if keep_empty else METRICS
  return ExampleScores(scores.ids, scores.groups, scores.patients, names, values[:, : len(names)])


def segmentation_rows(
  scores: dict[str, Overlaps],
  validation: dict[str, Overlaps | None] | None,
  *,
  data: str,
  keep_empty: bool,
  **draws: int,
) -> tuple[list[Row], ExampleScores]:
  """Makes rows by group (macro first), metric and model, and per-example scores of the run.

  There are no rows where no finding has both an image and a threshold. `scores` are of the split
  that is scored, by model, `RUN` first, and `validation` likewise; None without such a split.
  """
  chosen = dict.fromkeys(scores)
  if validation is not None:
    chosen = {model: choose(validation[model]) for model in scores}
  present = set(choose(scores[RUN]))
  _log_missing(sorted(set(scores[RUN].groups) - present), f"no image of {data} has")
  if validation is not None:
    _log_missing(sorted(present - set(chosen[RUN])), "no validation image, so no threshold, has")
  tables = {
    model: at_thresholds(overlap.select(present), chosen[model], keep_empty=keep_empty)
    for model, overlap in scores.items()
  }
  for model in set(tables) - {RUN}:
    tables[model].values[:, len(METRICS) :] = np.nan
  tables[NOTHING] = _nothing(tables[RUN], scores[RUN].select(present).areas)
  if np.isnan(tables[RUN].values).all():
    return [], tables[RUN]
  means = {}
  for model, each in tables.items():
    own = draws if model == RUN else {"resamples": 0}
    means[model] = bootstrap.grouped_means(each.values, each.groups, each.patients, **own)
  suffix = " at .5" if validation is None else ""
  head, rows = (TASK, PROTOCOL, data), []
  for group in means[RUN]:
    for m, metric in enumerate(tables[RUN].metrics):
      for model, by_group in means.items():
        s = by_group[group][m]
        if not np.isnan(s.value):
          rows.append(Row(*head, group, metric + suffix, model, s.value, s.low, s.high, s.n))
    if best := (chosen[RUN] or {}).get(group):
      end = (np.nan, np.nan, best.images)
      rows.append(Row(*head, group, "threshold", RUN, THRESHOLDS[best.alone], *end))
      if keep_empty:
        name = f"threshold of {WITH_EMPTY}"
        rows.append(Row(*head, group, name, RUN, THRESHOLDS[best.with_empty], *end))
  return rows, tables[RUN]


def _nothing(run: ExampleScores, areas: np.ndarray) -> ExampleScores:
  """Scores the chance baseline `nothing` on the examples of the run."""
  values = np.stack([np.where(areas > 0, 0.0, np.nan)] * 2 + [1.0 * (areas == 0)], axis=1)
  values = np.where(np.isnan(run.values), np.nan, values[:, : len(run.metrics)])
  return replace(run, values=values)


def _log_missing(names: Sequence[str], why: str) -> None:
  if names:
    log.info(f"{TASK}: {why} {terminal.join(names)}: left out")


def mean_masks(
  examples: Iterable[Example], prior: BoxPrior, findings: Sequence[str]
) -> Iterable[tuple[Example, np.ndarray]]:
  """Yields the maps of the baseline `mean_mask`, zeros for a finding without training masks."""
  for example in examples:
    shape = example.height, example.width
    maps = [
      prior.mean_box_per_finding(name, *shape) if name in prior.counts else np.zeros(shape)
      for name in findings
    ]
    yield example, np.stack(maps).astype(np.float32)
