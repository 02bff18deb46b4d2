"""Segmentation without training, by the map of a prompt, as RadZero's evaluator measures it.

Protocol "compat-radzero-segmentation-v1":

- An example is an image and a finding (by name, without case and punctuation) that has prompts: a
  positive has a region of it (the union of its regions at the stored resolution, boxes rounded
  outwards), a negative is labelled 0. An image that is positive by its label and has no region is
  left out and counted.
- The model is asked by the first prompt of the finding, "There is ...", of the first set of
  `config.evaluation.prompts`. Its signed similarity on the grid, times the inverse temperature of
  its contrast (as it is where that is not known), is brought to the image bilinearly by the model's
  own geometry, and through a sigmoid. A pixel that was not seen is 0.
- A pixel is predicted where it lies above the threshold, one of 0, .01, ... 1. Dice is the mean
  over the positives, at the threshold of the highest such mean **on the scored images themselves**
  (of several the least; row "threshold"): it is too high by what that gains. A threshold stays as
  it is in the draws of the bootstrap.
- specificity is the share of negatives without a predicted pixel, at the same threshold.
- A finding scores by its own examples, `macro` is the plain mean of the findings. Intervals are
  95 % percentile intervals of 1,000 bootstrap draws of patients. There are no chance baselines.

RadZero rounds the corners of RSNA's boxes down, and splits SIIM by row, as MGCA does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from input_pipeline.example import Example
from input_pipeline.images import model_input
from input_pipeline.regions import finding_masks
from input_pipeline.text import reports
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.classification import example_places
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.prompts import PromptSet
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL, _TASK = "compat-radzero-segmentation-v1", "segmentation"
_THRESHOLDS = np.arange(101).astype(np.float32) / np.float32(100)
_PEAK = "peak"  # of a negative; the other metrics are the Dice of a positive above each threshold
METRICS = (*(f"Dice above {threshold:.2f}" for threshold in _THRESHOLDS), _PEAK)

_Case = tuple[Example, str, np.ndarray | None]  # finding and mask, bool [H, W]; None: absent


@dataclass(frozen=True)
class Scores:
  """Scores of images and findings."""

  fingerprint: str  # of the prompts
  example_scores: ExampleScores  # grouped by finding, `METRICS` as metrics


def dice_above(
  values: np.ndarray, mask: np.ndarray, thresholds: np.ndarray = _THRESHOLDS
) -> np.ndarray:
  """Computes the Dice of what lies above each of T ascending thresholds with a mask: float64 [T].

  `values` and `mask` are [H, W]; the mask is not empty.
  """
  below = np.searchsorted(thresholds, values.ravel(), side="left")  # thresholds below each pixel

  def above(below: np.ndarray) -> np.ndarray:
    counts = np.bincount(below, minlength=len(thresholds) + 1)
    return counts.sum() - counts.cumsum()[:-1]

  return 2 * above(below[mask.ravel()]) / (above(below) + np.count_nonzero(mask))


def score_segmentation(
  model: Predictor, examples: Iterable[Example], prompts: PromptSet, *, batch: int = 64
) -> Scores | None:
  """Scores the images; None where no finding has a positive. What is left out is logged."""
  ids, groups, patients, values = [], [], [], []
  scale = model.global_scale() or 1.0
  for part in _batches(examples, prompts, batch):
    once = {example.image_id: example for example, _, _ in part}
    inputs = {image_id: model_input(example) for image_id, example in once.items()}
    images = [inputs[example.image_id] for example, _, _ in part]
    texts = [prompts.prompts(finding).positive[0] for _, finding, _ in part]
    grids = model.similarities(images, texts, "phrase")
    for (example, finding, mask), grid in zip(part, grids, strict=True):
      heatmap = model.to_image(grid * np.float32(scale), (example.height, example.width))
      heatmap = np.nan_to_num(1 / (1 + np.exp(-np.asarray(heatmap, np.float32))))
      line = np.full(len(METRICS), np.nan)
      if mask is None:
        line[-1] = heatmap.max()
      else:
        line[:-1] = dice_above(heatmap, mask)
      ids.append(example_id(example.image_id, finding))
      groups.append(finding)
      patients.append(example.patient_id)
      values.append(line)
  positive = {group for group, line in zip(groups, values, strict=True) if np.isnan(line[-1])}
  kept = [i for i, group in enumerate(groups) if group in positive]
  if not kept:
    return None
  columns = [[column[i] for i in kept] for column in (ids, groups, patients)]
  table = np.stack([values[i] for i in kept])
  return Scores(prompts.fingerprint, ExampleScores(*columns, METRICS, table))


def _batches(examples: Iterable[Example], prompts: PromptSet, batch: int) -> Iterator[list[_Case]]:
  """Yields cases, `batch` at a time; those of an image follow each other."""
  waiting: list[_Case] = []
  unknown = 0
  for example in examples:
    # One finding may be written in two ways, as SIIM's label and its region are.
    names_of: dict[str, list[str]] = {}
    for name in sorted({*example.labels, *(region.label for region in example.regions)}):
      if prompts.prompts(name):
        names_of.setdefault(reports.normalise(name.replace("_", " ")), []).append(name)
    for finding, names in names_of.items():
      masks = finding_masks(example, names).values()
      mask = np.logical_or.reduce(list(masks)) if masks else None
      is_outlined = mask is not None and mask.any()
      is_absent = {example.labels[name] for name in names if name in example.labels} == {0}
      if not is_outlined and not is_absent:
        unknown += 1
        continue
      waiting.append((example, finding, mask if is_outlined else None))
    while len(waiting) >= batch:
      yield waiting[:batch]
      waiting = waiting[batch:]
  if unknown:
    log.info(f"{_TASK}: {unknown} findings of images are not outlined and not denied; left out")
  if waiting:
    yield waiting


def at_best(each: ExampleScores) -> tuple[ExampleScores, dict[str, tuple[int, int]]]:
  """Takes Dice and specificity (NaN of the other kind) at the best threshold of each finding.

  Returns them, and by finding the threshold's place and the number of positives behind it.
  """
  dice, peaks, chosen = each.values[:, :-1], each.values[:, -1], {}
  values = np.full((len(each.ids), 2), np.nan)
  for name, places in example_places(each).items():
    best = int(bootstrap.nanmean(dice[places].T).argmax())
    chosen[name] = best, int(np.isfinite(dice[places, best]).sum())
    values[places, 0] = dice[places, best]
    absent = ~np.isnan(peaks[places])
    values[places[absent], 1] = peaks[places[absent]] <= _THRESHOLDS[best]
  return replace(each, metrics=("Dice", "specificity"), values=values), chosen


def segmentation_rows(scores: Scores | None, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by group ("macro" first) and metric; none of none."""
  if scores is None:
    return []
  each, chosen = at_best(scores.example_scores)
  head = (_TASK, f"{PROTOCOL}, prompts {scores.fingerprint}", data)
  rows = []
  means = bootstrap.grouped_means(each.values, each.groups, each.patients, **draws)
  for group, summaries in means.items():
    for metric, s in zip(each.metrics, summaries, strict=True):
      rows.append(Row(*head, group, metric, RUN, s.value, s.low, s.high, s.n))
    if group in chosen:
      place, n = chosen[group]
      end = (np.nan, np.nan, n)
      rows.append(Row(*head, group, "threshold", RUN, float(_THRESHOLDS[place]), *end))
  return rows


@dataclass(frozen=True, kw_only=True)
class PublishedSegmentation(Evaluator):
  """Evaluator of the emulated protocol, by the first of the sets of `prompts`."""

  needs = "regions"
  protocols: tuple[str, ...] = (PROTOCOL,)
  prompts: tuple[PromptSet, ...] = ()
  rows = staticmethod(segmentation_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> Scores | None:
    """Scores every image; None without prompts."""
    if not self.prompts:
      log.info(f"{_TASK} is left out: there are no prompts")
      return None
    return score_segmentation(model, dataset.examples(what=_TASK), self.prompts[0])

  def example_scores(self, scores: Scores | None) -> dict[str, ExampleScores]:
    """Names the scores; the task itself is that of segmentations that are learned."""
    name = f"{_TASK}@{PROTOCOL}"
    return {f"{name}-{scores.fingerprint}": scores.example_scores} if scores else {}

  def facts(self, scores: Scores | None) -> dict[str, str]:
    """Collects the fingerprint of the prompts."""
    return {"prompts": scores.fingerprint} if scores else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> Scores | None:
    """Takes scores and fingerprint back."""
    return Scores(facts["prompts"], *kept.values()) if kept else None
