"""Fine-tuned classification: how well does an encoder that goes on learning tell the findings?

  python -m plan_jax.transfer --task=classification --workdir=runs/a --records=FOLDER --out=OUT

Protocol "fine-tuned-v1" (task "fine-tuned-classification"):

- A dense layer on the mean over the grid of the encoder's last map, before any projection; encoder
  and layer learn together, all findings at once, by the mean cross entropy of the known labels
  (-1 and absent labels are unknown), from the training images or those of a share of their patients
  (--fraction; a smaller share lies within a larger one). Training images are augmented as in
  pre-training (--augment=False: not at all).
- The state of the highest macro AUC on the validation split counts, measured every
  --validate_every_steps; training ends early after --patience measurements without a better one.
- The findings are those that the whole training split has both present and absent. Test images are
  scored as `evaluators.classification` says.

--encoder=supervised begins with fresh weights of the same architecture. Into --out go checkpoints,
metrics.jsonl, evaluation.json and example_scores/ (`python -m plan_jax.compare OUT OUT` compares
two). The same command goes on where it stopped. For a frozen encoder there is --task=linear_probe.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline import images, loader
from input_pipeline.example import Example
from plan_jax.evaluators.classification import macro_auc, scored
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import scalar_name
from plan_jax.training.state import TrainState
from plan_jax.transfer import labels
from plan_jax.transfer.encoder import pooled
from plan_jax.transfer.job import Job
from plan_jax.transfer.labels import LabelTask
from plan_jax.transfer.learner import Learner
from plan_jax.transfer.task import HeadTask, Outcome

TASK, PROTOCOL = "fine-tuned-classification", "fine-tuned-v1"
_UNKNOWN = -1


class Classification(LabelTask, HeadTask):
  """A learner of labels; see `evaluators.labelled_images.ImageEmbedder`."""

  HEAD = TASK, PROTOCOL
  OTHERWISE = "the last step is evaluated, nothing stops it early, and the threshold is .5"
  FOLLOWED = scalar_name(TASK, "AUC")

  def __init__(self, job: Job):
    """Reads the training labels and makes the head. Raises UserError as `HeadTask` does."""
    self.job, settings = job, job.settings
    self.source, self.findings = labels.training_images(job)
    augment = images.Augment() if settings.augment else None
    self.encode = Encode(tuple(self.findings), settings.image_px, augment)
    head = Head(len(self.findings))
    self.learner = Learner(
      job, head, read=pooled, loss=loss, decode=lambda raw: (jax.nn.sigmoid(raw),)
    )
    self._state: TrainState | None = None  # that `embed_images` predicts with

  def embed_images(self, arrays: list[np.ndarray]) -> np.ndarray:
    """Predicts the findings of images uint8 [H, W]: probabilities, float32 [N, K]."""
    return np.stack([scores for (scores,) in self.learner.predict(self._state, arrays)])

  def measure(self, state: TrainState) -> float:
    """Returns the macro AUC of the validation split."""
    return macro_auc(self.score(state, "validation", quiet=True)[0])

  def evaluate(self, fitted: TrainState, validate: bool) -> Outcome:
    """Scores the test split by thresholds of the validation split."""
    return Outcome(int(fitted.step), *self.rows(fitted, validate))

  def score(
    self, fitted: TrainState, split: str, *, quiet: bool = False
  ) -> tuple[ExampleScores, list[str]]:
    """Scores the images of a split by the predictions of a state."""
    self._state, batch = fitted, 4 * self.job.settings.batch_size
    source, what = self.job.source(split), f"{TASK}, {split}"
    embedded = labels.embed(self, source, what, batch=batch, quiet=quiet)
    return scored(embedded.embeddings, embedded, self.findings)


@dataclass(frozen=True)
class Encode(loader.RandomMap):
  """Encoder of an example: image [S, S, 1], labels [K] int32, 1, 0 or -1 (unknown).

  Attributes:
    findings: K names.
    image_px: S.
    augment: of the image; None for none.
  """

  findings: Sequence[str]
  image_px: int
  augment: images.Augment | None

  def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a row of a batch; images are augmented as in pre-training."""
    pixels = images.decode_example(example)
    if self.augment is None:
      image = images.fit(pixels, self.image_px)
    else:
      image = self.augment(pixels, self.image_px, rng)
    values = [example.labels.get(name, _UNKNOWN) for name in self.findings]
    return {"image": image[..., None], "labels": np.array(values, np.int32)}


class Head(nn.Module):
  """A dense layer on the features; `findings` is their number."""

  findings: int

  @nn.compact
  def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
    """[B, C] -> [B, findings]."""
    del train  # the same in training
    return nn.Dense(self.findings, name="findings")(features)


def loss(raw: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
  """Computes the mean cross entropy over the known labels of a batch, 0 where none is known.

  Args:
    raw: [B, K] float32.
    batch: labels [B, K] int32, 1, 0 or -1.

  Returns:
    The loss, and the number of known labels.
  """
  known = batch["labels"] != _UNKNOWN
  entropy = optax.sigmoid_binary_cross_entropy(raw, batch["labels"].astype(jnp.float32))
  count = known.sum()
  return jnp.where(known, entropy, 0).sum() / jnp.maximum(count, 1), {"known": count}
