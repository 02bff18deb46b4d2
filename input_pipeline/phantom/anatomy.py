"""Anatomy of the phantom: one patient's chest as attenuation, and the parts that findings use.

Chest coordinates: x is 0 at the spine, negative on the patient's right (the left of the image);
y runs from 0 at the top to 1 at the bottom. One unit is the image's side, about 40 cm.
"""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

RIGHT, LEFT = -1, 1
_FIXED_BITS = 4  # sub-pixel bits of the drawing calls
STEPS = 6  # points of a smooth curve for each point given
_T = (np.arange(STEPS) / STEPS)[:, None]
# [STEPS, 4]: the weights of a point's neighbours before, itself and the two after (Catmull-Rom).
_CURVE = 0.5 * np.concatenate(
  [
    -_T + 2 * _T**2 - _T**3,
    2 - 5 * _T**2 + 3 * _T**3,
    _T + 4 * _T**2 - 3 * _T**3,
    -(_T**2) + _T**3,
  ],
  axis=1,
)
# Points of _lung: the costophrenic angle, the top of the diaphragm's dome.
_CORNER, _DOME = 8, 10


@dataclass(frozen=True)
class Frame:
  """Position of the chest in the image, and the drawing calls in chest coordinates.

  Attributes:
    size: side of the square image in pixels.
    matrix: [2, 3], chest coordinates to pixels.
  """

  size: int
  matrix: np.ndarray

  def fill(self, polygons, value: int = 255, canvas: np.ndarray | None = None) -> np.ndarray:
    """Fills polygons ([N, 2] each, apart from each other) on a uint8 canvas, or a new one."""
    canvas, shapes = self._canvas(canvas), self._fixed(polygons)
    return cv2.fillPoly(canvas, shapes, value, cv2.LINE_AA, _FIXED_BITS)

  def stroke(self, lines, width: float, value: int = 255, canvas: np.ndarray | None = None):
    """Draws open lines (each [N, 2]), `width` in chest units but at least one pixel wide."""
    canvas, shapes = self._canvas(canvas), self._fixed(lines)
    thick = max(1, round(width * self.size))
    return cv2.polylines(canvas, shapes, False, value, thick, cv2.LINE_AA, _FIXED_BITS)

  def soften(self, layer: np.ndarray, radius: float) -> np.ndarray:
    """Blurs by `radius` chest units, but at least a little, so that no size shows bare edges."""
    return cv2.GaussianBlur(layer, (0, 0), max(0.45, radius * self.size))

  def shade(self, polygons, radius: float) -> np.ndarray:
    """Fills polygons with soft edges: float32 [S, S] in 0 to 1."""
    return share(self.soften(self.fill(polygons), radius))

  def _fixed(self, shapes) -> list[np.ndarray]:
    """Maps [N, 2] shapes in chest coordinates to the fixed-point pixels of the drawing calls."""
    # All points at once: an image has hundreds of lines.
    pixels = np.concatenate(shapes) @ self.matrix[:, :2].T + self.matrix[:, 2]
    pixels = np.rint(pixels * (1 << _FIXED_BITS)).astype(np.int32)
    ends = itertools.accumulate((len(shape) for shape in shapes), initial=0)
    return [pixels[start:end] for start, end in itertools.pairwise(ends)]

  def _canvas(self, canvas: np.ndarray | None) -> np.ndarray:
    return np.zeros((self.size, self.size), np.uint8) if canvas is None else canvas


