"""Localization metrics: how well a heatmap agrees with a true mask, both [H, W].

CNR is the contrast-to-noise ratio (mean_A - mean_rest) / sqrt(var_A + var_rest) of the pixels A of
the mask (Boecking et al., "Making the most of text semantics to improve biomedical vision-language
processing", ECCV 2022). Pointing is the share of a map's maxima that lie in the mask (Zhang et al.,
"Top-down neural attention by excitation backprop", ECCV 2016).
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from input_pipeline.boxes import iou

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
METRICS = (
  "signed CNR",
  "absolute CNR",
  "mIoU",
  "mean Dice",
  "pointing",
  *(f"IoU@{threshold:.1f}".replace("0.", ".") for threshold in THRESHOLDS),
  "box accuracy",
)
_BOX_THRESHOLD, _BOX_IOU = 0.5, 0.5
_FLAT = 1e-9  # a variance below it is not taken from a difference of sums
_LEVEL = 1e-6  # difference of two halves, as a share, below which they tie
_TOLERANCE = 1e-3  # gain in the mean log likelihood below which a mixture is fitted


class TrueMask:
  """True mask, with what all maps that are scored against it share.

  Attributes:
    mask: bool [H, W].
    area: its pixels.
    frame: slices of rows and columns that hold them all.
    inside: the mask in its frame.
    boxes: int [K, 4], (x0, y0, x1, y1) round each connected part, x1 and y1 exclusive.
  """

  def __init__(self, mask: Bool[np.ndarray, "H W"]):
    self.mask, self.area = mask, np.count_nonzero(mask)
    parts, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    boxes = [_box(mask if parts == 2 else labels == part) for part in range(1, parts)]
    self.boxes = np.array(boxes, int).reshape(-1, 4)
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    self.frame = slice(y, y + height), slice(x, x + width)
    self.inside = mask[self.frame]


class Heatmap:
  """Map of a phrase, with its properties that no mask changes.

  Attributes:
    values: float32 [H, W] in [0, 1]; cropped pixels are 0.
    cropped: bool [H, W], pixels that the model did not see; None where it saw all.
    peak: flat places of its maximum.
    sizes: pixels that reach each of `THRESHOLDS`.
    mean, variance: of its values.
    box: int [4], (x0, y0, x1, y1), the predicted box; None where nothing is predicted.
  """

  def __init__(self, values: Float[np.ndarray, "H W"]):
    """Takes values in [0, 1], NaN in cropped pixels.

    Raises ValueError where a value is not in [0, 1], or all are NaN.
    """
    values, self.cropped = np.ascontiguousarray(values, np.float32), None
    top = values.max()
    if np.isnan(top) and not (cropped := np.isnan(values)).all():
      values, self.cropped = np.where(cropped, np.float32(0), values), cropped
      top = values.max()
    if not (values.min() >= 0 and top <= 1):
      raise ValueError(f"the map ranges from {values.min()} to {top}; it must stay in [0, 1]")
    self.values, self.peak = values, np.flatnonzero(values == top)
    self.sizes = [np.count_nonzero(values >= np.float32(t)) for t in THRESHOLDS]
    mean, deviation = cv2.meanStdDev(values)
    self.mean, self.variance = float(mean[0, 0]), float(deviation[0, 0]) ** 2
    self.box = _largest_box(values >= np.float32(_BOX_THRESHOLD))


def localization_metrics(heatmap: Heatmap, truth: TrueMask) -> Float64[np.ndarray, " M"]:
  """Computes `METRICS` of one map; NaN for a CNR that does not exist.

  Raises ValueError where the shapes differ.
  """
  if heatmap.values.shape != truth.mask.shape:
    raise ValueError(f"the map is {heatmap.values.shape}, the mask {truth.mask.shape}")
  contrast = _heatmap_cnr(heatmap, truth)
  framed = heatmap.values[truth.frame]
  ious, dices = [], []
  for threshold, size in zip(THRESHOLDS, heatmap.sizes, strict=True):
    common = np.count_nonzero((framed >= np.float32(threshold)) & truth.inside)
    ious.append(common / (size + truth.area - common) if size else 0.0)
    dices.append(2 * common / (size + truth.area) if size else 0.0)
  pointing = truth.mask.ravel()[heatmap.peak].mean()
  values = [contrast, abs(contrast), np.mean(ious), np.mean(dices), pointing, *ious]
  hit = heatmap.box is not None and len(truth.boxes) > 0
  hit = hit and iou(heatmap.box[None], truth.boxes).max() >= _BOX_IOU
  return np.array([*values, hit], np.float64)


def cnr(
  values: Float[np.ndarray, "*S"],
  inside: Bool[np.ndarray, "*S"],
  outside: Bool[np.ndarray, "*S"],
  ddof: int = 0,
) -> float:
  """Contrast-to-noise ratio of two masks; NaN where it does not exist. `ddof` 1: unbiased."""
  a, b = values[inside].astype(np.float64), values[outside].astype(np.float64)
  if min(a.size, b.size) <= ddof:
    return np.nan
  spread = np.sqrt(a.var(ddof=ddof) + b.var(ddof=ddof))
  return float((a.mean() - b.mean()) / spread) if spread > 1e-12 else np.nan


def mask_iou(a: Bool[np.ndarray, "*S"], b: Bool[np.ndarray, "*S"]) -> float:
  """Intersection over union of two masks; 0 where both are empty."""
  either = np.count_nonzero(a | b)
  return np.count_nonzero(a & b) / either if either else 0.0


def mass_inside(values: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> float:
  """Sum over the mask as a share of the sum over all; NaN is no mass, and without any it is 0."""
  total = np.nansum(values, dtype=np.float64)
  return float(np.nansum(values[mask], dtype=np.float64) / total) if total > 0 else 0.0


def side_balance(values: Shaped[np.ndarray, "H W"]) -> float:
  """Mass on the right half of the image less that on its left half, as a share of all mass.

  Values are >= 0, or bool; NaN is no mass, and the middle column of an odd width is on neither
  half. Halves that differ by less than 1e-6 are level: 0, as of a flat map or one of zeros.
  """
  columns = np.nansum(values, axis=0, dtype=np.float64)
  half = len(columns) // 2
  change = float(columns[len(columns) - half :].sum() - columns[:half].sum())
  total = float(columns.sum())
  return change / total if abs(change) > _LEVEL * total else 0.0


def overlaps(
  values: Float[np.ndarray, "H W"],
  mask: Bool[np.ndarray, "..."] | None,
  thresholds: Sequence[float],
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"], int]:
  """Counts pixels shared with the mask, and predicted, at each of T thresholds; the mask's area.

  A mask of None is empty; thresholds ascend. Raises ValueError where the shapes differ, or a value
  of the map is not in [0, 1].
  """
  if mask is not None and values.shape != mask.shape:
    raise ValueError(f"the map is {values.shape}, the mask {mask.shape}")
  if not (values.min() >= 0 and values.max() <= 1):
    raise ValueError(
      f"the map ranges from {values.min()} to {values.max()}; it must stay in [0, 1]"
    )
  reached = np.searchsorted(np.array(thresholds, np.float32), values.ravel(), side="right")

  def counts(places: np.ndarray) -> np.ndarray:
    return np.bincount(places, minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]

  sizes = counts(reached)
  if mask is None:
    return np.zeros_like(sizes), sizes, 0
  return counts(reached[mask.ravel()]), sizes, int(np.count_nonzero(mask))


def mixture_threshold(values: Float[np.ndarray, "*S"]) -> float:
  """Computes the mean of the means of two Gaussians that are fitted to the values.

  EM from the best two clusters of the values until the mean log likelihood gains less than .001, at
  most 100 times, with 1e-6 added to variances: scikit-learn's `GaussianMixture(2)`, but that its
  clusters are those of one run of k-means (a threshold on [0, 1] differs by at most .005).
  """
  x = np.sort(values.ravel()).astype(np.float64)
  left, below = np.arange(1, x.size), x.cumsum()[:-1]
  apart = (x.sum() - below) / (x.size - left) - below / left
  upper = np.arange(x.size) > np.argmax(left * (x.size - left) * apart**2)
  share, gain, likelihood = np.stack([~upper, upper]).astype(np.float64), np.inf, -np.inf
  for _ in range(101):
    weight = share.sum(1) + 1e-12
    mean = share @ x / weight
    squares = (x - mean[:, None]) ** 2
    if abs(gain) < _TOLERANCE:
      break
    variance = (share * squares).sum(1) / weight + 1e-6
    log_density = np.log(weight / x.size / np.sqrt(2 * np.pi * variance))[:, None]
    log_density = log_density - squares / (2 * variance[:, None])
    total = np.logaddexp(*log_density)
    gain, likelihood = total.mean() - likelihood, total.mean()
    share = np.exp(log_density - total)
  return float(mean.mean())


def _heatmap_cnr(heatmap: Heatmap, truth: TrueMask) -> float:
  n, a = heatmap.values.size, truth.area
  if not 0 < a < n:
    return np.nan
  inside = heatmap.values[truth.frame][truth.inside].astype(np.float64)
  mean, variance = inside.mean(), inside.var()
  # The rest is all less what lies inside: no copy of the image.
  rest = (n * heatmap.mean - a * mean) / (n - a)
  around = (n * (heatmap.variance + heatmap.mean**2) - a * (variance + mean**2)) / (n - a) - rest**2
  if min(variance, around) < _FLAT:
    outside = heatmap.values[~truth.mask].astype(np.float64)
    # Constant parts are told by their range: the variance of equals may come out as 1e-33.
    if np.ptp(inside) == 0 and np.ptp(outside) == 0:
      return 0.0 if inside[0] == outside[0] else np.nan
    rest, around = outside.mean(), outside.var()
  return (mean - rest) / np.sqrt(variance + around)


def _box(part: np.ndarray) -> np.ndarray:
  """Tight box (x0, y0, x1, y1), int [4], of a bool map that is not empty."""
  x, y, width, height = cv2.boundingRect(part.view(np.uint8))
  return np.array([x, y, x + width, y + height])


def _largest_box(foreground: np.ndarray) -> np.ndarray | None:
  """Box of the largest connected part of a bool map; None where it is empty."""
  parts, labels = cv2.connectedComponents(foreground.view(np.uint8), connectivity=8)
  if parts == 2:
    return _box(foreground)
  areas = np.bincount(labels.ravel())
  areas[0] = 0
  if not (most := areas.max()):
    return None
  largest = np.flatnonzero(areas == most)
  if len(largest) == 1:
    return _box(labels == largest[0])
  return _box(labels == labels.flat[np.isin(labels, largest).argmax()])
