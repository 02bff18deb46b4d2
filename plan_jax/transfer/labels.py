"""Labelled images to learn from and to be scored on, and the rows of their scores."""

from collections.abc import Sequence

from tqdm import tqdm

from input_pipeline.errors import UserError
from plan_jax.evaluators import labelled_images
from plan_jax.evaluators.classification import classified_rows
from plan_jax.evaluators.labelled_images import ImageEmbedder, Images
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import Row
from plan_jax.runtime.logging import log
from plan_jax.transfer.examples import Subset, iterate, training_share
from plan_jax.transfer.job import Job

REQUIRED = "finding both present and absent"


def training_images(job: Job) -> tuple[Subset, list[str]]:
  """Returns the images to learn from, those of a share of the patients with a label, and findings.

  An image counts where one of the findings is labelled 1 or 0.

  Raises UserError where a finding is of one kind only, or no image of the share has a label.
  """
  settings = job.settings
  share = training_share(
    settings,
    lambda example: example.labels,
    lambda labels: _both({pair for each in labels for pair in each.items()}),
    "labels both present and absent",
  )
  if not share.findings:
    raise UserError(
      f"{settings.records}: no finding is both present and absent in the training images"
    )
  places = [
    i for i in share.places if any(share.facts[i].get(name) in (0, 1) for name in share.findings)
  ]
  count = len(share.places)
  if not places:
    raise UserError(
      f"{settings.records}: none of the {count} training images of --fraction="
      f"{settings.fraction:g} has a label: raise --fraction"
    )
  log.info(
    f"training on {len(places)} images of {share.patients} patients ({count - len(places)} more"
    " have no label)"
  )
  return Subset(share.source, tuple(places)), list(share.findings)


def findings_in(job: Job, split: str, findings: Sequence[str]) -> set[str]:
  """Returns those of the findings that a split has both present and absent."""
  kinds = {pair for example in iterate(job.source(split)) for pair in example.labels.items()}
  return _both(kinds) & set(findings)


def _both(kinds: set[tuple[str, int]]) -> set[str]:
  return {name for name, value in kinds if value == 1 and (name, 0) in kinds}


def embed(
  model: ImageEmbedder, source, what: str, *, batch: int = 64, quiet: bool = False
) -> Images:
  """Embeds the images of a source with a label of 1 or 0, `batch` at a time.

  `what`, task and split, stands at the bar and in the log; `quiet` turns both off. Raises UserError
  where there is none.
  """
  bar = tqdm(range(len(source)), desc=what, unit="image", mininterval=1, disable=quiet)
  tell = (lambda _: None) if quiet else log.info
  images = labelled_images.embed(model, (source[i] for i in bar), what, batch=batch, tell=tell)
  if images is None:
    raise UserError(f"{what}: none of the {len(source)} images has a label of 1 or 0")
  return images


def label_rows(
  job: Job,
  task: str,
  protocol: str,
  test: tuple[ExampleScores, list[str]],
  validation: ExampleScores | None,
) -> list[Row]:
  """Returns the rows of the test split; thresholds are chosen on the validation split, if any.

  `test` has scores and views, see `evaluators.classification.scored`.
  """
  return classified_rows(
    (task, protocol, job.data("test")),
    *test,
    validation=validation,
    resamples=job.settings.resamples,
    seed=job.settings.seed,
  )
