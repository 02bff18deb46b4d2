"""Images with their boxes, to learn detection from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline import boxes, images, loader
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.regions import example_boxes, region_boxes
from plan_jax.evaluators.detection import typical_box
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import Subset, training_share
from plan_jax.transfer.settings import DetectionSettings


def _boxes(example: Example) -> tuple[int, int, dict[str, np.ndarray]]:
  """Returns height, width, and finding -> boxes [N, 4] float32 in image pixels, N above 0."""
  parts: dict[str, list[np.ndarray]] = {}
  for region in example.regions:
    parts.setdefault(region.label, []).append(region_boxes(region))
  joined = {label: np.concatenate(corners) for label, corners in parts.items()}
  kept = {label: corners for label, corners in joined.items() if len(corners)}
  return example.height, example.width, kept


@dataclass(frozen=True)
class TrainingBoxes:
  """The images that a detector learns from.

  Attributes:
    examples: of the share of patients; those without boxes are kept, for they hold nothing.
    findings: to detect, by name.
    sizes: [N, 2] float32, widths and heights of all true boxes in the model's square.
    most: of the boxes of an image, at least 1.
    typical: of each finding, the box of the chance baseline, see `evaluators.detection`.
    frequencies: of each finding, the share of images that have it.
  """

  examples: Subset
  findings: tuple[str, ...]
  sizes: np.ndarray
  most: int
  typical: list
  frequencies: list[float]


def training_boxes(settings: DetectionSettings) -> TrainingBoxes:
  """Reads the training split, or a share of its patients.

  Raises UserError where a finding, or the share, has no box.
  """
  share = training_share(
    settings,
    _boxes,
    lambda facts: {label for *_, by_label in facts for label in by_label},
    "box",
  )
  sizes, relative, counts = [], {name: [] for name in share.findings}, []
  for height, width, by_label in (share.facts[i] for i in share.places):
    chosen = {name: by_label[name] for name in share.findings if name in by_label}
    counts.append(sum(map(len, chosen.values())))
    for name, corners in chosen.items():
      square = boxes.to_square(corners, height, width, settings.image_px)
      sizes.append(square[:, 2:] - square[:, :2])
      relative[name].append(corners / [width, height, width, height])
  count = len(share.places)
  if not sizes:
    raise UserError(
      f"{settings.records}: none of the {count} training images of --fraction="
      f"{settings.fraction:g} has a box of {', '.join(share.findings) or 'anything'}: raise"
      " --fraction"
    )
  log.info(
    f"training on {count} images of {share.patients} patients: {sum(counts)} boxes,"
    f" {counts.count(0)} images without; {len(share.findings)} findings"
  )
  return TrainingBoxes(
    examples=Subset(share.source, share.places),
    findings=share.findings,
    sizes=np.concatenate(sizes),
    most=max(counts),
    typical=[typical_box(np.concatenate(b)) if b else None for b in relative.values()],
    frequencies=[len(b) / count for b in relative.values()],
  )


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Encoder of an example: image [S, S, 1], boxes [M, 4], labels [M], mask [M].

  Attributes:
    findings: names; labels are places among them.
    image_px: S.
    most: M.
  """

  findings: Sequence[str]
  image_px: int
  most: int

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a row of a batch; nothing is random: the field's protocol does not augment."""
    pixels = images.decode_example(example)
    truth, places = example_boxes(example, self.findings)
    corners, labels = np.zeros((self.most, 4), np.float32), np.zeros(self.most, np.int32)
    corners[: len(truth)] = boxes.to_square(truth, *pixels.shape, self.image_px)
    labels[: len(truth)] = places
    return {
      "image": images.fit(pixels, self.image_px)[..., None],
      "boxes": corners,
      "labels": labels,
      "mask": np.arange(self.most) < len(truth),
    }
