"""Phrase grounding: does the map of a phrase light up the true region?

Protocol "grounding-v1":

- The unit is a phrase of an image. Regions of one image whose phrases agree after normalisation
  (case, punctuation, blanks) are one unit, grouped by the finding of the first.
- The true mask of a unit is the union of its regions, at the stored resolution of the film: a
  region's mask where it has one, else its boxes, each covering floor(x0) to ceil(x1) and floor(y0)
  to ceil(y1).
- The map is float32 [H, W] in [0, 1] at the stored resolution, scaled to maximum 1 (on the grid of
  the model, before it is brought to the film).
- The map is made from the phrase's words (task "grounding"), or, in rows of their own, from the
  phrase's vector (task "grounding-by-phrase").
- signed CNR = (mean_A - mean_rest) / sqrt(var_A + var_rest), A the pixels of the mask, population
  variances; absolute CNR is its size (contrast-to-noise ratio; Boecking et al., "Making the most of
  text semantics to improve biomedical vision-language processing", ECCV 2022). A constant map has
  CNR 0. A mask of no pixel or of every pixel has none, nor has a map that is one constant inside
  and another outside (infinite): such a unit is left out of the CNR, and n falls by one.
- mIoU is the mean over the thresholds .1, .2, .3, .4, .5 of IoU(map >= threshold, mask), and mean
  Dice the mean of the Dice coefficient over the same thresholds. An empty prediction scores 0.
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

import numpy as np

from input_pipeline import images, reports
from input_pipeline.study import Region, Study
from plan_jax.evaluators import bootstrap, floors
from plan_jax.evaluators.results import RUN, Row
from plan_jax.evaluators.units import Units, unit_id

PROTOCOL = "grounding-v1"
METRICS = ("signed CNR", "absolute CNR", "mIoU", "mean Dice", "pointing")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


class Grounder(Protocol):
  """What grounding needs of a model."""

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the model's pixel grid."""

  def ground(self, images: list[np.ndarray], phrases: list[str], of: str) -> list[np.ndarray]:
    """Maps float32 [H, W] in [0, 1] of phrase i on film i, uint8 [H, W]; maximum 1 or constant.

    `of` is "words" or "phrase", see `score_grounding`.
    """


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


def units(study: Study) -> list[Unit]:
  """The units of a study, in the order of its regions.

  Raises:
    ValueError: a mask is unreadable or not of the film's size; the message names the image.
  """
  found: dict[str, Unit] = {}
  for region in study.regions:
    mask = region_mask(region, study)
    unit = found.setdefault(
      reports.normalise(region.phrase),
      Unit(study.image_id, study.patient_id, region.phrase, region.label, mask),
    )
    if unit.mask is not mask:
      unit.mask[mask] = True
  return list(found.values())


def region_mask(region: Region, study: Study) -> np.ndarray:
  """[H, W] bool, true in the region. Raises ValueError as `units` does."""
  if region.mask:
    try:
      mask = images.decode(region.mask)
    except ValueError as error:
      raise ValueError(f"mask of {region.label!r} in {study.image_id}: {error}") from error
    if mask.shape != (study.height, study.width):
      raise ValueError(
        f"mask of {region.label!r} in {study.image_id} is {mask.shape[1]} x {mask.shape[0]},"
        f" its film {study.width} x {study.height}"
      )
    return mask > 0
  mask = np.zeros((study.height, study.width), bool)
  for x0, y0, x1, y1 in region.boxes.astype(np.float64):
    rows = slice(max(0, int(np.floor(y0))), int(np.ceil(y1)))
    mask[rows, max(0, int(np.floor(x0))) : int(np.ceil(x1))] = True
  return mask


