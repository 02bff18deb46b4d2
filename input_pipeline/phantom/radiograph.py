"""Synthetic frontal chest radiographs with their reports and exact regions.

Every image follows from (seed, index) alone. Image `index` is of patient
`index // IMAGES_PER_PATIENT`, so a range of indices that starts and ends at multiples of
IMAGES_PER_PATIENT holds whole patients, and disjoint ranges of this kind make splits with disjoint
patients.

The image is composed as a radiograph is: attenuation adds up along the ray, then a sigmoid tone
curve turns the sum into grey. The patient's right is on the left of the image.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from input_pipeline.example import Example, Region
from input_pipeline.phantom import anatomy
from input_pipeline.phantom import findings as phantom_findings
from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.phantom.anatomy import Frame
from input_pipeline.phantom.findings import Finding
from input_pipeline.text import reports

FINDINGS = phantom_findings.FINDINGS
IMAGES_PER_PATIENT = 2
SIZES_PX = (64, 512)  # smallest and largest image

# A region holds the pixels that its finding changes by this much: grey levels of 255, and a share
# of the finding's strongest change. A finding that changes less than _VISIBLE anywhere is stressed.
_LEVELS, _SHARE, _VISIBLE = 3.0, 0.2, 16.0

# Noise and masks have no other redundancy than runs of equal bytes.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]

# Streams of random numbers. Reports and their corruptions own one each, so that no text option
# can touch the image.
_PATIENT, _IMAGE, _NOISE, _REPORT, _CORRUPTION = range(5)


@dataclass(frozen=True)
class Plan:
  """Description of an image that fixes all but its size in pixels.

  Attributes:
    seed, index: the image.
    findings: what is drawn into the anatomy.
    view: "PA" or "AP".
    matrix: [2, 3], chest coordinates to an image of side 1: rotation, zoom and shift.
    breath: how much lower than usual the diaphragm stands, in chest units.
    exposure: (centre, width) of the tone curve, in units of attenuation.
    noise: its standard deviation in grey levels.
  """

  seed: int
  index: int
  findings: tuple[Finding, ...]
  view: str
  matrix: np.ndarray
  breath: float
  exposure: tuple[float, float]
  noise: float


@dataclass(frozen=True)
class Image:
  """A rendered plan.

  Attributes:
    grey: [S, S] float32, noise-free grey levels, 0 to 255.
    pixels: [S, S] uint8, the image with noise.
    masks: [S, S] bool each, one a finding of the plan, in its order.
    right: [S, S] bool, the patient's right half of the image.
  """

  grey: np.ndarray
  pixels: np.ndarray
  masks: tuple[np.ndarray, ...]
  right: np.ndarray


def patient(index: int) -> str:
  """Returns the patient id of image `index`, which IMAGES_PER_PATIENT images in a row share."""
  return f"phantom-patient-{index // IMAGES_PER_PATIENT:06d}"


def example(
  seed: int,
  index: int,
  size_px: int = 128,
  *,
  small_only: bool = False,
  wrong_sentence_fraction: float = 0.0,
  swapped_side_fraction: float = 0.0,
) -> Example:
  """Draws image `index` of the phantom with `seed`; it depends on no other image.

    radiograph.example(seed=0, index=3, size_px=128)

  Args:
    seed, index: of the whole data set and of the image, 0 or more.
    size_px: side of the square image, 64 to 512.
    small_only: draws only findings that come in a small kind, and those small.
    wrong_sentence_fraction: share of reports in which one sentence is dropped or names an absent
      finding. Labels and regions stay true.
    swapped_side_fraction: share of reports in which one sentence that names sides has left and
      right swapped (a report that names none stays). Labels and regions stay true.

  Raises ValueError where the size is out of range.
  """
  if not SIZES_PX[0] <= size_px <= SIZES_PX[1]:
    raise ValueError(f"size_px is {size_px}; it must be {SIZES_PX[0]} to {SIZES_PX[1]}")
  drawn = plan(seed, index, small_only=small_only)
  image = render(drawn, size_px)
  report = phantom_reports.write(_stream(seed, index, _REPORT), drawn.findings, drawn.view)
  sections = phantom_reports.corrupt(
    _stream(seed, index, _CORRUPTION),
    report.sections,
    drawn.findings,
    wrong_sentence_fraction,
    swapped_side_fraction,
  )
  texts = {name: " ".join(sentences) for name, sentences in sections.items()}
  regions = tuple(
    Region(phrase, finding.name, _boxes(finding, mask, image.right), _png(np.uint8(mask) * 255))
    for finding, phrase, mask in zip(drawn.findings, report.phrases, image.masks, strict=True)
  )
  return Example(
    image=_png(image.pixels),
    width=size_px,
    height=size_px,
    image_id=f"phantom-{index:06d}",
    study_id=f"phantom-study-{index:06d}",
    patient_id=patient(index),
    view=drawn.view,
    sections=texts,
    sentences=tuple(reports.report_sentences(texts)),
    labels=report.labels,
    regions=regions,
  )


def plan(seed: int, index: int, *, small_only: bool = False) -> Plan:
  """Draws the findings, the pose and the exposure of image `index`."""
  rng = _stream(seed, index, _IMAGE)
  turn = np.deg2rad(rng.normal(0, 2))
  zoom = rng.uniform(0.93, 1.06)
  scale = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  centre = np.array([0.5, 0.5]) + rng.uniform(-0.03, 0.03, 2)
  matrix = np.concatenate([scale, (centre - scale @ [0, 0.48])[:, None]], 1)
  breath, exposure = rng.uniform(-0.03, 0.03), (rng.uniform(0.38, 0.50), rng.uniform(0.14, 0.20))
  noise = rng.uniform(1.5, 4.5)
  findings = phantom_findings.choose(rng, small_only)
  # A patient on a ventilator is imaged lying down.
  lying = any(finding.name == "tube" for finding in findings) or rng.random() < 0.3
  view = "AP" if lying else "PA"
  return Plan(seed, index, findings, view, matrix, breath, exposure, noise)


def render(drawn: Plan, size_px: int) -> Image:
  """Draws the image, and each finding's mask: the pixels that change when it is taken away.

  Cardiomegaly is the exception: its mask is the whole heart, as a radiologist would box it.
  """
  frame = Frame(size_px, drawn.matrix * size_px - np.array([[0, 0, 0.5], [0, 0, 0.5]]))
  rng = _stream(drawn.seed, drawn.index // IMAGES_PER_PATIENT, _PATIENT)
  enlarged = phantom_findings.enlarged_heart(drawn.findings)
  base, heart, chest = anatomy.draw(rng, frame, drawn.breath, enlarged)
  light = _light(size_px)
  bare = _grey(base, light, drawn.exposure)
  changes = []
  for finding in drawn.findings:
    change = phantom_findings.draw(finding, chest)
    if finding.name != "cardiomegaly":
      change = _stress(base, bare, change, light, drawn.exposure)
    changes.append(change)
  grey = _grey(_total(base, changes), light, drawn.exposure)
  masks = []
  for i, finding in enumerate(drawn.findings):
    if finding.name == "cardiomegaly":
      masks.append(heart > 0.5)
    else:
      without = _total(base, changes[:i] + changes[i + 1 :])
      masks.append(changed(grey, _grey(without, light, drawn.exposure)))
  rng = _stream(drawn.seed, drawn.index, _NOISE)
  noise = rng.standard_normal((size_px, size_px), np.float32) * np.float32(drawn.noise)
  pixels = np.clip(np.rint(grey + noise), 0, 255).astype(np.uint8)
  inverse = cv2.invertAffineTransform(frame.matrix)[0]
  where = np.arange(size_px)
  right = inverse[0] * where[None] + inverse[1] * where[:, None] + inverse[2] < 0
  return Image(grey, pixels, tuple(masks), right)


def changed(grey: np.ndarray, without: np.ndarray) -> np.ndarray:
  """Returns bool [S, S]: two noise-free images differ by enough to belong to a finding."""
  difference = cv2.absdiff(grey, without)
  return difference >= max(_LEVELS, _SHARE * float(difference.max()))


def _stream(seed: int, number: int, stream: int) -> np.random.Generator:
  return np.random.default_rng([seed, number, stream])


def _png(pixels: np.ndarray) -> bytes:
  return cv2.imencode(".png", pixels, _PNG)[1].tobytes()


def _boxes(finding: Finding, mask: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Returns tight boxes [N, 4]: one a lung for a finding of both lungs, else one."""
  both = finding.side == 0 and finding.name in ("effusion", "edema")
  boxes = []
  for part in (mask & right, mask & ~right) if both else (mask,):
    columns, rows = np.flatnonzero(part.any(0)), np.flatnonzero(part.any(1))
    if len(columns):
      boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
  return np.array(boxes, np.float32).reshape(-1, 4)


