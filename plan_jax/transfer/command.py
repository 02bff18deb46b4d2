"""What the commands that build on a run's image encoder share: flags, the folder --out, errors."""

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax.metrics import bootstrap
from plan_jax.results import example_scores, tables
from plan_jax.results import rows as results
from plan_jax.results.example_scores import ExampleScores
from plan_jax.runtime import preemption
from plan_jax.runtime.logging import configure, log
from plan_jax.runtime.workdir import Workdir, WorkdirError
from plan_jax.transfer.encoder import NO_RUN, Encoder, encoder_of

_HELP = {
  "run": "of the run", "random": "fresh, and stays as it is",
  "supervised": "fresh, and learns with the head",
}  # fmt: skip
_TRAINING = (
  "encoder", "fraction", "image_px", "steps", "batch_size", "learning_rate", "weight_decay", "seed",
  "validate_every_steps", "patience",
)  # fmt: skip


def parser(
  name: str, doc: str, encoders: tuple[str, ...], *, image_px: int = 0
) -> argparse.ArgumentParser:
  """The flags of every such command.

  Args:
    name: of its module.
    doc: of its module.
    encoders: what --encoder may be.
    image_px: default of --image_px; 0: that of the run.
  """
  out = argparse.ArgumentParser(
    prog=f"python -m plan_jax.{name}",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = out.add_argument
  add("--workdir", type=Path, required=True, help="of the run whose encoder it is")
  add("--records", type=Path, required=True, help="folder of records to learn from and score on")
  add("--out", type=Path, required=True, help="folder of what is learned")
  add("--step", type=int, default=NO_RUN, help="of its checkpoint (default: which is evaluated)")
  add("--encoder", choices=encoders, default="run",
      help="; ".join(f"{kind}: {_HELP[kind]}" for kind in encoders))  # fmt: skip
  add("--findings", default="", help="names with commas between (default: all there are)")
  add("--fraction", type=float, default=1.0, help="of the training patients: 0.01, 0.1, 1")
  default = f"the field has {image_px} and 512" if image_px else "default: the run's"
  add("--image_px", type=int, default=image_px, help=f"side of the square image ({default})")
  add("--resamples", type=int, default=bootstrap.RESAMPLES, help="bootstrap draws")
  add("--seed", type=int, default=0, help="of the share, fresh weights, order and bootstrap draws")
  return out


def add_training(out: argparse.ArgumentParser, *, freezes: bool, **defaults) -> None:
  """The flags of commands that train a head; `freezes`: whether the encoder can stay as it is."""
  add = out.add_argument
  if freezes:
    add("--frozen", type=truth, help="whether the encoder stays as it is (default: True)")
  add("--steps", type=int, default=defaults["steps"])
  add("--batch_size", type=int, default=16)
  add("--learning_rate", type=float, default=defaults["learning_rate"])
  add("--weight_decay", type=float, default=defaults["weight_decay"])
  add("--validate_every_steps", type=int, default=defaults["validate_every_steps"],
      help="when it measures and saves")  # fmt: skip
  add("--patience", type=int, default=10, help="measurements without a better one before it stops")


def truth(text: str) -> bool:
  """A flag's True or False."""
  if text.lower() not in ("true", "false"):
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
  return text.lower() == "true"


def check_flags(arguments: argparse.Namespace) -> None:
  """Raises UserError for a flag that cannot be."""
  for name in ("steps", "batch_size", "channels", "validate_every_steps", "patience"):
    if getattr(arguments, name, 1) < 1:
      raise UserError(f"--{name}={getattr(arguments, name)} must be 1 or more")
  for name in ("image_px", "resamples", "seed", "weight_decay"):
    if getattr(arguments, name, 0) < 0:
      raise UserError(f"--{name}={getattr(arguments, name)} must not be negative")
  if not 0 < getattr(arguments, "learning_rate", 1) < math.inf:
    raise UserError(f"--learning_rate={arguments.learning_rate} must be above 0")
  if not 0 < arguments.fraction <= 1:
    raise UserError(f"--fraction={arguments.fraction:g} must be above 0, and 1 at most")
  is_frozen(arguments)


def check(arguments: argparse.Namespace) -> None:
  """Raises UserError as `check_flags`, and for records without training or test images."""
  check_flags(arguments)
  there = records.splits(arguments.records)
  if not there.get("train") or not there.get("test"):
    raise UserError(f"{arguments.records} needs a train and a test split; it has {there}")


def is_frozen(arguments: argparse.Namespace) -> bool:
  """Whether the encoder stays as it is. Raises UserError where --frozen contradicts --encoder."""
  if "frozen" not in arguments:  # of a command that has one way only
    return False
  frozen = arguments.frozen
  if frozen is None:
    return arguments.encoder != "supervised"
  if arguments.encoder == ("supervised" if frozen else "random"):
    raise UserError(
      f"--encoder={arguments.encoder} --frozen={frozen}: a random encoder is frozen, a supervised"
      " one is not"
    )
  return frozen


def has_validation(
  arguments: argparse.Namespace, findings_in: Callable[[str], set[str]], what: str, otherwise: str
) -> bool:
  """Whether there are validation images to judge by; says what is done without.

  Args:
    arguments: of the command.
    findings_in: split -> the findings that its images can be scored for.
    what: they must have.
    otherwise: what is done without validation images.

  Raises UserError where there is nothing to score in the test split.
  """
  tested = findings_in("test")
  if not tested:
    raise UserError(f"the test split of {arguments.records} has no {what}: nothing to score")
  if not records.splits(arguments.records).get("validation"):
    log.info(f"no validation split: {otherwise}")
    return False
  if not tested & findings_in("validation"):
    log.info(
      f"the validation split has no {what} as the test split has, and is not used: {otherwise}"
    )
    return False
  return True


def findings_of(arguments: argparse.Namespace) -> tuple[str, ...]:
  """The names of --findings, none for all."""
  return tuple(filter(None, (name.strip() for name in arguments.findings.split(","))))


def training_settings(
  arguments: argparse.Namespace, config: ConfigDict, more: tuple[str, ...] = ()
) -> ConfigDict:
  """What a head learns by, for `claim`.

  Args:
    arguments: with the flags of `add_training`.
    config: of the run.
    more: further flags that count.

  """
  settings = ConfigDict({key: getattr(arguments, key) for key in (*_TRAINING, *more)})
  settings.image_px = arguments.image_px or config.model.image_px
  settings.frozen = is_frozen(arguments)
  settings.findings = findings_of(arguments)
  settings.image = config.model.image.to_dict()
  return settings


def encoder_for(arguments: argparse.Namespace, config: ConfigDict, image_px: int) -> Encoder:
  """What --encoder, --step and --seed ask for, of the run of this config; for images of this side.

  Raises UserError where the run cannot be loaded.
  """
  return encoder_of(
    arguments.workdir, config, fresh=arguments.encoder != "run", image_px=image_px,
    seed=arguments.seed, step=arguments.step,
  )  # fmt: skip


def claim(arguments: argparse.Namespace, settings: ConfigDict, encoder: Encoder) -> Workdir:
  """The folder --out, for these settings, encoder and records.

  Raises UserError where it is another's.
  """
  out = Workdir(arguments.out)
  settings.run_step, settings.run_weights = encoder.step, encoder.mark
  try:
    out.claim(settings)
    out.claim_records(arguments.records, records.fingerprint(arguments.records))
  except WorkdirError as error:
    raise UserError(
      str(error).replace("--workdir", "--out").replace("config.data.records", "--records")
    ) from error
  return out


def finish(
  out: Workdir,
  arguments: argparse.Namespace,
  step: int,
  rows: list[results.Row],
  found: ExampleScores,
  task: str,
) -> None:
  """Prints the table, writes example_scores/ and, last of all, evaluation.json: it says that all is done."""
  log.info(tables.table(rows))
  example_scores.write(out.example_scores_of(task), found)
  fingerprint = records.fingerprint(arguments.records)
  results.write(out.evaluation, results.Evaluation(step, rows, {rows[0].data: fingerprint}))


def main(parsed: argparse.Namespace, work: Callable[[argparse.Namespace], object]) -> None:
  """Checks the flags and does the work; one error and exit status 1, or 75 where preempted."""
  configure()
  signal.signal(signal.SIGTERM, preemption.interrupt)
  try:
    check(parsed)
    work(parsed)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  except preemption.Preempted:
    print("preempted; the same command goes on from the last checkpoint", file=sys.stderr)
    raise SystemExit(preemption.EXIT_CODE) from None