def score(heat: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The figures of one map, in the order of `METRICS`.

  Args:
    heat: float [H, W] in [0, 1].
    mask: bool [H, W].

  Returns:
    float64 [5]; NaN for a CNR that does not exist.

  Raises:
    ValueError: the shapes differ, or a value of the map is not in [0, 1].
  """
  if heat.shape != mask.shape:
    raise ValueError(f"the map is {heat.shape}, the mask {mask.shape}")
  top = heat.max()
  if not (heat.min() >= 0 and top <= 1):
    raise ValueError(f"the map ranges from {heat.min()} to {top}; it must stay in [0, 1]")
  contrast = _cnr(heat, mask)
  area = np.count_nonzero(mask)
  iou, dice = [], []
  for threshold in THRESHOLDS:
    predicted = heat >= np.float32(threshold)
    size = np.count_nonzero(predicted)
    common = np.count_nonzero(predicted & mask)
    iou.append(common / (size + area - common) if size else 0.0)
    dice.append(2 * common / (size + area) if size else 0.0)
  pointing = mask[heat == top].mean()
  return np.array([contrast, abs(contrast), np.mean(iou), np.mean(dice), pointing])


def box_prior(studies: Iterable[Study], grid: int = 128) -> floors.BoxPrior:
  """The mean-box floors, from the units of the training split; films are not decoded."""
  prior = floors.BoxPrior(grid)
  for study in studies:
    for unit in units(study):
      prior.add(unit.label, unit.mask)
  return prior


def evaluate_grounding(
  grounder: Grounder,
  studies: Iterable[Study],
  prior: floors.BoxPrior | Iterable[Study],
  *,
  data: str,
  batch: int = 64,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model and the floors under protocol "grounding-v1" (see the top of this file).

  Args:
    grounder: the model.
    studies: the films to ground; those without a region are passed over.
    prior: `box_prior` of the training split, or the studies of that split.
    data: name of data set and split, for the rows.
    batch: how many phrases the grounder is given at a time.
    resamples: bootstrap draws.
    seed: of the random floor and the draws.

  Returns:
    As `grounding_rows`.

  Raises:
    ValueError: a film or map contradicts its study; the message names the image.
  """
  scores = score_grounding(grounder, studies, prior, batch=batch, seed=seed)
  return grounding_rows(scores, data=data, resamples=resamples, seed=seed)


def score_grounding(
  grounder: Grounder,
  studies: Iterable[Study],
  prior: floors.BoxPrior | Iterable[Study],
  *,
  of: str = "words",
  with_floors: bool = True,
  batch: int = 64,
  seed: int = 0,
) -> dict[str, Units]:
  """The figures of every unit, by model: "run" first, then the floors on the same units.

  Empty where no study has a region. `of` is what grounds a phrase: its "words", weighted by their
  significance, or the "phrase", by its own vector. Other arguments and errors are those of
  `evaluate_grounding`.
  """
  if not isinstance(prior, floors.BoxPrior):
    prior = box_prior(prior)
  scores: dict[str, list[np.ndarray]] = {}
  ids, labels, patients = [], [], []
  for films, some in batches(studies, batch):
    maps = grounder.ground(films, [unit.phrase for unit in some], of)
    if len(maps) != len(some):
      raise ValueError(f"the grounder gave {len(maps)} maps for {len(some)} phrases")
    for unit, heat in zip(some, maps, strict=True):
      ids.append(unit_id(unit.image_id, unit.phrase))
      labels.append(unit.label)
      patients.append(unit.patient_id)
      try:
        scores.setdefault(RUN, []).append(score(np.asarray(heat, np.float32), unit.mask))
      except ValueError as error:
        raise ValueError(f"{unit.image_id}, {unit.phrase!r}: {error}") from error
      floors_of = floor_maps(unit, prior, tuple(grounder.grid), seed) if with_floors else {}
      for name, floor in floors_of.items():
        scores.setdefault(name, []).append(score(floor, unit.mask))
  return {
    model: Units(ids, labels, patients, METRICS, np.stack(found)) for model, found in scores.items()
  }


def grounding_rows(
  scores: dict[str, Units],
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
  unit: Unit, prior: floors.BoxPrior, grid: tuple[int, int], seed: int = 0
) -> dict[str, np.ndarray]:
  """Floor -> its map of the unit, float32 [H, W]."""
  height, width = unit.mask.shape
  out = {
    "random": floors.random(
      grid, height, width, image_id=unit.image_id, phrase=unit.phrase, seed=seed
    ),
    "centre": floors.centre(height, width),
  }
  if prior.counts:
    out["mean_box"] = prior.mean_box(height, width)
    out["mean_box_per_finding"] = prior.mean_box_per_finding(unit.label, height, width)
  return out


def same_phrase(a: str, b: str) -> bool:
  """Whether two phrases of an image are one unit."""
  return reports.normalise(a) == reports.normalise(b)


def batches(
  studies: Iterable[Study], batch: int, of: Callable[[Study], list] = units
) -> Iterator[tuple[list[np.ndarray], list]]:
  """Lists of at most `batch` units `of` the studies, and the film of each.

  Raises ValueError, naming the image, where a film is unreadable or not as its study says.
  """
  films, found = [], []
  for study in studies:
    some = of(study)
    if not some:
      continue
    try:
      film = images.decode(study.image)
    except ValueError as error:
      raise ValueError(f"{study.image_id}: {error}") from error
    if film.shape != (study.height, study.width):
      raise ValueError(
        f"{study.image_id} is {film.shape[1]} x {film.shape[0]},"
        f" its study says {study.width} x {study.height}"
      )
    for unit in some:
      films.append(film)
      found.append(unit)
      if len(found) == batch:
        yield films, found
        films, found = [], []
  if found:
    yield films, found


def _cnr(heat: np.ndarray, mask: np.ndarray) -> float:
  inside, rest = heat[mask].astype(np.float64), heat[~mask].astype(np.float64)
  if not (inside.size and rest.size):
    return np.nan
  # Constant parts are told by their range: the variance of equal numbers may come out as 1e-33.
  if np.ptp(inside) == 0 and np.ptp(rest) == 0:
    return 0.0 if inside[0] == rest[0] else np.nan
  return (inside.mean() - rest.mean()) / np.sqrt(inside.var() + rest.var())
