"""Labelled films to learn from, and to be scored on."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from input_pipeline import records
from input_pipeline.errors import UserError
from input_pipeline.selection_builders import subset
from plan_jax.downstream.studies import iter_of
from plan_jax.evaluators import labelled
from plan_jax.evaluators.labelled import Films
from plan_jax.evaluators.retrieval import ImageEmbedder
from plan_jax.reporting import say


def training_films(
  folder: Path, *, findings: Sequence[str], fraction: float, seed: int
) -> tuple[list[str], list[int]]:
  """The findings to learn, and the places in the training split of the films to learn from.

  Films with a label of 1 or 0 of a finding, of a share of the patients; a smaller share lies within
  a larger one.

  Args:
    folder: of the records.
    findings: names; none: all that the training films have both present and absent.
    fraction: of the patients.
    seed: of their draw.

  Raises UserError where a finding is of one kind only, or no film of the share has a label.
  """
  source = records.RecordSource(folder, "train")
  bar = tqdm(range(len(source)), desc="labels", unit="film", mininterval=1)
  studies = [(study.patient_id, study.labels) for study in (source[i] for i in bar)]
  kinds = {pair for _, labels in studies for pair in labels.items()}
  both = sorted(name for name, value in kinds if value == 1 and (name, 0) in kinds)
  if missing := sorted(set(findings) - set(both)):
    raise UserError(
      f"--findings: {', '.join(missing)} not both present and absent in the training films of"
      f" {folder} (there: {', '.join(both) or 'none'})"
    )
  if not both:
    raise UserError(f"{folder}: no finding is both present and absent in the training films")
  findings = list(findings) or both
  kept = subset((patient for patient, _ in studies), fraction, seed)
  share = [i for i, (patient, _) in enumerate(studies) if patient in kept]
  places = [i for i in share if any(studies[i][1].get(name) in (0, 1) for name in findings)]
  if not places:
    raise UserError(
      f"{folder}: none of the {len(share)} training films of --fraction={fraction:g} has a label:"
      " raise --fraction"
    )
  say(
    f"training on {len(places)} films of {len(kept)} patients ({len(share) - len(places)} more have"
    " no label)"
  )
  return findings, places


def findings_in(folder: Path, split: str, findings: Sequence[str]) -> set[str]:
  """Which of the findings a split has both present and absent."""
  source = records.RecordSource(folder, split)
  kinds = {pair for study in iter_of(source) for pair in study.labels.items()}
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
) -> Films:
  """The films of a split with a label of 1 or 0, all or those of `places`, embedded.

  Shows a bar and says what is left out, but not where it is `quiet`, for it would be the same each
  time. Raises UserError where there is none.
  """
  source = records.RecordSource(folder, split)
  places = range(len(source)) if places is None else places
  what = f"{what}, {split}"
  bar = tqdm(places, desc=what, unit="film", mininterval=1, disable=quiet)
  tell = (lambda _: None) if quiet else say
  films = labelled.embed(model, (source[i] for i in bar), what, batch=batch, tell=tell)
  if films is None:
    raise UserError(
      f"{folder}: none of the {len(places)} films of the {split} split has a label of 1 or 0"
    )
  return films
