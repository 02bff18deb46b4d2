"""Phrase grounding: agreement of the map of a phrase with its true region.

Protocol "grounding-v1":

- An example is a phrase of an image. Regions of one image whose phrases agree after normalisation
  (case, punctuation, blanks) are one example, grouped by the finding of the first.
- The true mask of an example is the union of its regions, at the stored resolution of the image: a
  region's mask where it has one, else its boxes, each covering floor(x0) to ceil(x1) and floor(y0)
  to ceil(y1).
- The map is float32 [H, W] in [0, 1] at the stored resolution, scaled to maximum 1 (on the grid of
  the model, before it is brought to the image). A model brings its map to the image itself, by its
  own geometry: bilinear, from where the cells' centres lie; without smoothing, but for what belongs
  to the model's published map (see `plan_jax.baselines`).
- A pixel that the model did not see, because it crops its images, is NaN in the map and counts as
  not found: 0. How many phrases have a region outside of what was seen, wholly or partly, is
  logged.
- The map is made from the phrase's words (task "grounding"), or, in rows of their own, from the
  phrase's embedding (task "grounding-by-phrase").
- signed CNR = (mean_A - mean_rest) / sqrt(var_A + var_rest), A the pixels of the mask, population
  variances; absolute CNR is its size (contrast-to-noise ratio; Boecking et al., "Making the most of
  text semantics to improve biomedical vision-language processing", ECCV 2022). A constant map has
  CNR 0. A mask of no pixel or of every pixel has none, nor has a map that is one constant inside
  and another outside (infinite): such an example is left out of the CNR, and n falls by one.
- IoU@.1 to IoU@.5 is IoU(map >= threshold, mask), mIoU the mean of the five, and mean Dice the mean
  of the Dice coefficient over the same thresholds. An empty prediction scores 0.
- box accuracy is 1 where the predicted box has an IoU of at least .5 with a true box. The predicted
  box is the tight one round the largest connected part of map >= .5, half of the map's maximum,
  fixed beforehand; a true box is the tight one round a connected part of the mask, and any of them
  will do. Parts connect over corners too; of parts of one size the first from the top counts. An
  empty prediction, or a mask of no pixel, scores 0.
- pointing is 1 where the map's maximum lies in the mask (Zhang et al., "Top-down neural attention
  by excitation backprop", ECCV 2016); where pixels tie, the share of them that does.
- A finding scores the mean of its examples, `macro` the plain mean of the findings. Intervals are
  95 % percentile intervals of 1,000 bootstrap draws of patients.
- Chance baselines, scored alike: `random`, `centre`, `mean_box`, `mean_box_per_finding`,
  `mean_box_per_place` (see `chance`). The last three need regions in the training split and are
  missing without them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline.example import Example
from plan_jax.evaluators import chance
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import CroppedCounts, Phrase, each_phrases, phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import METRICS, Heatmap, TrueMask, localization_metrics
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row

PROTOCOL, _TASK = "grounding-v1", "grounding"
_KEPT_MAPS = 64  # of the chance baselines

Scores = dict[str, ExampleScores]  # by model: "run" first, then the chance baselines


@dataclass(frozen=True, kw_only=True)
class Grounding(Evaluator):
  """Evaluator of "grounding-v1"; `seed` is that of the random baseline."""

  needs = "regions"
  protocols: tuple[str, ...] = (PROTOCOL,)
  seed: int = 0

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> dict[str, Scores]:
    """Scores every phrase, by task; the chance baselines are those of the first."""
    prior = box_prior([])
    if dataset.has("regions", "train"):
      prior = box_prior(dataset.examples("regions", "mean box of training", split="train"))
    examples = dataset.examples("regions", "grounding")
    by_words = score_grounding(model, examples, prior, seed=self.seed)
    examples = dataset.examples("regions", "grounding by phrase")
    by_phrase = score_grounding(model, examples, None, of="phrase")
    return {_TASK: by_words, "grounding-by-phrase": by_words | by_phrase}

  def rows(self, scores: dict[str, Scores], **common) -> list[Row]:
    """Makes the rows of both tasks."""
    return [
      row
      for task, by_model in scores.items()
      for row in grounding_rows(by_model, task=task, **common)
    ]

  def example_scores(self, scores: dict[str, Scores]) -> dict[str, ExampleScores]:
    """Picks the scores of the run, and those of the chance baselines once."""
    kept = {task: by_model[RUN] for task, by_model in scores.items() if by_model}
    chance_scores = {f"{_TASK}@{name}": s for name, s in scores[_TASK].items() if name != RUN}
    return kept | chance_scores

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> dict[str, Scores]:
    """Gives each task the chance baselines."""
    baselines = {name.partition("@")[2]: s for name, s in kept.items() if "@" in name}
    return {task: {RUN: s} | baselines for task, s in kept.items() if "@" not in task}


def box_prior(examples: Iterable[Example], grid: int = 128) -> chance.BoxPrior:
  """Averages the regions of the training split; images are not decoded."""
  prior = chance.BoxPrior(grid)
  for _, kept in each_phrases(examples, "mean box of training"):
    for phrase in kept:
      prior.add(phrase.label, phrase.mask, phrase.text)
  return prior


def score_grounding(
  model: Predictor,
  examples: Iterable[Example],
  prior: chance.BoxPrior | None,
  *,
  of: str = "words",
  batch: int = 64,
  seed: int = 0,
) -> Scores:
  """Scores every phrase, by model: "run" first, then the chance baselines on the same phrases.

  Empty where no example has a region.

  Args:
    model, examples: to score.
    prior: `box_prior` of the training split; None for no chance baselines.
    of: grounds a phrase by its "words", weighted by their significance, or by its own embedding,
      "phrase".
    batch, seed: phrases grounded at a time; seed of the random baseline.

  Raises:
    ValueError: an image or map contradicts its example; the message names the image.
  """
  values: dict[str, list[np.ndarray]] = {}
  ids, labels, patients = [], [], []
  cropped, heatmaps = CroppedCounts(), _Heatmaps()
  for images, batch_phrases in phrase_batches(examples, batch):
    maps = model.maps(images, [phrase.text for phrase in batch_phrases], of)
    if len(maps) != len(batch_phrases):
      raise ValueError(f"the model gave {len(maps)} maps for {len(batch_phrases)} phrases")
    for phrase, array in zip(batch_phrases, maps, strict=True):
      ids.append(phrase.id)
      labels.append(phrase.label)
      patients.append(phrase.example.patient_id)
      truth = TrueMask(phrase.mask)
      try:
        heatmap = Heatmap(array)
        values.setdefault(RUN, []).append(localization_metrics(heatmap, truth))
      except ValueError as error:
        raise ValueError(f"{phrase.example.image_id}, {phrase.text!r}: {error}") from error
      cropped.add(heatmap.cropped, phrase.mask)
      baselines = {} if prior is None else chance_maps(phrase, prior, model, seed)
      for name, baseline in baselines.items():
        values.setdefault(name, []).append(localization_metrics(heatmaps.get(baseline), truth))
  cropped.log("grounding", "its pixels count as not found")
  return {
    name: ExampleScores(ids, labels, patients, METRICS, np.stack(arrays))
    for name, arrays in values.items()
  }


def grounding_rows(
  scores: Scores, *, data: str, task: str = "grounding", **draws: int
) -> list[Row]:
  """Makes rows by group ("macro" first), metric and model; none of no scores."""
  if not scores:
    return []
  summaries = {
    name: bootstrap.grouped_means(each.values, each.groups, each.patients, **draws)
    for name, each in scores.items()
  }
  return [
    Row(task, PROTOCOL, data, group, metric, name, s.value, s.low, s.high, s.n)
    for group in summaries[RUN]
    for m, metric in enumerate(METRICS)
    for name, by_group in summaries.items()
    for s in [by_group[group][m]]
  ]


def chance_maps(
  phrase: Phrase, prior: chance.BoxPrior, model: Predictor, seed: int = 0
) -> dict[str, np.ndarray]:
  """Makes the maps of the chance baselines, float32 [H, W]; `random` by the model's geometry."""
  height, width = phrase.mask.shape
  image_id, grid = phrase.example.image_id, tuple(model.grid)
  noise = chance.random(grid, image_id=image_id, phrase=phrase.text, seed=seed)
  maps = {
    "random": np.clip(model.to_image(noise, (height, width)), 0, 1),
    "centre": chance.centre(height, width),
  }
  if prior.counts:
    maps["mean_box"] = prior.mean_box(height, width)
    maps["mean_box_per_finding"] = prior.mean_box_per_finding(phrase.label, height, width)
    maps["mean_box_per_place"] = prior.mean_box_per_place(phrase.text, phrase.label, height, width)
  return maps


class _Heatmaps:
  """Cache of heatmaps that come again and again, as those of most chance baselines do."""

  def __init__(self):
    self._maps: dict[int, tuple[np.ndarray, Heatmap]] = {}

  def get(self, values: np.ndarray) -> Heatmap:
    """Makes the heatmap of an array; that of the very same array is made once."""
    if id(values) not in self._maps:
      if len(self._maps) >= _KEPT_MAPS:
        self._maps.clear()
      self._maps[id(values)] = values, Heatmap(values)  # the array is held: its id stays its own
    return self._maps[id(values)][1]
