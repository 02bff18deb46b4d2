"""Fine-tuned classification: how well does an encoder that goes on learning tell the findings?

  python -m plan_jax.transfer.classify --workdir=runs/a --records=FOLDER --out=runs/a/classification/NAME

Protocol "fine-tuned-v1" (task "fine-tuned-classification"):

- A dense layer on the mean over the grid of the encoder's last map, before any projection; encoder
  and layer learn together, all findings at once, by the mean cross entropy of the known labels
  (-1 and absent labels are unknown), from the training images or those of a share of their patients
  (--fraction; a smaller share lies within a larger one). Training images are augmented as in
  pre-training (--augment=False: not at all).
- The state of the highest macro AUC on the validation split counts, measured every
  --validate_every_steps; training ends early after --patience measurements without a better one.
- The findings are those that the whole training split has both present and absent. Test images are
  scored as `evaluators.classified` says.

--encoder=supervised begins with fresh weights of the same architecture. Into --out go checkpoints,
metrics.jsonl, evaluation.json and example_scores/ (`python -m plan_jax.compare OUT OUT` compares two). The
same command goes on where it stopped. An encoder that stays as it is: `python -m plan_jax.transfer.linear_probe`.
"""

import argparse

from ml_collections import ConfigDict

from input_pipeline import images, records
from input_pipeline.errors import UserError
from plan_jax.evaluators.classification import classified_rows, macro_auc, scored
from plan_jax.evaluators.labelled_images import Images
from plan_jax.results import rows as results
from plan_jax.runtime.mesh import make_mesh
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer import command
from plan_jax.transfer.classifier import Classifier, Encode
from plan_jax.transfer.encoder import data_name
from plan_jax.transfer.examples import Chosen
from plan_jax.transfer.fitting import fit
from plan_jax.transfer.labels import embedded, findings_in, training_images

TASK, PROTOCOL = "fine-tuned-classification", "fine-tuned-v1"
ENCODERS = ("run", "supervised")
FOLLOWED = results.scalar_name(TASK, "AUC")


def classify(arguments: argparse.Namespace) -> list[results.Row]:
  """Trains, or goes on, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  command.check(arguments)
  config = ConfigDict(Workdir(arguments.workdir).read_config())
  settings = command.training_settings(arguments, config, ("augment",))
  folder, seed = arguments.records, settings.seed
  encoder = command.encoder_for(arguments, config, settings.image_px)
  stride = encoder.module.output_stride
  if settings.image_px % stride:
    raise UserError(f"--image_px={settings.image_px} is no multiple of {stride}")
  out = command.claim(arguments, settings, encoder)
  findings, places = training_images(
    folder, findings=settings.findings, fraction=settings.fraction, seed=seed
  )
  model = Classifier(encoder.module, encoder.weights, settings, findings, make_mesh(-1, 1))

  def scores_of(split: str, state, *, quiet: bool = False) -> Images:
    model.take(state)
    return embedded(model, folder, split, TASK, batch=4 * settings.batch_size, quiet=quiet)

  measure = None
  if command.has_validation(
    arguments, lambda split: findings_in(folder, split, findings),
    "finding both present and absent",
    "the last step is evaluated, nothing stops it early, and the threshold is .5",
  ):  # fmt: skip

    def measure(state):
      labelled = scores_of("validation", state, quiet=True)
      return macro_auc(scored(labelled.vectors, labelled, findings)[0])

  source = Chosen(records.RecordSource(folder, "train"), tuple(places))
  augment = images.Augment() if settings.augment else None
  encode = Encode(tuple(findings), settings.image_px, augment)
  state = fit(model.learner, out, source, encode, followed=FOLLOWED, measure=measure)
  test = scores_of("test", state)
  found, views = scored(test.vectors, test, findings)
  behind = None
  if measure:
    labelled = scores_of("validation", state)
    behind = scored(labelled.vectors, labelled, findings)[0]
  rows = classified_rows(
    (TASK, PROTOCOL, data_name(folder, "test")), found, views, validation=behind,
    resamples=arguments.resamples, seed=seed,
  )  # fmt: skip
  command.finish(out, arguments, int(state.step), rows, found, TASK)
  return rows


def parser() -> argparse.ArgumentParser:
  """The command line."""
  out = command.parser("classify", __doc__, ENCODERS)
  command.add_training(
    out, freezes=False, steps=2000, learning_rate=1e-4, weight_decay=0.05, validate_every_steps=200
  )
  out.add_argument("--augment", type=command.truth, default=True, help="whether images are changed")
  return out


if __name__ == "__main__":
  command.main(parser().parse_args(), classify)