@dataclass(frozen=True)
class Chest:
  """Anatomy that a finding is drawn into.

  Attributes:
    frame: of the image.
    lungs: side -> [S, S] float32 in 0..1, how much of the lung's air lies behind a pixel.
    outlines: side -> [N, 2] closed outline from the medial apex over the lateral wall to the base.
    wall: how many points of an outline run from the apex to the costophrenic angle.
    ribs: side -> [R, T, 2] centre lines of the back ribs, medial to lateral.
    rib_width: half height of a rib.
    markings: [S, S] float32, attenuation of vessels and texture in the lungs.
    texture: [S, S] float32 about 0, the mottling of soft shadows.
    carina: (x, y) where the trachea divides.
    heart_base: y of the heart's lower border.
  """

  frame: Frame
  lungs: dict[int, np.ndarray]
  outlines: dict[int, np.ndarray]
  wall: int
  ribs: dict[int, np.ndarray]
  rib_width: float
  markings: np.ndarray
  texture: np.ndarray
  carina: tuple[float, float]
  heart_base: float

  def inside(self, side: int, u: float, v: float) -> np.ndarray:
    """Returns the point (u, v) of a lung in chest coordinates, [2]."""
    outline = self.outlines[side]
    lateral = outline[: self.wall]
    y = lateral[:, 1].min() + v * (outline[self.wall - 1, 1] - lateral[:, 1].min())
    start = lateral[:, 1].argmin()
    x = np.interp(y, lateral[start:, 1], np.abs(lateral[start:, 0]))
    return np.array([side * (0.06 + u * (x - 0.06)), y])


def smooth(points: np.ndarray) -> np.ndarray:
  """Draws a closed curve through [N, 2] points: [N * STEPS, 2], each STEPS from a given point."""
  near = np.arange(len(points))[:, None] + [-1, 0, 1, 2]
  return (_CURVE @ points[near % len(points)]).reshape(-1, 2)


def share(layer: np.ndarray) -> np.ndarray:
  """Scales uint8 0 to 255 to float32 0 to 1."""
  return layer * np.float32(1 / 255)


def draw(
  rng: np.random.Generator, frame: Frame, breath: float, enlarged: float
) -> tuple[np.ndarray, np.ndarray, Chest]:
  """Draws one patient's chest, without findings but for the size of the heart.

  Args:
    rng: fixes the patient: body, bones, vessels.
    frame: of the image.
    breath: how much lower than usual the diaphragm stands, in chest units.
    enlarged: width of an enlarged heart as a share of the chest's; 0 for a normal heart.

  Returns:
    attenuation [S, S] float32, the heart's share of each pixel [S, S] float32, and the chest.
  """
  wide, tall, fat = rng.uniform(0.9, 1.06), rng.uniform(0.94, 1.04), rng.uniform(0, 0.05)
  bend, slope, bones = rng.uniform(-0.02, 0.02), rng.uniform(0.06, 0.13), rng.uniform(0.7, 1.3)
  bubble = rng.uniform(0, 0.14)
  breasts = rng.uniform(0.03, 0.1) if rng.random() < 0.45 else 0.0
  domes = {RIGHT: rng.uniform(-0.02, 0.01), LEFT: rng.uniform(0.005, 0.04)}
  normal = rng.uniform(0.40, 0.49)

  outlines = {side: smooth(_lung(side, wide, tall, domes[side] + breath)) for side in (RIGHT, LEFT)}
  lungs = {side: frame.shade([outline], 0.006) for side, outline in outlines.items()}
  heart_base = 0.065 + 0.5 * sum(outline[STEPS * _DOME, 1] for outline in outlines.values())
  heart = frame.shade([_heart((enlarged or normal) * 0.74 * wide, heart_base)], 0.007)
  carina = (0.01 + bend * 0.3, 0.33 * tall)
  y = np.linspace(-0.1, 1.1, 13)
  spine = np.stack([bend * np.sin(2.6 * y), y], 1)
  ribs = {side: _ribs(side, wide, tall, slope) for side in (RIGHT, LEFT)}
  rib_width = 0.0095
  both = lungs[RIGHT] + lungs[LEFT]
  texture = _texture(rng, frame.size)
  hila = {side: np.array([side * 0.085, 0.43 * tall + 0.01 * side]) for side in (RIGHT, LEFT)}
  vessels = share(_vessels(rng, frame, hila)) * both * (1 - 0.6 * heart)
  markings = vessels * 0.16 + texture * both * 0.012

  body = frame.fill([_body(wide, fat)])
  total = 0.62 * share(frame.soften(body, 0.018)) * share(frame.soften(body, 0.003))
  middle = frame.shade([_mediastinum(bend)], 0.008)
  solid = np.maximum(heart, middle)
  total -= (0.52 - fat) * both * (1 - 0.82 * solid)
  total += 0.10 * heart + 0.06 * middle
  total += 0.17 * frame.shade([_abdomen(outlines)], 0.012) * (1 - both)
  gas = np.array([0.18 * wide, outlines[LEFT][STEPS * _DOME, 1] + 0.055])
  total -= bubble * frame.shade([_stomach(gas)], 0.008)
  total += bones * 0.11 * share(_spine(frame, spine))
  total += bones * 0.10 * share(_cage(frame, ribs, rib_width, wide)) * (0.3 + 0.7 * both)
  total += bones * 0.09 * share(_shoulders(frame, wide))
  total -= 0.17 * share(_airway(frame, spine, carina))
  total += 0.05 * frame.shade([_hilum(h) for h in hila.values()], 0.012)
  total += markings
  if breasts:
    total += breasts * frame.shade(_breasts(wide), 0.02)
  total += 0.012 * texture * share(body)
  wall = STEPS * _CORNER + 1
  # A finding behind the heart or the mediastinum displaces little air there.
  lungs = {side: lung * (1 - 0.7 * solid) for side, lung in lungs.items()}
  chest = Chest(
    frame, lungs, outlines, wall, ribs, rib_width, markings, texture, carina, heart_base
  )
  return np.maximum(total, 0), heart, chest


