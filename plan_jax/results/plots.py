"""Geometry of the report's small SVG plots; `plots.html` draws it."""

import math
from collections.abc import Sequence

import numpy as np

from plan_jax.results import tables
from plan_jax.results.rows import RUN, Row

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 312, 8, 142  # of a curve, in its 320 x 160


def range_plot(cells: dict[str, Row], together: Sequence[Row]) -> dict | None:
  """Places a run and its chance baselines on the scale of the rows `together` and zero.

  Returns x of zero, of the run and of its interval in a plot of 120, and (x, label, width) of each
  baseline, the best one wide; None where the rows leave no range.
  """
  values = [x for row in together for x in (row.value, row.low, row.high)]
  values = [0.0] + [x for x in values if math.isfinite(x)]
  low, high = min(values), max(values)
  if high == low:
    return None

  def x(value: float) -> float:
    return round(5 + 110 * (value - low) / (high - low), 1)

  best = tables.best_chance(cells)
  ticks = [
    (x(row.value), f"{name} {tables.number(row.value)}", 3 if best and name == best.model else 1)
    for name, row in cells.items()
    if name != RUN and math.isfinite(row.value)
  ]
  run, interval, value = cells.get(RUN), None, None
  if run and math.isfinite(run.value):
    value = x(run.value)
    if math.isfinite(run.low) and math.isfinite(run.high):
      interval = x(run.low), x(run.high)
  return {"zero": x(0), "ticks": ticks, "interval": interval, "value": value}


def curve(name: str, points: Sequence[tuple[int, float]]) -> dict:
  """Draws the raw (step, value) points and, where there are many, their smoothed course.

  Returns, in a plot of 320 x 160, ticks (place, label), lines (points of an SVG polyline, colour,
  width) and, of few points, dots; and the last value with the number of those left out, in words.
  """
  known = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
  last = f"{known[-1][1]:.4g} at {known[-1][0]:.0f}" if known else "no finite value"
  if dropped := len(points) - len(known):
    last += f", {dropped} not finite"
  if not known:
    return {"name": name, "last": last, "lines": []}
  steps, values = np.array(known).T
  ticks_x, ticks_y = _ticks(steps.min(), steps.max(), 4), _ticks(values.min(), values.max(), 4)
  x0, x1 = min(ticks_x[0], steps.min()), max(steps.max(), ticks_x[0] + 1)
  y0, y1 = min(ticks_y[0], values.min()), max(ticks_y[-1], values.max())

  def x(step):
    return _LEFT + (step - x0) / (x1 - x0) * (_RIGHT - _LEFT)

  def y(value):
    return _BOTTOM - (value - y0) / ((y1 - y0) or 1) * (_BOTTOM - _TOP)

  # Few points, or a course that is smooth as it is (a schedule), need no smoothing.
  few = len(values) < 25
  if few or np.median(np.abs(np.diff(values, 2))) < 0.002 * np.ptp(values):
    lines = [(_points(x(steps), y(values)), "var(--accent)", 1.6)]
  else:
    smooth = _points(x(steps), y(_smooth(values)))
    lines = [(_points(x(steps), y(values)), "var(--raw)", 1), (smooth, "var(--accent)", 1.6)]
  x_ticks = [(round(x(tick), 1), _short(tick)) for tick in ticks_x if x(tick) <= _RIGHT + 1]
  y_ticks = [(round(y(tick), 1), f"{tick:g}") for tick in ticks_y]
  dots = list(zip(x(steps).round(1), y(values).round(1), strict=True)) if few else []
  axes = {"x_ticks": x_ticks, "y_ticks": y_ticks}
  return {"name": name, "last": last, "lines": lines, "dots": dots} | axes


def _points(x: np.ndarray, y: np.ndarray) -> str:
  return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*_thinned(x, y), strict=True))


def _smooth(values: np.ndarray) -> np.ndarray:
  """Gaussian mean about each point, a fiftieth of the curve to either side; no lag."""
  sigma = len(values) / 50
  reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
  weights = np.exp(-0.5 * (reach / sigma) ** 2)

  def total(numbers):
    return np.convolve(numbers, weights)[reach[-1] : reach[-1] + len(values)]

  return total(values) / total(np.ones(len(values)))


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
  """Keeps the least and the greatest of each stretch, where there are more points than pixels."""
  if len(x) <= most:
    return x, y
  chosen = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), most // 2 - 1):
    chosen |= {part[y[part].argmin()], part[y[part].argmax()]}
  chosen = sorted(chosen)
  return x[chosen], y[chosen]


def _ticks(low: float, high: float, count: int) -> list[float]:
  """Returns about `count` round numbers that reach from at most `low` to about `high`."""
  if high <= low:
    pad = abs(low) / 2 or 0.5
    low, high = low - pad, high + pad
  rough = (high - low) / count
  decade = 10.0 ** math.floor(math.log10(rough))
  step = next(m * decade for m in (1, 2, 2.5, 5, 10) if m * decade >= rough * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def _short(value: float) -> str:
  for limit, letter in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= limit:
      return f"{value / limit:g}{letter}"
  return f"{value:g}"
