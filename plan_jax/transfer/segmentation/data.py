"""Images with their masks: what a segmenter learns from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from input_pipeline import images, loader, records
from input_pipeline.conversion.selection_builders import subset
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.regions import finding_masks
from plan_jax.evaluators.chance import BoxPrior
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import Chosen, iter_of


@dataclass(frozen=True)
class Training:
  """The images that a segmenter learns from.

  Attributes:
    images: of the share of patients.
    findings: what is segmented, by name.
    prior: the mean of the findings' masks in the share.
  """

  images: Chosen
  findings: tuple[str, ...]
  prior: BoxPrior


def training(
  folder, *, findings: Sequence[str], fraction: float, seed: int, keep_empty: bool
) -> Training:
  """The training split, or a share of its patients; a smaller share lies within a larger one.

  Args:
    folder: of the records.
    findings: to segment; none: all that have a region in the whole split.
    fraction: of the patients.
    seed: of their draw.
    keep_empty: whether images without a region of any of them are kept.

  Raises UserError where a finding, or the share, has no region.
  """
  source = records.RecordSource(folder, "train")
  bar = tqdm(iter_of(source), total=len(source), desc="regions", unit="image", mininterval=1)
  marks = [(example.patient_id, {region.label for region in example.regions}) for example in bar]
  there = set().union(*(labels for _, labels in marks))
  if missing := sorted(set(findings) - there):
    raise UserError(
      f"--findings: no region of {', '.join(missing)} in the training split of {folder} (there:"
      f" {', '.join(sorted(there)) or 'none'})"
    )
  findings = tuple(findings) or tuple(sorted(there))
  kept = subset((patient for patient, _ in marks), fraction, seed)
  share = [i for i, (patient, _) in enumerate(marks) if patient in kept]
  marked = [i for i in share if marks[i][1] & set(findings)]
  if not marked:
    raise UserError(
      f"{folder}: none of the {len(share)} training images of --fraction={fraction:g} has a region"
      f" of {', '.join(findings) or 'anything'}: raise --fraction"
    )
  chosen = share if keep_empty else marked
  log.info(
    f"training on {len(chosen)} images of {len(kept)} patients, {len(marked)} of them with a region;"
    f" {len(findings)} findings"
  )
  prior = BoxPrior()
  for i in marked:
    for place, mask in finding_masks(source[i], findings).items():
      prior.add(findings[place], mask)
  return Training(Chosen(source, tuple(chosen)), findings, prior)


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Study -> one example: image [S, S, 1], masks [S, S, K] bool, known [K] bool.

  Attributes:
    findings: K names.
    image_px: S.
    keep_empty: whether an image without a finding is known to be without it.
  """

  findings: tuple[str, ...]
  image_px: int
  keep_empty: bool

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nothing here is random: images are not augmented."""
    side = self.image_px
    masks = np.zeros((side, side, len(self.findings)), bool)
    known = np.full(len(self.findings), self.keep_empty)
    for place, mask in finding_masks(example, self.findings).items():
      masks[..., place] = images.fit(mask.astype(np.uint8) * 255, side) >= 0.5
      known[place] = True
    image = images.fit(images.decode(example.image), side)[..., None]
    return {"image": image, "masks": masks, "known": known}
