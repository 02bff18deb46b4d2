"""Labelled images to learn from, and to be scored on."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from input_pipeline import records
from input_pipeline.conversion.selection_builders import subset
from input_pipeline.errors import UserError
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.labelled_images import ImageEmbedder, Images
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import iter_of


def training_images(
  folder: Path, *, findings: Sequence[str], fraction: float, seed: int
) -> tuple[list[str], list[int]]:
  """The findings to learn, and the places in the training split of the images to learn from.

  Images with a label of 1 or 0 of a finding, of a share of the patients; a smaller share lies within
  a larger one.

  Args:
    folder: of the records.
    findings: names; none: all that the training images have both present and absent.
    fraction: of the patients.
    seed: of their draw.

  Raises UserError where a finding is of one kind only, or no image of the share has a label.
  """
  source = records.RecordSource(folder, "train")
  bar = tqdm(range(len(source)), desc="labels", unit="image", mininterval=1)
  examples = [(example.patient_id, example.labels) for example in (source[i] for i in bar)]
  kinds = {pair for _, labels in examples for pair in labels.items()}
  both = sorted(name for name, value in kinds if value == 1 and (name, 0) in kinds)
  if missing := sorted(set(findings) - set(both)):
    raise UserError(
      f"--findings: {', '.join(missing)} not both present and absent in the training images of"
      f" {folder} (there: {', '.join(both) or 'none'})"
    )
  if not both:
    raise UserError(f"{folder}: no finding is both present and absent in the training images")
  findings = list(findings) or both
  kept = subset((patient for patient, _ in examples), fraction, seed)
  share = [i for i, (patient, _) in enumerate(examples) if patient in kept]
  places = [i for i in share if any(examples[i][1].get(name) in (0, 1) for name in findings)]
  if not places:
    raise UserError(
      f"{folder}: none of the {len(share)} training images of --fraction={fraction:g} has a label:"
      " raise --fraction"
    )
  log.info(
    f"training on {len(places)} images of {len(kept)} patients ({len(share) - len(places)} more have"
    " no label)"
  )
  return findings, places


def findings_in(folder: Path, split: str, findings: Sequence[str]) -> set[str]:
  """Which of the findings a split has both present and absent."""
  source = records.RecordSource(folder, split)
  kinds = {pair for example in iter_of(source) for pair in example.labels.items()}
  return {name for name in findings if {(name, 0), (name, 1)} <= kinds}


def embedded(
  model: ImageEmbedder,
  folder: Path,
  split: str,
  what: str,
  places: Sequence[int] | None = None,
  *,
  batch: int = 64,
  quiet: bool = False,
) -> Images:
  """The images of a split with a label of 1 or 0, all or those of `places`, embedded.

  Shows a bar and says what is left out, but not where it is `quiet`, for it would be the same each
  time. Raises UserError where there is none.
  """
  source = records.RecordSource(folder, split)
  places = range(len(source)) if places is None else places
  what = f"{what}, {split}"
  bar = tqdm(places, desc=what, unit="image", mininterval=1, disable=quiet)
  tell = (lambda _: None) if quiet else log.info
  images = labelled_images.embed(model, (source[i] for i in bar), what, batch=batch, tell=tell)
  if images is None:
    raise UserError(
      f"{folder}: none of the {len(places)} images of the {split} split has a label of 1 or 0"
    )
  return images