def _lung(side: int, wide: float, tall: float, dome: float) -> np.ndarray:
  """Lists corners of a lung [N, 2]: medial apex, lateral wall, costophrenic angle, dome, middle."""
  lateral = [0.06, 0.11, 0.19, 0.265, 0.32, 0.355, 0.378, 0.39, 0.392]
  x = lateral + [0.335, 0.24, 0.15, 0.08, 0.05, 0.05]
  y = [0.17, 0.118, 0.13, 0.205, 0.32, 0.44, 0.56, 0.68, 0.79, 0.74, 0.70, 0.712, 0.738, 0.6, 0.35]
  fall = np.array([0] * 5 + [0.1, 0.3, 0.6, 0.9, 1, 1, 1, 1, 0.5, 0])
  return np.stack([side * wide * np.array(x), tall * np.array(y) + dome * fall], 1)


def _heart(width: float, base: float) -> np.ndarray:
  """Outlines the heart, its apex on the patient's left; `base` is y of its lower border."""
  x = [-0.05, -0.20, -0.33, -0.34, -0.22, 0.2, 0.55, 0.66, 0.60, 0.42, 0.22, 0.08]
  y = [-0.33, -0.25, -0.14, -0.06, 0.0, 0.015, 0.005, -0.05, -0.12, -0.22, -0.30, -0.35]
  # A wide heart is a tall one too, but less so.
  return smooth(np.stack([width * np.array(x), base + (0.75 + 0.8 * width) * np.array(y)], 1))


def _mediastinum(bend: float) -> np.ndarray:
  x = [-0.05, -0.055, -0.06, -0.075, -0.06, 0.06, 0.075, 0.07, 0.088, 0.075, 0.055, 0.05]
  y = [0.0, 0.15, 0.3, 0.42, 0.6, 0.6, 0.42, 0.36, 0.31, 0.27, 0.2, 0.0]
  return smooth(np.stack([np.array(x) + bend * 0.4, np.array(y)], 1))


def _hilum(centre: np.ndarray) -> np.ndarray:
  ring = np.array([[0, -0.06], [0.03, 0], [0.015, 0.07], [-0.015, 0.07], [-0.03, 0]])
  return smooth(centre + ring)


def _stomach(centre: np.ndarray) -> np.ndarray:
  """Outlines the gas under the left half of the diaphragm."""
  ring = np.array([[-0.07, 0.01], [-0.03, -0.03], [0.04, -0.025], [0.07, 0.02], [0, 0.03]])
  return smooth(centre + ring)


