"""Findings of the phantom: their choice, their place and the attenuation they add."""

from dataclasses import dataclass

import numpy as np

from input_pipeline.phantom.anatomy import LEFT, RIGHT, STEPS, Chest, share, smooth

# Those that come in a small kind; a mass or a device has none.
SMALL_FINDINGS = ("effusion", "consolidation", "nodule", "pneumothorax", "atelectasis", "fracture")
# Those that a radiologist never hedges.
DEVICES = ("tube", "pacemaker")
UPPER, MID, LOWER = 0, 1, 2

_COUNT_SHARES = (0.25, 0.30, 0.24, 0.13, 0.08)  # images with 0, 1, ... 4 findings
_HEDGED_SHARE = 0.15


@dataclass(frozen=True)
class Finding:
  """One finding of an image, free of the image's size in pixels.

  Attributes:
    name: one of FINDINGS.
    side: RIGHT or LEFT of the patient; 0 for both sides or the midline.
    zone: UPPER, MID or LOWER third of the lung, or None where the finding has no zone.
    at: (u, v) in the lung, u from 0 medial to 1 lateral, v from 0 apex to 1 base.
    size: rank from 0, the smallest of its kind, to 1.
    contrast: rank from 0, the faintest of its kind, to 1.
    hedged: whether the report is unsure of it; such a finding is drawn faintly.
    shape: [12] float in 0..1, random numbers of its outline.
  """

  name: str
  side: int
  zone: int | None
  at: tuple[float, float]
  size: float
  contrast: float
  hedged: bool
  shape: np.ndarray


def choose(rng: np.random.Generator, small_only: bool = False) -> tuple[Finding, ...]:
  """Draws 0 to 4 different findings that do not hide each other, in random order."""
  names = SMALL_FINDINGS if small_only else FINDINGS
  count = rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES)
  picked = [names[i] for i in rng.permutation(len(names))[:count]]
  taken: set[tuple[int, int]] = set()  # the thirds of the lungs that hold a finding already
  return tuple(place(name, rng, taken, small_only) for name in picked)


def place(
  name: str,
  rng: np.random.Generator,
  taken: set[tuple[int, int]] | None = None,
  small_only: bool = False,
) -> Finding:
  """Draws a finding that keeps out of the (side, zone) pairs in `taken`, and adds its own."""
  taken = set() if taken is None else taken
  zones = {"effusion": (LOWER,), "pneumothorax": (UPPER,), "pacemaker": (UPPER,)}
  spots = [(s, z) for s in (RIGHT, LEFT) for z in zones.get(name, (UPPER, MID, LOWER))]
  # A finding whose zones are all taken has to share one.
  free = [spot for spot in spots if spot not in taken] or spots
  side, zone = free[rng.integers(len(free))]
  if name in ("cardiomegaly", "edema", "tube", "hernia"):
    side, zone = 0, None
  elif name == "effusion" and rng.random() < 0.2 and not taken & {(RIGHT, LOWER), (LEFT, LOWER)}:
    side = 0
  if zone is not None:
    taken.update((s, zone) for s in ((RIGHT, LEFT) if side == 0 else (side,)))
  # Zones keep clear of each other's borders, so that the report's zone word is true.
  height = ((0.14, 0.30), (0.42, 0.58), (0.70, 0.82))[MID if zone is None else zone]
  hedged = bool(rng.random() < _HEDGED_SHARE) and name not in DEVICES
  return Finding(
    name=name,
    side=side,
    zone=zone,
    at=(rng.uniform(0.25, 0.8), rng.uniform(*height)),
    size=rng.uniform(0, 0.3 if small_only else 1),
    contrast=rng.uniform(0, 0.4 if hedged else 1),
    hedged=hedged,
    shape=rng.random(12),
  )


def draw(finding: Finding, chest: Chest) -> np.ndarray:
  """Returns the attenuation that the finding adds, float32 [S, S]."""
  return _DRAW[finding.name](finding, chest)


def enlarged_heart(findings: tuple[Finding, ...]) -> float:
  """Returns the heart's width as a share of the chest's with cardiomegaly, else 0."""
  sizes = [finding.size for finding in findings if finding.name == "cardiomegaly"]
  return _mix(0.57, 0.70, sizes[0]) if sizes else 0.0


def _mix(low: float, high: float, rank: float) -> float:
  return low + (high - low) * rank


def _blob(finding: Finding, chest: Chest, radius: float, rough: float, edge: float) -> np.ndarray:
  """Draws a rounded shadow [S, S] in 0..1 in the finding's lung, its outline rough by a share."""
  radius = max(radius, 1.6 / chest.frame.size)
  angles = np.arange(9) * (2 * np.pi / 9)
  reach = radius * (1 + rough * (2 * finding.shape[:9] - 1))
  stretch = _mix(0.8, 1.25, finding.shape[9]) ** (0.5 + rough)
  ring = np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], 1) * reach[:, None]
  centre = chest.inside(finding.side, *finding.at)
  return chest.frame.shade([smooth(centre + ring)], edge) * chest.lungs[finding.side]


