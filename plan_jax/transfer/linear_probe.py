"""Linear probe: how well do a frozen encoder's features tell the findings of an image?

  python -m plan_jax.transfer --task=linear_probe --workdir=runs/a --records=FOLDER --out=OUT

Protocol "linear-probe-v1" (task "linear-probe"):

- An image's features are the mean over the grid of the encoder's last feature map, before any
  projection, batch norm by its running statistics; images are letterboxed and not augmented.
- On them a logistic regression for every finding (`logistic`), learned from the training images, or
  those of a share of their patients (--fraction; a smaller share lies within a larger one). Labels
  of -1 and images without a label are left out and counted. The findings are those that the whole
  training split has both present and absent; one of which the share has only one kind gets the same
  score on every image (AUC .5), and that is logged: all shares are judged on the same examples.
- One penalty for all findings, the best of `PENALTIES` by macro AUC on the validation split; of
  equal ones the strongest. Without a validation split it is `DEFAULT`.
- Test images are scored as `evaluators.classification` says.

--encoder=random has fresh weights of the same architecture: what the architecture alone gives. Into
--out go evaluation.json, example_scores/ (`python -m plan_jax.compare OUT OUT` compares two) and
probe.npz (weights, bias, mean, deviation, findings).
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import terminal
from input_pipeline.errors import UserError
from input_pipeline.files import replacing
from plan_jax.evaluators.classification import macro_auc, scored
from plan_jax.evaluators.labelled_images import Images
from plan_jax.results.example_scores import ExampleScores
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import batch_sharding, everywhere, shared_rows
from plan_jax.transfer import labels, logistic
from plan_jax.transfer.encoder import letterboxed, pooled
from plan_jax.transfer.job import Job
from plan_jax.transfer.labels import LabelTask
from plan_jax.transfer.logistic import Logistic
from plan_jax.transfer.task import Outcome

TASK, PROTOCOL = "linear-probe", "linear-probe-v1"
# Strongest first.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5)
DEFAULT = 0.01  # without validation images
_BATCH = 64


class LinearProbe(LabelTask):
  """A regression of the labels on features."""

  HEAD = TASK, PROTOCOL
  OTHERWISE = f"the penalty is {DEFAULT}, the threshold .5"

  def __init__(self, job: Job):
    """Reads the training labels. Raises UserError as `Task` does."""
    self.job = job
    self.source, self.findings = labels.training_images(job)
    encoder, side = job.encoder, job.settings.image_px
    self.features = Features(encoder.module, encoder.weights, side, job.mesh)
    self._validation: Images | None = None

  def fit(self, validate: bool) -> Logistic:
    """Fits the regression of the best penalty."""
    training = self._embedded(self.source, "train")
    if validate:
      self._validation = self._embedded(self.job.source("validation"), "validation")
    return choose(training, self._validation, self.findings)

  def evaluate(self, fitted: Logistic, validate: bool) -> Outcome:
    """Scores the test split by thresholds of the validation split; writes probe.npz."""
    rows, scores = self.rows(fitted, validate)
    arrays = {name: getattr(fitted, name) for name in ("weights", "bias", "mean", "deviation")}
    with replacing(self.job.out.path / "probe.npz") as temporary, temporary.open("wb") as file:
      np.savez(file, **arrays, findings=np.array(self.findings))
    return Outcome(self.job.encoder.step, rows, scores)

  def score(self, fitted: Logistic, split: str) -> tuple[ExampleScores, list[str]]:
    """Scores the images of a split; those of validation are embedded already."""
    embedded = self._validation
    if split == "test":
      embedded = self._embedded(self.job.source(split), split)
    return scored(fitted.scores(embedded.embeddings), embedded, self.findings)

  def _embedded(self, source, split: str) -> Images:
    return labels.embed(self.features, source, f"{TASK}, {split}", batch=_BATCH)


class Features:
  """The pooled features of an image encoder; see `evaluators.labelled_images.ImageEmbedder`."""

  def __init__(self, encoder: nn.Module, weights: dict, image_px: int, mesh: Mesh):
    """`weights`: {"params", "batch_stats"}; `image_px`: side of the square."""
    self._image_px, self._mesh = image_px, mesh
    self._batch = shared_rows(_BATCH, mesh.size)
    whole = everywhere(mesh)
    function = jax.jit(
      lambda weights, image: pooled(encoder, weights, image, train=False)[0],
      in_shardings=(whole, batch_sharding(mesh)),
      out_shardings=whole,
    )
    self._pooled = partial(function, jax.device_put(weights, whole))

  def embed_images(self, arrays: list[np.ndarray]) -> np.ndarray:
    """Embeds images uint8 [H, W], of any size: float32 [N, C]."""
    batches = letterboxed(self._pooled, arrays, self._image_px, self._batch, self._mesh)
    return np.concatenate(list(batches))


def fit(embedded: Images, findings: Sequence[str], penalties: Sequence[float]) -> list[Logistic]:
  """Fits a regression for each penalty; a finding of one kind only gets no weight, and a message.

  Raises UserError where all are of one kind only.
  """
  rows = [[known.get(name, -1) for name in findings] for known in embedded.labels]
  table = np.array(rows, int)  # [N, K]: 1, 0, or -1 where uncertain or absent
  learned = np.flatnonzero((table == 1).any(0) & (table == 0).any(0))
  if alone := [name for k, name in enumerate(findings) if k not in learned]:
    log.info(
      f"{TASK}: the training images have only one kind of {terminal.join(alone)}: the same score"
      " for all"
    )
  if not len(learned):
    raise UserError("no finding is both present and absent in these images: raise --fraction")
  out = []
  for model in logistic.fit(embedded.embeddings, table[:, learned], penalties):
    weights, bias = np.zeros((len(model.mean), len(findings))), np.zeros(len(findings))
    weights[:, learned], bias[learned] = model.weights, model.bias
    out.append(Logistic(model.mean, model.deviation, weights, bias))
  return out


def choose(training: Images, validation: Images | None, findings: list[str]) -> Logistic:
  """Fits the regression of the best penalty; see the top of this file."""
  if validation is None:
    return fit(training, findings, (DEFAULT,))[0]
  fitted = fit(training, findings, PENALTIES)
  areas = [
    macro_auc(scored(model.scores(validation.embeddings), validation, findings)[0])
    for model in fitted
  ]
  best = int(np.argmax(areas))
  log.info(f"penalty {PENALTIES[best]:g}: macro AUC {areas[best]:.3f} on the validation split")
  return fitted[best]
