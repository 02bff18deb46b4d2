"""Phrase grounding: does the map of a phrase light up the true region?

Protocol "grounding-v1":

- The unit is a phrase of an image. Regions of one image whose phrases agree after normalisation
  (case, punctuation, blanks) are one unit, grouped by the finding of the first.
- The true mask of a unit is the union of its regions, at the stored resolution of the image: a
  region's mask where it has one, else its boxes, each covering floor(x0) to ceil(x1) and floor(y0)
  to ceil(y1).
- The map is float32 [H, W] in [0, 1] at the stored resolution, scaled to maximum 1 (on the grid of
  the model, before it is brought to the image). A model brings its map to the image itself, by its
  own geometry: bilinear, from where the cells' centres lie; without smoothing, but for what belongs
  to the model's published map (see `plan_jax.baselines`).
- A pixel that the model did not see, because it crops its images, is NaN in the map and counts as
  not found: 0. How many phrases have a region outside of what was seen, wholly or partly, is said.
- The map is made from the phrase's words (task "grounding"), or, in rows of their own, from the
  phrase's vector (task "grounding-by-phrase").
- signed CNR = (mean_A - mean_rest) / sqrt(var_A + var_rest), A the pixels of the mask, population
  variances; absolute CNR is its size (contrast-to-noise ratio; Boecking et al., "Making the most of
  text semantics to improve biomedical vision-language processing", ECCV 2022). A constant map has
  CNR 0. A mask of no pixel or of every pixel has none, nor has a map that is one constant inside
  and another outside (infinite): such a unit is left out of the CNR, and n falls by one.
- IoU@.1 to IoU@.5 is IoU(map >= threshold, mask), mIoU the mean of the five, and mean Dice the mean
  of the Dice coefficient over the same thresholds. An empty prediction scores 0.
- box accuracy is 1 where the predicted box has an IoU of at least .5 with a true box. The predicted
  box is the tight one round the largest connected part of map >= .5, half of the map's maximum,
  fixed beforehand; a true box is the tight one round a connected part of the mask, and any of them
  will do. Parts connect over corners too; of parts of one size the first from the top counts. An
  empty prediction, or a mask of no pixel, scores 0.
- pointing is 1 where the map's maximum lies in the mask (Zhang et al., "Top-down neural attention
  by excitation backprop", ECCV 2016); where pixels tie, the share of them that does.
- A finding scores the mean of its units, `macro` the plain mean of the findings. Intervals are
  95 % percentile intervals of 1,000 bootstrap draws of patients.
- Floors, scored alike: `random`, `centre`, `mean_box`, `mean_box_per_finding` (see `floors`). The
  last two need regions in the training split and are missing without them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from input_pipeline import images
from input_pipeline.example import Example, Region
from input_pipeline.text import reports
from plan_jax.evaluators import chance
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "grounding-v1"
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
METRICS = (
  "signed CNR", "absolute CNR", "mIoU", "mean Dice", "pointing",
  *(f"IoU@{threshold:.1f}".replace("0.", ".") for threshold in THRESHOLDS), "box accuracy",
)  # fmt: skip
_BOX_THRESHOLD, _BOX_IOU = 0.5, 0.5
_FLAT = 1e-9  # a variance below it is not taken from a difference of sums
_FEW = 64  # floors whose own figures are kept


class Grounder(Protocol):
  """What grounding needs of a model."""

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the model's pixel grid."""

  def ground(self, images: list[np.ndarray], phrases: list[str], of: str) -> list[np.ndarray]:
    """Maps float32 [H, W] in [0, 1] of phrase i on image i, uint8 [H, W]; maximum 1 or constant.

    NaN where the model did not look. `of` is "words" or "phrase", see `score_grounding`.
    """

  def to_image(self, grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map on the grid -> float32 [H, W] of an image, NaN where the model did not look."""


@dataclass(frozen=True)
class Unit:
  """A phrase of an image.

  Attributes:
    image_id, patient_id: whose it is.
    phrase: as the first of its regions has it.
    label: the finding of that region.
    mask: [H, W] bool, the union of its regions at the stored resolution.
  """

  image_id: str
  patient_id: str
  phrase: str
  label: str
  mask: np.ndarray


def units(example: Example) -> list[Unit]:
  """The units of a study, in the order of its regions.

  Raises:
    ValueError: a mask is unreadable or not of the image's size; the message names the image.
  """
  found: dict[str, Unit] = {}
  for region in example.regions:
    mask = region_mask(region, example)
    unit = found.setdefault(
      reports.normalise(region.phrase),
      Unit(example.image_id, example.patient_id, region.phrase, region.label, mask),
    )
    if unit.mask is not mask:
      unit.mask[mask] = True
  return list(found.values())


def region_mask(region: Region, example: Example) -> np.ndarray:
  """[H, W] bool, true in the region. Raises ValueError as `units` does."""
  if region.mask:
    try:
      mask = images.decode(region.mask)
    except ValueError as error:
      raise ValueError(f"mask of {region.label!r} in {example.image_id}: {error}") from error
    if mask.shape != (example.height, example.width):
      raise ValueError(
        f"mask of {region.label!r} in {example.image_id} is {mask.shape[1]} x {mask.shape[0]},"
        f" its image {example.width} x {example.height}"
      )
    return mask > 0
  mask = np.zeros((example.height, example.width), bool)
  for x0, y0, x1, y1 in region.boxes.astype(np.float64):
    rows = slice(max(0, int(np.floor(y0))), int(np.ceil(y1)))
    mask[rows, max(0, int(np.floor(x0))) : int(np.ceil(x1))] = True
  return mask


class Truth:
  """A true mask, and what all maps that are scored against it share.

  Attributes:
    mask: [H, W] bool.
    area: its pixels.
    frame: slices of rows and columns that hold them all.
    inside: the mask in its frame.
    boxes: int [K, 4], (x0, y0, x1, y1) round each connected part, x1 and y1 exclusive.
  """

  def __init__(self, mask: np.ndarray):
    self.mask, self.area = mask, np.count_nonzero(mask)
    parts, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    boxes = [_box(mask if parts == 2 else labels == part) for part in range(1, parts)]
    self.boxes = np.array(boxes, int).reshape(-1, 4)
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    self.frame = slice(y, y + height), slice(x, x + width)
    self.inside = mask[self.frame]


class Heat:
  """A map, and what it has of itself, whatever it is scored against.

  Attributes:
    values: float32 [H, W] in [0, 1]; what was not seen is 0.
    unseen: [H, W] bool, or None where all was seen.
    peak: flat places of its maximum.
    sizes: pixels that reach each of `THRESHOLDS`.
    mean, variance: of its values.
    box: int [4], (x0, y0, x1, y1), the predicted one; None where nothing is predicted.
  """

  def __init__(self, values: np.ndarray):
    """Of float [H, W] in [0, 1]; NaN where nothing was looked at.

    Raises ValueError where a value is not in [0, 1], or all are NaN.
    """
    values, self.unseen = np.ascontiguousarray(values, np.float32), None
    top = values.max()
    if np.isnan(top) and not (unseen := np.isnan(values)).all():
      values, self.unseen = np.where(unseen, np.float32(0), values), unseen
      top = values.max()
    if not (values.min() >= 0 and top <= 1):
      raise ValueError(f"the map ranges from {values.min()} to {top}; it must stay in [0, 1]")
    self.values, self.peak = values, np.flatnonzero(values == top)
    self.sizes = [np.count_nonzero(values >= np.float32(t)) for t in THRESHOLDS]
    mean, deviation = cv2.meanStdDev(values)
    self.mean, self.variance = float(mean[0, 0]), float(deviation[0, 0]) ** 2
    self.box = _largest_box(values >= np.float32(_BOX_THRESHOLD))


def score(heat: np.ndarray | Heat, mask: np.ndarray | Truth) -> np.ndarray:
  """The figures of one map, in the order of `METRICS`.

  Args:
    heat: float [H, W] in [0, 1], NaN where nothing was looked at, or made of it.
    mask: bool [H, W], or made of it.

  Returns:
    float64 [11]; NaN for a CNR that does not exist.

  Raises:
    ValueError: the shapes differ, or as `Heat`.
  """
  heat = heat if isinstance(heat, Heat) else Heat(heat)
  truth = mask if isinstance(mask, Truth) else Truth(mask)
  if heat.values.shape != truth.mask.shape:
    raise ValueError(f"the map is {heat.values.shape}, the mask {truth.mask.shape}")
  contrast = _cnr(heat, truth)
  framed = heat.values[truth.frame]
  iou, dice = [], []
  for threshold, size in zip(THRESHOLDS, heat.sizes, strict=True):
    common = np.count_nonzero((framed >= np.float32(threshold)) & truth.inside)
    iou.append(common / (size + truth.area - common) if size else 0.0)
    dice.append(2 * common / (size + truth.area) if size else 0.0)
  pointing = truth.mask.ravel()[heat.peak].mean()
  figures = [contrast, abs(contrast), np.mean(iou), np.mean(dice), pointing, *iou]
  return np.array([*figures, _box_accuracy(heat.box, truth.boxes)], np.float64)


def box_prior(examples: Iterable[Example], grid: int = 128) -> chance.BoxPrior:
  """The mean-box floors, from the units of the training split; images are not decoded."""
  prior = chance.BoxPrior(grid)
  for example in examples:
    for unit in units(example):
      prior.add(unit.label, unit.mask)
  return prior


def evaluate_grounding(
  grounder: Grounder,
  examples: Iterable[Example],
  prior: chance.BoxPrior | Iterable[Example],
  *,
  data: str,
  batch: int = 64,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model and the floors under protocol "grounding-v1" (see the top of this file).

  Args:
    grounder: the model.
    studies: the images to ground; those without a region are passed over.
    prior: `box_prior` of the training split, or the studies of that split.
    data: name of data set and split, for the rows.
    batch: how many phrases the grounder is given at a time.
    resamples: bootstrap draws.
    seed: of the random floor and the draws.

  Returns:
    As `grounding_rows`.

  Raises:
    ValueError: an image or map contradicts its study; the message names the image.
  """
  scores = score_grounding(grounder, examples, prior, batch=batch, seed=seed)
  return grounding_rows(scores, data=data, resamples=resamples, seed=seed)


def score_grounding(
  grounder: Grounder,
  examples: Iterable[Example],
  prior: chance.BoxPrior | Iterable[Example],
  *,
  of: str = "words",
  with_floors: bool = True,
  batch: int = 64,
  seed: int = 0,
) -> dict[str, ExampleScores]:
  """The figures of every unit, by model: "run" first, then the floors on the same units.

  Empty where no study has a region. `of` is what grounds a phrase: its "words", weighted by their
  significance, or the "phrase", by its own vector. Other arguments and errors are those of
  `evaluate_grounding`.
  """
  if not isinstance(prior, chance.BoxPrior):
    prior = box_prior(prior)
  scores: dict[str, list[np.ndarray]] = {}
  ids, labels, patients = [], [], []
  unseen, known = Unseen(), _Known()
  for decoded, some in batches(examples, batch):
    maps = grounder.ground(decoded, [unit.phrase for unit in some], of)
    if len(maps) != len(some):
      raise ValueError(f"the grounder gave {len(maps)} maps for {len(some)} phrases")
    for unit, heat in zip(some, maps, strict=True):
      ids.append(example_id(unit.image_id, unit.phrase))
      labels.append(unit.label)
      patients.append(unit.patient_id)
      truth = Truth(unit.mask)
      try:
        heat = Heat(heat)
        scores.setdefault(RUN, []).append(score(heat, truth))
      except ValueError as error:
        raise ValueError(f"{unit.image_id}, {unit.phrase!r}: {error}") from error
      unseen.add(heat.unseen, unit.mask)
      floors_of = floor_maps(unit, prior, grounder, seed) if with_floors else {}
      for name, floor in floors_of.items():
        scores.setdefault(name, []).append(score(known(floor), truth))
  unseen.tell("grounding", "its pixels count as not found")
  return {
    model: ExampleScores(ids, labels, patients, METRICS, np.stack(found))
    for model, found in scores.items()
  }


def grounding_rows(
  scores: dict[str, ExampleScores],
  *,
  data: str,
  task: str = "grounding",
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows of `score_grounding` by group ("macro" first), metric and model; none of no scores."""
  if not scores:
    return []
  summaries = {
    model: bootstrap.grouped_means(
      found.values, found.groups, found.patients, resamples=resamples, seed=seed
    )
    for model, found in scores.items()
  }
  return [
    Row(task, PROTOCOL, data, group, metric, model, s.value, s.low, s.high, s.n)
    for group in summaries[RUN]
    for m, metric in enumerate(METRICS)
    for model, by_group in summaries.items()
    for s in [by_group[group][m]]
  ]


def floor_maps(
  unit: Unit, prior: chance.BoxPrior, grounder: Grounder, seed: int = 0
) -> dict[str, np.ndarray]:
  """Floor -> its map of the unit, float32 [H, W]; `random` is brought there as the model's is."""
  height, width = unit.mask.shape
  noise = chance.random(
    tuple(grounder.grid), image_id=unit.image_id, phrase=unit.phrase, seed=seed
  )  # fmt: skip
  out = {
    "random": np.clip(grounder.to_image(noise, (height, width)), 0, 1),
    "centre": chance.centre(height, width),
  }
  if prior.counts:
    out["mean_box"] = prior.mean_box(height, width)
    out["mean_box_per_finding"] = prior.mean_box_per_finding(unit.label, height, width)
  return out


def same_phrase(a: str, b: str) -> bool:
  """Whether two phrases of an image are one unit."""
  return reports.normalise(a) == reports.normalise(b)


def batches(
  examples: Iterable[Example], batch: int, of: Callable[[Example], list] = units
) -> Iterator[tuple[list[np.ndarray], list]]:
  """Lists of at most `batch` units `of` the studies, and the image of each.

  Raises ValueError, naming the image, where an image is unreadable or not as its study says.
  """
  decoded, found = [], []
  for example in examples:
    some = of(example)
    if not some:
      continue
    try:
      image = images.decode(example.image)
    except ValueError as error:
      raise ValueError(f"{example.image_id}: {error}") from error
    if image.shape != (example.height, example.width):
      raise ValueError(
        f"{example.image_id} is {image.shape[1]} x {image.shape[0]},"
        f" its study says {example.width} x {example.height}"
      )
    for unit in some:
      decoded.append(image)
      found.append(unit)
      if len(found) == batch:
        yield decoded, found
        decoded, found = [], []
  if found:
    yield decoded, found


class _Known:
  """Maps that come again and again, as most floors do."""

  def __init__(self):
    self._maps: dict[int, tuple[np.ndarray, Heat]] = {}

  def __call__(self, values: np.ndarray) -> Heat:
    """The map of an array; that of the very same array is made once."""
    if id(values) not in self._maps:
      if len(self._maps) >= _FEW:
        self._maps.clear()
      self._maps[id(values)] = values, Heat(values)  # the array is held, so its id stays its own
    return self._maps[id(values)][1]


@dataclass
class Unseen:
  """Counts phrases whose true region lies outside of what a model saw."""

  phrases: int = 0
  partly: int = 0
  wholly: int = 0

  def add(self, unseen: np.ndarray | None, mask: np.ndarray) -> None:
    """Counts a phrase with a mask [H, W] bool; `unseen` alike, None where all was seen."""
    self.phrases += 1
    if unseen is not None and mask.any():
      outside = unseen[mask]
      self.wholly += int(outside.all())
      self.partly += int(outside.any() and not outside.all())

  def tell(self, what: str, rule: str) -> None:
    """Says how many there were, if any."""
    if self.partly or self.wholly:
      log.info(
        f"{what}: of {self.phrases} phrases, {self.partly} have a region partly and {self.wholly}"
        f" wholly outside of what the model saw; {rule}"
      )


def _cnr(heat: Heat, truth: Truth) -> float:
  n, a = heat.values.size, truth.area
  if not 0 < a < n:
    return np.nan
  inside = heat.values[truth.frame][truth.inside].astype(np.float64)
  mean, variance = inside.mean(), inside.var()
  # The rest is all less what lies inside: no copy of the image.
  rest = (n * heat.mean - a * mean) / (n - a)
  around = (n * (heat.variance + heat.mean**2) - a * (variance + mean**2)) / (n - a) - rest**2
  if min(variance, around) < _FLAT:
    outside = heat.values[~truth.mask].astype(np.float64)
    # Constant parts are told by their range: the variance of equals may come out as 1e-33.
    if np.ptp(inside) == 0 and np.ptp(outside) == 0:
      return 0.0 if inside[0] == outside[0] else np.nan
    rest, around = outside.mean(), outside.var()
  return (mean - rest) / np.sqrt(variance + around)


def _box(part: np.ndarray) -> np.ndarray:
  """Int [4], (x0, y0, x1, y1), the tight box of a bool map that is not empty."""
  x, y, width, height = cv2.boundingRect(part.view(np.uint8))
  return np.array([x, y, x + width, y + height])


def _largest_box(lit: np.ndarray) -> np.ndarray | None:
  """The box of the largest connected part of a bool map; None where it is empty."""
  parts, labels = cv2.connectedComponents(lit.view(np.uint8), connectivity=8)
  if parts == 2:
    return _box(lit)
  areas = np.bincount(labels.ravel())
  areas[0] = 0
  if not (most := areas.max()):
    return None
  largest = np.flatnonzero(areas == most)
  if len(largest) == 1:
    return _box(labels == largest[0])
  return _box(labels == labels.flat[np.isin(labels, largest).argmax()])


def _box_accuracy(box: np.ndarray | None, boxes: np.ndarray) -> float:
  if box is None or not len(boxes):
    return 0.0
  common = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
  common = np.maximum(common, 0).prod(1)
  sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
  return float((common / ((box[2:] - box[:2]).prod() + sizes - common)).max() >= _BOX_IOU)