def _effusion(finding: Finding, chest: Chest) -> np.ndarray:
  total = np.zeros((chest.frame.size,) * 2, np.float32)
  for side in (RIGHT, LEFT) if finding.side == 0 else (finding.side,):
    angle = chest.outlines[side][chest.wall - 1]
    uneven = finding.shape[0] if side == RIGHT else finding.shape[1]
    height = _mix(0.05, 0.27, finding.size) * _mix(0.9, 1.1, uneven)
    # The meniscus climbs towards the lateral wall.
    t = np.linspace(-0.1, 1.1, 12)
    middle = _mix(-0.4, 0.65, finding.size)
    rise = height * (middle + (1 - middle) * t**2)
    level = np.stack([angle[0] * t, angle[1] - rise], 1)
    floor = np.array([[angle[0] * 1.1, 1.1], [0, 1.1]])
    total += chest.frame.shade([np.concatenate([level, floor])], 0.008) * chest.lungs[side]
  return total * _mix(0.24, 0.4, finding.contrast)


def _consolidation(finding: Finding, chest: Chest) -> np.ndarray:
  blob = _blob(finding, chest, _mix(0.045, 0.115, finding.size), 0.35, 0.018)
  return blob * (1 + 0.25 * chest.texture) * _mix(0.12, 0.3, finding.contrast)


def _nodule(finding: Finding, chest: Chest) -> np.ndarray:
  blob = _blob(finding, chest, _mix(0.014, 0.034, finding.size), 0.06, 0.004)
  return blob * _mix(0.13, 0.28, finding.contrast)


def _mass(finding: Finding, chest: Chest) -> np.ndarray:
  blob = _blob(finding, chest, _mix(0.05, 0.085, finding.size), 0.16, 0.006)
  return blob * _mix(0.2, 0.36, finding.contrast)


def _pneumothorax(finding: Finding, chest: Chest) -> np.ndarray:
  wall = chest.outlines[finding.side][: chest.wall]
  way = np.linspace(0, 1, len(wall))
  # The lung draws back from the apex and the lateral wall, towards the hilum.
  end = _mix(0.45, 1.0, finding.size)
  gap = np.clip(1 - way / end, 0, None) ** 0.55 * np.clip(way * 12, 0, 1)
  away = np.array([finding.side * 0.09, 0.45]) - wall
  depth = _mix(0.035, 0.13, finding.size) * gap[:, None]
  edge = wall + away / np.linalg.norm(away, axis=1, keepdims=True) * depth
  frame, lung = chest.frame, chest.lungs[finding.side]
  air = frame.shade([np.concatenate([wall, edge[::-1]])], 0.003) * lung
  line = share(frame.soften(frame.stroke([edge[gap > 0.05]], 0.007), 0.002)) * lung
  dark = _mix(0.07, 0.12, finding.contrast)
  return line * _mix(0.1, 0.17, finding.contrast) - air * (dark + np.maximum(chest.markings, 0))


def _atelectasis(finding: Finding, chest: Chest) -> np.ndarray:
  centre = chest.inside(finding.side, *finding.at)
  t, tilt = np.linspace(-1, 1, 9), 0.9 * (finding.shape[0] - 0.5)
  sag = 0.03 * (finding.shape[1] - 0.5) * (1 - t**2)
  along, across = np.array([np.cos(tilt), np.sin(tilt)]), np.array([-np.sin(tilt), np.cos(tilt)])
  line = centre + t[:, None] * along * _mix(0.035, 0.1, finding.size) + sag[:, None] * across
  layer = chest.frame.stroke([line], _mix(0.009, 0.018, finding.shape[2]))
  band = share(chest.frame.soften(layer, 0.003)) * chest.lungs[finding.side]
  return band * _mix(0.15, 0.28, finding.contrast)


def _cardiomegaly(finding: Finding, chest: Chest) -> np.ndarray:
  del finding  # the anatomy itself draws the enlarged heart
  return np.zeros((chest.frame.size,) * 2, np.float32)


def _edema(finding: Finding, chest: Chest) -> np.ndarray:
  frame = chest.frame
  wings, lines = [], []
  for side in (RIGHT, LEFT):
    ring = np.array([[-0.06, -0.1], [0.05, -0.14], [0.13, -0.06], [0.15, 0.06], [0.08, 0.17]])
    ring = np.concatenate([ring, [[-0.05, 0.17]]]) * _mix(0.75, 1.15, finding.size)
    wings.append(smooth(np.array([0.12, 0.46]) + ring) * [side, 1])
    # Short septal lines reach the lateral wall near the base.
    for i in range(5):
      start = chest.inside(side, 0.96, 0.62 + 0.07 * i)
      lines.append(np.array([start, start - [side * _mix(0.03, 0.06, finding.shape[i]), 0.004]]))
  haze = frame.shade(wings, 0.035) * (1 + 0.25 * chest.texture)
  septa = share(frame.soften(frame.stroke(lines, 0.006), 0.002))
  lungs = chest.lungs[RIGHT] + chest.lungs[LEFT]
  vessels = np.maximum(chest.markings, 0)
  return lungs * (_mix(0.12, 0.24, finding.contrast) * (haze + 0.5 * septa) + 0.25 * haze * vessels)