def _total(base: np.ndarray, changes: list[np.ndarray]) -> np.ndarray:
  total = base.copy()
  for change in changes:
    total += change
  return total


def _light(size_px: int) -> np.ndarray:
  """Returns the share of the light that is left towards the corners, [S, S]."""
  way = np.linspace(-1, 1, size_px, dtype=np.float32) ** 2
  return 1 - 0.06 * (way[None] + way[:, None])


def _grey(attenuation: np.ndarray, light: np.ndarray, exposure: tuple[float, float]) -> np.ndarray:
  """Applies the tone curve: attenuation [S, S] to grey levels; air alone is black."""
  centre, width = exposure
  curve = 1 / (1 + cv2.exp((centre - attenuation) * np.float32(1 / width)))
  black = 1 / (1 + np.exp(centre / width))
  return np.maximum((curve - np.float32(black)) * np.float32(250 / (1 - black)), 0) * light


def _stress(base, bare, change, light, exposure) -> np.ndarray:
  """Strengthens a change that nobody could see in this place and exposure."""
  for _ in range(4):
    peak = float(cv2.absdiff(_grey(base + change, light, exposure), bare).max())
    if peak >= _VISIBLE:
      break
    change = change * np.float32(min(3.0, 1.15 * _VISIBLE / max(peak, 0.1)))
  return change
