"""Drawings of the report: small SVG plots, and images under maps and outlines."""

import base64
import math
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from plan_jax.results import rows
from plan_jax.results.rows import RUN, Row

STILL_PX = 260  # longest side of a still
# 256 x (blue, green, red), perceptually even from black over violet and orange to yellow.
COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0]
_TRUTH = (242, 215, 38)  # blue, green, red
_OPACITY = 0.7


def range_plot(cells: dict[str, Row], together: Sequence[Row]) -> str:
  """A small SVG plot: the run as a dot with its interval, the floors as ticks.

  The rows of `together` and zero fix the scale; "" where they leave no range.
  """
  seen = [x for row in together for x in (row.value, row.low, row.high)]
  seen = [0.0] + [x for x in seen if math.isfinite(x)]
  low, high = min(seen), max(seen)
  if high == low:
    return ""

  def x(value: float) -> float:
    return round(5 + 110 * (value - low) / (high - low), 1)

  best = rows.best_floor(cells)
  parts = [f'<line x1="{x(0)}" x2="{x(0)}" y1="1" y2="17" stroke="var(--line)"/>']
  for name, row in cells.items():
    if name != RUN and math.isfinite(row.value):
      width = 3 if best and name == best.model else 1
      label = escape(f"{name} {rows.number(row.value)}")
      parts.append(
        f'<line x1="{x(row.value)}" x2="{x(row.value)}" y1="4" y2="14" stroke="var(--floor)"'
        f' stroke-width="{width}"><title>{label}</title></line>'
      )
  run = cells.get(RUN)
  if run and math.isfinite(run.value):
    if math.isfinite(run.low) and math.isfinite(run.high):
      parts.append(
        f'<line x1="{x(run.low)}" x2="{x(run.high)}" y1="9" y2="9" stroke="var(--accent)"'
        ' stroke-width="2"/>'
      )
    parts.append(f'<circle cx="{x(run.value)}" cy="9" r="4" fill="var(--accent)"/>')
  return f'<svg class="range" width="120" height="18" aria-hidden="true">{"".join(parts)}</svg>'


def curve(name: str, points: Sequence[tuple[int, float]]) -> str:
  """An HTML figure with the raw values and, where there are many, their smoothed course."""
  known = [(float(s), float(v)) for s, v in points if math.isfinite(v)]
  dropped = len(points) - len(known)
  last = f"{known[-1][1]:.4g} at {known[-1][0]:.0f}" if known else "no finite value"
  if dropped:
    last += f", {dropped} not finite"
  caption = f"<figcaption>{escape(name)}<span>{last}</span></figcaption>"
  if not known:
    return f"<figure>{caption}</figure>"
  steps, values = np.array(known).T
  ticks_x, ticks_y = _ticks(steps.min(), steps.max(), 4), _ticks(values.min(), values.max(), 4)
  x0, x1 = min(ticks_x[0], steps.min()), max(steps.max(), ticks_x[0] + 1)
  y0, y1 = min(ticks_y[0], values.min()), max(ticks_y[-1], values.max())
  left, right, top, bottom = 46, 312, 8, 142
  x = left + (steps - x0) / (x1 - x0) * (right - left)

  def y(value):
    return bottom - (value - y0) / ((y1 - y0) or 1) * (bottom - top)

  parts = []
  for tick in ticks_y:
    parts.append(
      f'<line x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="var(--line)"/>'
      f'<text x="{left - 5}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>'
    )
  for tick in ticks_x:
    at = left + (tick - x0) / (x1 - x0) * (right - left)
    if at <= right + 1:
      place = f'x="{at:.1f}" y="{bottom + 14}" text-anchor="middle"'
      parts.append(f"<text {place}>{_short(tick)}</text>")
  # Few points, or a course that is smooth as it is (a schedule), need no smoothing.
  few = len(values) < 25
  if few or np.median(np.abs(np.diff(values, 2))) < 0.002 * np.ptp(values):
    parts.append(_line(*_thinned(x, y(values)), "var(--accent)", 1.6))
  else:
    parts.append(_line(*_thinned(x, y(values)), "var(--raw)", 1))
    parts.append(_line(*_thinned(x, y(_smooth(values))), "var(--accent)", 1.6))
  if few:
    parts += [
      f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="var(--accent)"/>'
      for a, b in zip(x, y(values), strict=True)
    ]
  return (
    f'<figure>{caption}<svg viewBox="0 0 320 160" role="img" aria-label="{escape(name)}">'
    f"{''.join(parts)}</svg></figure>"
  )


