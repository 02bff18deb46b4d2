"""Labelled images to learn from and to be scored on, and the rows of their scores."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

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
from plan_jax.transfer.task import Task


class LabelTask(Task, Protocol):
  """A task that learns labels, several findings at once.

  Attributes:
    HEAD: task and protocol of the rows.
    findings: K names.
  """

  REQUIRED = "finding both present and absent"
  HEAD: ClassVar[tuple[str, str]]
  findings: Sequence[str]

  def score(self, fitted: Any, split: str) -> tuple[ExampleScores, list[str]]:
    """Returns scores and views of the images of a split, see `evaluators.classification.scored`."""

  def findings_in(self, split: str) -> set[str]:
    """Returns the findings that a split has both present and absent."""
    source = self.job.source(split)
    kinds = {pair for example in iterate(source) for pair in example.labels.items()}
    return _both(kinds) & set(self.findings)

  def rows(self, fitted: Any, validate: bool) -> tuple[list[Row], ExampleScores]:
    """Scores the test split, by thresholds of the validation split."""
    test, settings = self.score(fitted, "test"), self.job.settings
    rows = classified_rows(
      (*self.HEAD, self.job.data("test")),
      *test,
      validation=self.score(fitted, "validation")[0] if validate else None,
      resamples=settings.resamples,
      seed=settings.seed,
    )
    return rows, test[0]


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
  notify = (lambda _: None) if quiet else log.info
  images = labelled_images.embed(model, (source[i] for i in bar), what, batch=batch, notify=notify)
  if images is None:
    raise UserError(f"{what}: none of the {len(source)} images has a label of 1 or 0")
  return images
