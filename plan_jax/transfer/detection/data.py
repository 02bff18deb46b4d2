"""Images with their boxes: what a detector learns from, and is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from input_pipeline import boxes, images, loader, records
from input_pipeline.conversion.selection_builders import subset
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.regions import example_boxes, region_boxes
from plan_jax.evaluators.detection import typical_box
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import iter_of


@dataclass(frozen=True)
class Marked:
  """What is known of a training image before its pixels are looked at.

  Attributes:
    patient_id: of the image.
    height, width: of the image.
    boxes: finding -> [N, 4] float32 in image pixels.
  """

  patient_id: str
  height: int
  width: int
  boxes: dict[str, np.ndarray]


def marks(source: Sequence[Example]) -> list[Marked]:
  """The boxes of every image, in the order of the source; shows a bar."""
  found = []
  for example in tqdm(
    iter_of(source), total=len(source), desc="boxes", unit="image", mininterval=1
  ):
    of: dict[str, list[np.ndarray]] = {}
    for region in example.regions:
      of.setdefault(region.label, []).append(region_boxes(region))
    joined = {label: np.concatenate(some) for label, some in of.items()}
    found.append(Marked(example.patient_id, example.height, example.width, joined))
  return found


@dataclass(frozen=True)
class Training:
  """The images that a detector learns from.

  Attributes:
    source: of the records.
    chosen: places in the source, in order.
    findings: what is detected, by name.
    sizes: [N, 2] float32, widths and heights of all true boxes in the model's square.
    most: of the boxes of an image, at least 1.
    typical: of each finding, the box for the floor, see evaluators.detection.
    shares: of each finding, the share of images that have it.
  """

  source: Sequence[Example]
  chosen: tuple[int, ...]
  findings: tuple[str, ...]
  sizes: np.ndarray
  most: int
  typical: list
  shares: list[float]

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, i: int) -> Example:
    return self.source[self.chosen[i]]


def training(
  folder, *, findings: Sequence[str], fraction: float, seed: int, image_px: int
) -> Training:
  """The training split, or a share of its patients.

  Images without boxes are kept: they hold nothing. A smaller share lies within a larger one.

  Args:
    folder: of the records.
    findings: to detect; none: all that have a box in the whole split.
    fraction: of the patients.
    seed: of their draw.
    image_px: side of the model's square.

  Raises UserError where a finding, or the share, has no box.
  """
  source = records.RecordSource(folder, "train")
  marked = marks(source)
  there = {label for one in marked for label, some in one.boxes.items() if len(some)}
  if missing := sorted(set(findings) - there):
    raise UserError(
      f"--findings: no box of {', '.join(missing)} in the training split of {folder} (there:"
      f" {', '.join(sorted(there)) or 'none'})"
    )
  findings = tuple(findings) or tuple(sorted(there))
  kept = subset((one.patient_id for one in marked), fraction, seed)
  chosen = [i for i, one in enumerate(marked) if one.patient_id in kept]
  marked = [marked[i] for i in chosen]
  sizes, shares_of, counts = [], {name: [] for name in findings}, []
  for one in marked:
    some = {name: one.boxes[name] for name in findings if len(one.boxes.get(name, ()))}
    counts.append(sum(map(len, some.values())))
    for name, corners in some.items():
      square = boxes.to_square(corners, one.height, one.width, image_px)
      sizes.append(square[:, 2:] - square[:, :2])
      shares_of[name].append(corners / [one.width, one.height, one.width, one.height])
  if not sizes:
    raise UserError(
      f"{folder}: none of the {len(chosen)} training images of --fraction={fraction:g} has a box of"
      f" {', '.join(findings) or 'anything'}: raise --fraction"
    )
  log.info(
    f"training on {len(chosen)} images of {len(kept)} patients: {sum(counts)} boxes,"
    f" {counts.count(0)} images without; {len(findings)} findings"
  )
  return Training(
    source=source,
    chosen=tuple(chosen),
    findings=findings,
    sizes=np.concatenate(sizes),
    most=max(counts),
    typical=[
      typical_box(np.concatenate(some)) if some else None for some in shares_of.values()
    ],
    shares=[len(some) / len(chosen) for some in shares_of.values()],
  )  # fmt: skip


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Study -> one example of the batch: image [S, S, 1], boxes [M, 4], labels [M], mask [M].

  Attributes:
    findings: names, by place.
    image_px: S.
    most: M.
  """

  findings: tuple[str, ...]
  image_px: int
  most: int

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nothing here is random: the field's protocol does not augment."""
    pixels = images.decode(example.image)
    found, kinds = example_boxes(example, self.findings)
    corners, labels = np.zeros((self.most, 4), np.float32), np.zeros(self.most, np.int32)
    corners[: len(found)] = boxes.to_square(found, *pixels.shape, self.image_px)
    labels[: len(found)] = kinds
    return {
      "image": images.fit(pixels, self.image_px)[..., None],
      "boxes": corners,
      "labels": labels,
      "mask": np.arange(self.most) < len(found),
    }
