"""Linear probe: how well do a frozen encoder's features tell the findings of an image?

  python -m plan_jax.transfer.linear_probe --workdir=runs/a --records=FOLDER --out=runs/a/probe/NAME

Protocol "linear-probe-v1" (task "linear-probe"):

- An image's features are the mean over the pixels of the encoder's last feature map, before any
  projection, batch norm by its running statistics; images are letterboxed and not augmented.
- On them a logistic regression for every finding (`logistic`), learned from the training images, or
  those of a share of their patients (--fraction; a smaller share lies within a larger one). Labels
  of -1 and images without a label are left out and counted. The findings are those that the whole
  training split has both present and absent; one of which the share has only one kind gets the same
  score on every image (AUC .5), and that is said: all shares are judged on the same units.
- One penalty for all findings, the best of `PENALTIES` by macro AUC on the validation split; of
  equal ones the strongest. Without a validation split it is `DEFAULT`.
- Test images are scored as `evaluators.classified` says.

--encoder=random has fresh weights of the same architecture: what the architecture alone gives. Into
--out go evaluation.json, example_scores/ (`python -m plan_jax.compare OUT OUT` compares two) and probe.npz
(weights, bias, mean, deviation, findings).
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import images
from input_pipeline.errors import UserError
from plan_jax.evaluators.classification import classified_rows, macro_auc, scored
from plan_jax.evaluators.labelled_images import Images
from plan_jax.models.two_towers import image_encoder
from plan_jax.results import rows as results
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import batch_sharding, everywhere, make_mesh, spread
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import command, logistic
from plan_jax.transfer.encoder import data_name, pooled
from plan_jax.transfer.labels import embedded, findings_in, training_images
from plan_jax.transfer.logistic import Logistic

TASK, PROTOCOL = "linear-probe", "linear-probe-v1"
ENCODERS = ("run", "random")
# Strongest first.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5)
DEFAULT = 0.01  # without validation images
_BATCH = 64


class Features:
  """An image encoder as what makes a vector of an image; see `evaluators.retrieval.ImageEmbedder`."""

  def __init__(self, encoder, weights: dict, image_px: int):
    """`weights`: {"params", "batch_stats"}; `image_px`: side of the square."""
    self._mesh = make_mesh(-1, 1)
    self._image_px, self._weights = image_px, weights
    self._batch = -(-_BATCH // self._mesh.size) * self._mesh.size

    whole = everywhere(self._mesh)
    self._pooled = jax.jit(
      lambda weights, image: pooled(encoder, weights, image, train=False)[0],
      in_shardings=(whole, batch_sharding(self._mesh)),
      out_shardings=whole,
    )

  def embed_images(self, arrays: list[np.ndarray]) -> np.ndarray:
    """Images uint8 [H, W], of any size, to float32 [N, C]."""
    side, out = self._image_px, []
    for start in range(0, len(arrays), self._batch):
      some = arrays[start : start + self._batch]
      fitted = np.zeros((self._batch, side, side, 1), np.float32)
      for i, image in enumerate(some):
        fitted[i, ..., 0] = images.fit(image, side)
      out.append(np.asarray(self._pooled(self._weights, spread(fitted, self._mesh)))[: len(some)])
    return np.concatenate(out)


def probe(arguments: argparse.Namespace) -> list[results.Row]:
  """Computes features, fits, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  command.check(arguments)
  if Workdir(arguments.out).evaluation.exists():
    raise UserError(f"{arguments.out} holds an evaluation already: name another --out")
  config = ConfigDict(Workdir(arguments.workdir).read_config())
  side = arguments.image_px or config.model.image_px
  stride = image_encoder(config.model.image).output_stride
  if side % stride:
    raise UserError(f"--image_px={side} is no multiple of {stride}, the stride of the encoder")
  encoder = command.encoder_for(arguments, config, side)
  settings = ConfigDict({key: getattr(arguments, key) for key in ("encoder", "fraction", "seed")})
  settings.image_px, settings.image = side, config.model.image.to_dict()
  settings.findings = command.findings_of(arguments)
  out = command.claim(arguments, settings, encoder)
  features = Features(encoder.module, encoder.weights, side)
  findings, places = training_images(
    arguments.records, findings=settings.findings, fraction=settings.fraction, seed=settings.seed
  )

  def images_of(split: str, places: Sequence[int] | None = None) -> Images:
    return embedded(features, arguments.records, split, TASK, places, batch=_BATCH)

  images, validation = images_of("train", places), None
  if command.has_validation(
    arguments, lambda split: findings_in(arguments.records, split, findings),
    "finding both present and absent", f"the penalty is {DEFAULT}, the threshold .5",
  ):  # fmt: skip
    validation = images_of("validation")
  test = images_of("test")
  chosen = choose(images, validation, findings)
  found, views = scored(chosen.scores(test.vectors), test, findings)
  behind = validation and scored(chosen.scores(validation.vectors), validation, findings)[0]
  rows = classified_rows(
    (TASK, PROTOCOL, data_name(arguments.records, "test")), found, views, validation=behind,
    resamples=arguments.resamples, seed=arguments.seed,
  )  # fmt: skip
  np.savez(
    out.path / "probe.npz", weights=chosen.weights, bias=chosen.bias, mean=chosen.mean,
    deviation=chosen.deviation, findings=np.array(findings),
  )  # fmt: skip
  command.finish(out, arguments, encoder.step, rows, found, TASK)
  return rows


def table_of(images: Images, findings: list[str]) -> np.ndarray:
  """Labels int [N, K]: 1, 0, or -1 where uncertain or absent."""
  return np.array([[some.get(name, -1) for name in findings] for some in images.labels], int)


def fit(images: Images, findings: Sequence[str], penalties: Sequence[float]) -> list[Logistic]:
  """A regression for each penalty; a finding of one kind only gets no weight, and that is said."""
  labels = table_of(images, findings)
  learned = np.flatnonzero((labels == 1).any(0) & (labels == 0).any(0))
  if alone := [name for k, name in enumerate(findings) if k not in learned]:
    log.info(
      f"{TASK}: the training images have only one kind of {', '.join(alone)}: the same score for all"
    )
  if not len(learned):
    raise UserError("no finding is both present and absent in these images: raise --fraction")
  out = []
  for some in logistic.fit(images.vectors, labels[:, learned], penalties):
    weights, bias = np.zeros((len(some.mean), len(findings))), np.zeros(len(findings))
    weights[:, learned], bias[learned] = some.weights, some.bias
    out.append(Logistic(some.mean, some.deviation, weights, bias))
  return out


def choose(images: Images, validation: Images | None, findings: list[str]) -> Logistic:
  """The regression of the best penalty; see the top of this file."""
  if validation is None:
    return fit(images, findings, (DEFAULT,))[0]
  fitted = fit(images, findings, PENALTIES)
  areas = []
  for model in fitted:
    areas.append(macro_auc(scored(model.scores(validation.vectors), validation, findings)[0]))
  best = int(np.argmax(areas))
  log.info(f"penalty {PENALTIES[best]:g}: macro AUC {areas[best]:.3f} on the validation split")
  return fitted[best]


def parser() -> argparse.ArgumentParser:
  """The command line."""
  return command.parser("probe", __doc__, ENCODERS)


if __name__ == "__main__":
  command.main(parser().parse_args(), probe)