def _body(wide: float, fat: float) -> np.ndarray:
  """Outlines neck, shoulders and trunk; air is left beside the neck and below the armpits."""
  x = np.array([0.085, 0.09, 0.13, 0.27, 0.42, 0.58, 0.66, 0.60, 0.475, 0.455, 0.46, 0.47])
  y = np.array([-0.2, 0.0, 0.045, 0.085, 0.12, 0.2, 0.36, 0.47, 0.46, 0.6, 0.85, 1.3])
  x = wide * x + np.where(y > 0.04, 0.6 * fat, 0.2 * fat)
  half = np.stack([x, y], 1)
  return np.concatenate([half, half[::-1] * [-1, 1]])


def _abdomen(outlines: dict[int, np.ndarray]) -> np.ndarray:
  corner, end = STEPS * _CORNER, STEPS * (_DOME + 2)
  right, left = outlines[RIGHT][corner:end], outlines[LEFT][corner:end][::-1]
  sides = np.array([[left[-1, 0] * 1.08, 1.2], [right[0, 0] * 1.08, 1.2]])
  return np.concatenate([right, left, sides])


def _breasts(wide: float) -> list[np.ndarray]:
  ring = np.array(
    [[0, -0.18], [0.12, -0.05], [0.15, 0.08], [0, 0.15], [-0.14, 0.08], [-0.11, -0.05]]
  )
  return [smooth(np.array([side * 0.245 * wide, 0.66]) + ring) for side in (RIGHT, LEFT)]


def _ribs(side: int, wide: float, tall: float, slope: float) -> np.ndarray:
  """Returns centre lines [10, 12, 2] of the back ribs, from the spine to the chest wall."""
  number, t = np.arange(10)[:, None], np.linspace(0, 1, 12)[None]
  start = tall * (0.135 + 0.066 * number)
  reach = np.interp(start + 0.05, [0.12, 0.2, 0.32, 0.44, 0.68], [0.17, 0.27, 0.33, 0.365, 0.4])
  x = 0.04 + (wide * reach - 0.04) * np.sin(0.5 * np.pi * t) ** 0.9
  y = start - 0.022 * np.sin(np.pi * np.minimum(1.5 * t, 1)) + slope * t**2.2
  return np.stack([side * x, y], 2)


def _cage(frame: Frame, ribs: dict[int, np.ndarray], half: float, wide: float) -> np.ndarray:
  """Draws back ribs with bright rims, and fainter front ribs that slope down to the midline."""
  back = np.concatenate([ribs[RIGHT], ribs[LEFT]])
  t = np.linspace(0, 1, 8)[:, None]
  start = back[back[:, -1, 1] < 0.62][:, -1:]
  side = np.sign(start[..., 0])
  end = np.stack([side * 0.13 * wide, start[..., 1] + 0.16], 2)
  bow = np.stack([side * 0.05, np.full_like(side, 0.03)], 2) * np.sin(np.pi * t)
  front = start * (1 - t) + end * t + bow
  layer = frame.soften(frame.stroke(front, 2 * half, 90), 0.004)
  bands = frame.fill(_bands(back, half))
  bands = frame.fill(_bands(back, 0.5 * half), 165, bands)
  return cv2.add(layer, frame.soften(bands, 0.0025))


def _bands(lines: np.ndarray, half: float) -> np.ndarray:
  """Outlines level bands [N, 2 T, 2], `half` high on either side of lines [N, T, 2]."""
  return np.concatenate([lines - [0, half], lines[:, ::-1] + [0, half]], 1)


def _spine(frame: Frame, spine: np.ndarray) -> np.ndarray:
  """Draws the column of vertebrae, darker at the discs, with bright pedicles."""
  layer = frame.stroke([spine], 0.062, 190)
  y = np.arange(-0.04, 1.0, 0.047)
  centres = np.stack([np.interp(y, spine[:, 1], spine[:, 0]), y], 1)[:, None]
  layer = frame.stroke(centres + [[-0.028, 0], [0.028, 0]], 0.006, 110, layer)
  roots = centres[:, None] + [[[x, 0.014], [x, 0.026]] for x in (-0.018, 0.018)]
  return frame.soften(frame.stroke(roots.reshape(-1, 2, 2), 0.009, 255, layer), 0.004)