def _tube(finding: Finding, chest: Chest) -> np.ndarray:
  x, y = chest.carina
  tip = y - _mix(0.04, 0.1, finding.shape[0])
  bend = 0.02 * (finding.shape[1] - 0.5)
  line = np.array([[bend * 2, -0.15], [bend, 0.02], [x, tip - 0.08], [x, tip]])
  layer = chest.frame.stroke([line], 0.02, 150)
  layer = chest.frame.stroke([line], 0.007, 255, layer)
  return share(chest.frame.soften(layer, 0.002)) * _mix(0.28, 0.48, finding.contrast)


def _pacemaker(finding: Finding, chest: Chest) -> np.ndarray:
  side, frame = finding.side, chest.frame
  centre = np.array([side * _mix(0.24, 0.3, finding.shape[0]), _mix(0.19, 0.26, finding.shape[1])])
  half = np.array([_mix(0.036, 0.048, finding.shape[2]), _mix(0.03, 0.038, finding.shape[3])])
  tilt = 0.7 * (finding.shape[4] - 0.5)
  turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
  corners = np.array([[-1, -0.6], [-0.6, -1], [0.6, -1], [1, -0.6], [1, 0.6], [0.6, 1], [-0.6, 1]])
  corners = np.concatenate([corners, [[-1, 0.6]]]) * half
  # The lead follows the vein to the midline, then the right heart down to its tip.
  lead = [
    centre - [side * half[0], half[1]],
    [side * 0.13, 0.17],
    [side * 0.03 - 0.02, 0.25],
    [-0.045, 0.36],
    [-0.055, 0.5],
    [-0.02, 0.6],
    [_mix(0.04, 0.09, finding.shape[5]), chest.heart_base - 0.04],
  ]
  wire = smooth(np.array(lead))[: STEPS * (len(lead) - 1) + 1]
  layer = frame.stroke([wire], 0.008, 130)
  layer = frame.fill([centre + corners @ turn], 255, layer)
  return share(frame.soften(layer, 0.002)) * _mix(0.45, 0.75, finding.contrast)


def fractured_rib(finding: Finding) -> int:
  """Returns the number of the broken rib, from 1 at the top."""
  return (2, 5, 8)[finding.zone] + int(finding.shape[0] < 0.5)


def _fracture(finding: Finding, chest: Chest) -> np.ndarray:
  rib = chest.ribs[finding.side][fractured_rib(finding) - 1]
  place, length = _mix(0.35, 0.62, finding.shape[1]), _mix(0.22, 0.34, finding.size)
  grid = np.linspace(0, 1, len(rib))

  def section(start: float, end: float) -> np.ndarray:
    t = np.linspace(start, end, 5)
    return np.stack([np.interp(t, grid, rib[:, axis]) for axis in (0, 1)], 1)

  frame = chest.frame
  gap = max(0.05, 3 / frame.size)
  lost = frame.stroke([section(place, place + length)], 2 * chest.rib_width)
  # The lateral fragment leans away from the rib: most at the break, not at all at its far end.
  fragment = section(place + gap, place + length)
  step = max(_mix(0.016, 0.03, finding.size), 2 / frame.size)
  fragment = fragment + np.linspace(step, 0, 5)[:, None] * [0, 1 if finding.shape[2] < 0.5 else -1]
  moved = frame.stroke([fragment], 1.6 * chest.rib_width)
  soft = [share(frame.soften(layer, 0.003)) for layer in (moved, lost)]
  return soft[0] * _mix(0.16, 0.26, finding.contrast) - soft[1] * 0.08


def _hernia(finding: Finding, chest: Chest) -> np.ndarray:
  radius = _mix(0.045, 0.085, finding.size)
  centre = [_mix(-0.03, 0.06, finding.shape[0]), chest.heart_base - 0.7 * radius]
  angles = np.arange(16) * (np.pi / 8)
  ring = np.stack([np.cos(angles) * 1.15, np.sin(angles)], 1) * radius
  # Angles run downwards from the image's right: the lower half holds fluid, the upper air.
  frame, wall = chest.frame, [np.concatenate([centre + ring, centre + ring[:1]])]
  fluid = frame.stroke(wall, 0.008)
  fluid = frame.fill([centre + ring[:9]], 255, fluid)
  air = frame.fill([centre + 0.93 * np.concatenate([ring[8:], ring[:1]])])
  soft = [share(frame.soften(layer, 0.004)) for layer in (fluid, air)]
  return soft[0] * 0.1 - soft[1] * _mix(0.14, 0.24, finding.contrast)


_DRAW = {
  "effusion": _effusion,
  "consolidation": _consolidation,
  "nodule": _nodule,
  "mass": _mass,
  "pneumothorax": _pneumothorax,
  "atelectasis": _atelectasis,
  "cardiomegaly": _cardiomegaly,
  "edema": _edema,
  "tube": _tube,
  "pacemaker": _pacemaker,
  "fracture": _fracture,
  "hernia": _hernia,
}
FINDINGS = tuple(_DRAW)
