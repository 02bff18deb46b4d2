"""Images with their masks, to learn segmentation from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline import images, loader
from input_pipeline.errors import UserError
from input_pipeline.example import Example
from input_pipeline.regions import finding_masks
from plan_jax.evaluators.chance import BoxPrior
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import Subset, training_share
from plan_jax.transfer.settings import SegmentationSettings


def training_masks(settings: SegmentationSettings) -> tuple[Subset, tuple[str, ...], BoxPrior]:
  """Returns the images to learn from, the findings, and the mean of their masks in these images.

  Raises UserError where a finding, or the share, has no region.
  """
  share = training_share(
    settings,
    lambda example: {region.label for region in example.regions},
    lambda facts: set().union(*facts),
    "region",
  )
  marked = tuple(i for i in share.places if share.facts[i] & set(share.findings))
  if not marked:
    raise UserError(
      f"{settings.records}: none of the {len(share.places)} training images of --fraction="
      f"{settings.fraction:g} has a region of {', '.join(share.findings) or 'anything'}: raise"
      " --fraction"
    )
  places = share.places if settings.empty_images == "keep" else marked
  log.info(
    f"training on {len(places)} images of {share.patients} patients, {len(marked)} of them with a"
    f" region; {len(share.findings)} findings"
  )
  prior = BoxPrior()
  for i in marked:
    for place, mask in finding_masks(share.source[i], share.findings).items():
      prior.add(share.findings[place], mask)
  return Subset(share.source, places), share.findings, prior


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Encoder of an example: image [S, S, 1], masks [S, S, K] bool, known [K] bool.

  Attributes:
    findings: K names.
    image_px: S.
    keep_empty: whether an image without a finding is known to be without it.
  """

  findings: Sequence[str]
  image_px: int
  keep_empty: bool

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a row of a batch; nothing is random: images are not augmented."""
    side = self.image_px
    masks = np.zeros((side, side, len(self.findings)), bool)
    known = np.full(len(self.findings), self.keep_empty)
    for place, mask in finding_masks(example, self.findings).items():
      masks[..., place] = images.fit(mask.astype(np.uint8) * 255, side) >= 0.5
      known[place] = True
    image = images.fit(images.decode_example(example), side)[..., None]
    return {"image": image, "masks": masks, "known": known}
