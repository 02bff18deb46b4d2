"""Chance baselines of grounding: maps that are made without looking at the image.

Every map is float32 [H, W] in [0, 1] at the image's stored resolution, scaled as a model's map is,
and is scored by the same functions.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

from input_pipeline.text import mirror, reports

Label = str | tuple[str, ...]  # a finding, or a place

# The thirds of a lung, by the words that real reports have for them.
_FIELDS = {
  "upper": re.compile(r"\b(?:upper|apex|(?:bi)?apic(?:al|es)|[rl]ul)\b", re.IGNORECASE),
  "middle": re.compile(r"\b(?:mid|middle|mid(?:lung|zone)s?|rml)\b", re.IGNORECASE),
  "lower": re.compile(r"\b(?:lower|\w*bas(?:es?|al|ilar)|[rl]ll)\b", re.IGNORECASE),
}
# Sides that `mirror` leaves untold, for it would have to write them back.
_SHORT_SIDES = {
  "left": re.compile(r"\blt?\b", re.IGNORECASE),
  "right": re.compile(r"\b(?:rt?|rml)\b", re.IGNORECASE),
}


def to_unit_maximum(values: np.ndarray) -> np.ndarray:
  """Scales a map of floats >= 0 so that its maximum is 1; a map of zeros stays as it is."""
  top = np.float32(values.max())
  return np.minimum(values / top, np.float32(1)).astype(np.float32) if top > 0 else values


def random(grid: tuple[int, int], *, image_id: str, phrase: str, seed: int = 0) -> np.ndarray:
  """Draws uniform noise on the model's grid, float32 [h, w] of maximum 1.

  It is a function of the seed, the image and the phrase alone.
  """
  rng = np.random.default_rng([seed, reports.identity(image_id), reports.key(phrase)])
  return to_unit_maximum(rng.random(grid, np.float32))


@functools.lru_cache(maxsize=16)
def centre(height: int, width: int) -> np.ndarray:
  """Makes a round Gaussian about the image's centre; its sigma is a quarter of the short side."""
  sigma = min(height, width) / 4
  y = np.arange(height) - (height - 1) / 2
  x = np.arange(width) - (width - 1) / 2
  out = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2))
  out = (out / out.max()).astype(np.float32)
  out.setflags(write=False)
  return out


def place(phrase: str) -> tuple[str, ...]:
  """Collects the sides and fields that a phrase names; () where it names neither.

  place("right basal opacity")  # ("right", "lower")
  place("RML opacity")  # ("right", "middle")
  place("bilateral opacities in the upper and mid zones")  # ("left", "right", "upper", "middle")
  """
  short = {name for name, words in _SHORT_SIDES.items() if words.search(phrase)}
  fields = [name for name, words in _FIELDS.items() if words.search(phrase)]
  return *sorted(mirror.sides(phrase) | short), *fields


@dataclass
class BoxPrior:
  """Mean of the region masks of the training split, by finding and by place.

  Each mask is shrunk to a grid x grid map of the share of each cell that it covers, so images of
  any size and shape add up. `add` the masks, then take `mean_box` (all findings in one mean, each
  region of equal weight), `mean_box_per_finding` or `mean_box_per_place` (which know the phrase, so
  a model must look at the image to beat them).
  """

  grid: int = 128
  sums: dict[Label, np.ndarray] = field(default_factory=dict)
  counts: dict[Label, int] = field(default_factory=dict)
  places: "BoxPrior | None" = None  # the same by place; None where no phrase names one
  _maps: dict[tuple, np.ndarray] = field(default_factory=dict, repr=False)

  def add(self, label: Label, mask: np.ndarray, phrase: str = "") -> None:
    """Adds one region mask [H, W] bool of a finding, and of the place that its phrase names."""
    if named := place(phrase):
      self.places = self.places or BoxPrior(self.grid)
      self.places.add(named, mask)
    size = self.grid, self.grid
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    self.sums[label] = self.sums.get(label, 0) + small.astype(np.float64)
    self.counts[label] = self.counts.get(label, 0) + 1
    self._maps.clear()

  def mean_box(self, height: int, width: int) -> np.ndarray:
    """Stretches the mean of all regions to the image. Raises ValueError where there are none."""
    return self._stretched(tuple(self.counts), height, width)

  def mean_box_per_finding(self, label: Label, height: int, width: int) -> np.ndarray:
    """Stretches the mean of the finding's regions; `mean_box` for a finding without any."""
    labels = (label,) if label in self.counts else tuple(self.counts)
    return self._stretched(labels, height, width)

  def mean_box_per_place(self, phrase: str, label: str, height: int, width: int) -> np.ndarray:
    """Stretches the mean of all regions whose phrases name the same sides and fields.

    `mean_box_per_finding` where the phrase names none, or there are no such regions.
    """
    named = place(phrase)
    if self.places and named in self.places.counts:
      return self.places.mean_box_per_finding(named, height, width)
    return self.mean_box_per_finding(label, height, width)

  def _stretched(self, labels: Iterable[Label], height: int, width: int) -> np.ndarray:
    key = (labels, height, width)
    if key not in self._maps:
      if not labels:
        raise ValueError("the training split has no regions to average")
      total = sum(self.sums[name] for name in labels) / sum(self.counts[name] for name in labels)
      if len(self._maps) >= 64:  # images of many sizes: keep few maps
        self._maps.clear()
      image = cv2.resize(total.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
      # Rounded, so that a plateau of the mean stays one: its pixels tie for the maximum.
      self._maps[key] = np.round(to_unit_maximum(image), 6)
    return self._maps[key]