def _line(x: np.ndarray, y: np.ndarray, colour: str, width: float) -> str:
  points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
  return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _smooth(values: np.ndarray) -> np.ndarray:
  """Gaussian mean about each point, a fiftieth of the curve to either side; no lag."""
  sigma = len(values) / 50
  reach = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
  weights = np.exp(-0.5 * (reach / sigma) ** 2)

  def total(numbers):
    return np.convolve(numbers, weights)[reach[-1] : reach[-1] + len(values)]

  return total(values) / total(np.ones(len(values)))


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
  """The least and the greatest of each stretch, where there are more points than pixels."""
  if len(x) <= most:
    return x, y
  chosen = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), most // 2 - 1):
    chosen |= {part[y[part].argmin()], part[y[part].argmax()]}
  chosen = sorted(chosen)
  return x[chosen], y[chosen]


def _ticks(low: float, high: float, count: int) -> list[float]:
  """Round numbers, about `count`, that reach from at most `low` to about `high`."""
  if high <= low:
    pad = abs(low) / 2 or 0.5
    low, high = low - pad, high + pad
  rough = (high - low) / count
  unit = 10.0 ** math.floor(math.log10(rough))
  step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def _short(value: float) -> str:
  for limit, letter in ((1e6, "M"), (1e3, "k")):
    if abs(value) >= limit:
      return f"{value / limit:g}{letter}"
  return f"{value:g}"


def outline(mask: np.ndarray) -> str:
  """The borders of a mask as an SVG path in image pixels."""
  # At twice the size contours, which join pixel centres, run a quarter pixel inside the true edge.
  large = np.pad((mask != 0).astype(np.uint8), 1).repeat(2, 0).repeat(2, 1)
  contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  parts = []
  for contour in contours:
    points = (cv2.approxPolyDP(contour, 1.0, True)[:, 0] + 0.5) / 2 - 1
    parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
  return "".join(parts)


def outlined(picture: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """A copy of a BGR picture with the mask's border, at least `STILL_PX` on its longer side."""
  scale = max(1, -(-STILL_PX // max(picture.shape[:2])))
  size = (picture.shape[1] * scale, picture.shape[0] * scale)
  out = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
  if mask is not None:
    large = cv2.resize((mask != 0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, _TRUTH, max(1, max(size) // 200))
  return out


def coloured(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """BGR image (uint8 [H, W]) under a map (float [h, w] in [0, 1]), mixed as the page does."""
  height, width = image.shape
  heat = np.clip(np.nan_to_num(np.asarray(heat, np.float32)), 0, 1)
  heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
  share = (_OPACITY * np.minimum(1, 2 * heat))[..., None]
  colour = COLOURS[np.round(255 * heat).astype(np.uint8)]
  mixed = share * colour + (1 - share) * image[..., None]
  return np.round(mixed).astype(np.uint8)


def reduced(picture: np.ndarray, most: int) -> np.ndarray:
  """Shrinks a picture or map so that the longer side is at most `most` pixels."""
  scale = most / max(picture.shape[:2])
  if scale >= 1:
    return picture
  size = tuple(max(1, round(scale * side)) for side in picture.shape[1::-1])
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def boxed(picture: np.ndarray, side: int) -> np.ndarray:
  """Fits a BGR picture into a black square of `side` pixels with a white rim to its right."""
  scale = side / max(picture.shape[:2])
  size = tuple(max(1, round(scale * length)) for length in picture.shape[1::-1])
  small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
  out = np.zeros((side, side, 3), np.uint8)
  y, x = (side - size[1]) // 2, (side - size[0]) // 2
  out[y : y + size[1], x : x + size[0]] = small
  return cv2.copyMakeBorder(out, 0, 0, 0, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def caption(text: str, width: int) -> np.ndarray:
  """A white strip [30, width, 3] with dark text, shrunk to fit; only ASCII can be drawn."""
  out = np.full((30, width, 3), 255, np.uint8)
  text = text.encode("ascii", "replace").decode()
  font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
  (length, _), _ = cv2.getTextSize(text, font, size, 1)
  size *= min(1.0, (width - 8) / max(1, length))
  return cv2.putText(out, text, (4, 20), font, size, (40, 40, 40), 1, cv2.LINE_AA)


def uri(picture: np.ndarray, kind: str) -> str:
  """A picture as a data URI; kind is ".png" or ".jpg"."""
  data = base64.b64encode(cv2.imencode(kind, picture)[1].tobytes()).decode()
  return f"data:image/{'png' if kind == '.png' else 'jpeg'};base64,{data}"