def _shoulders(frame: Frame, wide: float) -> np.ndarray:
  """Draws collar bones, heads of the arms, and the inner rims of the shoulder blades."""
  t = np.linspace(0, 1, 8)
  x = wide * (0.04 + 0.36 * t)
  collar = np.stack([x, 0.185 - 0.075 * t + 0.018 * np.sin(2 * np.pi * t)], 1)
  blade = np.array([[0.43, 0.15], [0.40, 0.26], [0.375, 0.36], [0.385, 0.45]]) * [wide, 1]
  arm = np.array([[0.47, 0.14], [0.52, 0.2], [0.57, 0.32]]) * [wide, 1]
  both = (np.array([-1, 1]), np.array([1, 1]))
  layer = frame.stroke([blade * side for side in both], 0.03, 90)
  layer = frame.stroke([arm * side for side in both], 0.07, 170, layer)
  layer = frame.soften(layer, 0.008)
  bones = frame.fill(_bands(np.stack([collar * side for side in both]), 0.012), 230)
  return cv2.max(layer, frame.soften(bones, 0.003))


def _airway(frame: Frame, spine: np.ndarray, carina: tuple[float, float]) -> np.ndarray:
  trachea = np.array([[spine[0, 0] * 0.3, -0.1], [carina[0], carina[1] - 0.02]])
  branches = [np.array([carina, [side * 0.085, carina[1] + 0.075]]) for side in (RIGHT, LEFT)]
  layer = frame.stroke([trachea], 0.036)
  return frame.soften(frame.stroke(branches, 0.02, 170, layer), 0.006)


def _vessels(rng: np.random.Generator, frame: Frame, hila: dict[int, np.ndarray]) -> np.ndarray:
  """Draws vessels that branch from the hila, thinner and fainter on their way outwards."""
  trunks, steps = 11, 6
  layer = np.zeros((frame.size,) * 2, np.uint8)
  thin, thick = [], []
  for side, hilum in hila.items():
    heading = np.linspace(-1.35, 1.45, trunks) + rng.normal(0, 0.12, trunks)
    length = rng.uniform(0.16, 0.3, trunks)
    start = hilum + np.stack([np.zeros(trunks), 0.025 * heading], 1)
    trunk = _walk(start, heading, length, rng.normal(0, 0.16, trunks), side, steps)
    for joint, lean in ((2, 0.5), (2, -0.5), (3, 0.45), (4, -0.45)):
      lean = lean + rng.normal(0, 0.15, trunks)
      curl = rng.normal(0, 0.2, trunks)
      thin.extend(_walk(trunk[:, joint], heading + lean, 0.5 * length, curl, side, 4))
    thin.extend(trunk[:, 3:])
    thick.extend(trunk[:, :4])
  layer = frame.stroke(thin, 0.004, 110, layer)
  layer = frame.stroke(thick, 0.009, 220, layer)
  return frame.soften(layer, 0.003)


def _walk(start, heading, length, curl, side: int, steps: int) -> np.ndarray:
  """Returns curves [N, steps, 2] from `start` [N, 2]; heading 0 points away from the midline."""
  angle = heading[:, None] + curl[:, None] * np.arange(steps - 1)
  move = np.stack([side * np.cos(angle), np.sin(angle)], 2) * (length / (steps - 1))[:, None, None]
  path = np.concatenate([np.zeros((len(heading), 1, 2)), np.cumsum(move, 1)], 1)
  return start[:, None] + path


def _texture(rng: np.random.Generator, size_px: int) -> np.ndarray:
  """Draws mottling, float32 [S, S] about 0, whose grain grows with the image."""
  coarse = rng.standard_normal((24, 24), np.float32)
  return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
