"""Linear probe: how well do a frozen encoder's features tell the findings of a film?

  python -m plan_jax.probe --workdir=runs/a --records=FOLDER --out=runs/a/probe/NAME

Protocol "linear-probe-v1" (task "linear-probe"):

- A film's features are the mean over the pixels of the encoder's last feature map, before any
  projection, batch norm by its running statistics; films are letterboxed and not augmented.
- On them a logistic regression for every finding (`logistic`), learned from the training films, or
  those of a share of their patients (--fraction; a smaller share lies within a larger one). Labels
  of -1 and films without a label are left out and counted. The findings are those that the whole
  training split has both present and absent; one of which the share has only one kind gets the same
  score on every film (AUC .5), and that is said: all shares are judged on the same units.
- One penalty for all findings, the best of `PENALTIES` by macro AUC on the validation split; of
  equal ones the strongest. Without a validation split it is `DEFAULT`.
- Test films are scored as in "zero-shot-v1": AUC, average precision, and with the threshold of the
  highest F1 on validation (.5 without it) F1, accuracy, MCC, sensitivity, specificity; by finding,
  macro and view; floors `chance` and `constant`; 95 % bootstrap intervals of patients.

--encoder=random has fresh weights of the same architecture: what the architecture alone gives. Into
--out go evaluation.json, units/ (`python -m plan_jax.compare OUT OUT` compares two) and probe.npz
(weights, bias, mean, deviation, findings).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.selection_builders import subset
from plan_jax import logistic
from plan_jax.downstream import data_name, encoder_of
from plan_jax.evaluators import auc, bootstrap, classification, labelled, results, units
from plan_jax.evaluators.bootstrap import MACRO
from plan_jax.evaluators.finding_figures import finding_rows, view_rows
from plan_jax.evaluators.labelled import Films
from plan_jax.evaluators.units import SCORED, Units, unit_id
from plan_jax.logistic import Logistic
from plan_jax.mesh import batch_sharding, everywhere, make_mesh, spread
from plan_jax.models.plan import image_encoder
from plan_jax.reporting import say
from plan_jax.workdir import Workdir, WorkdirError

TASK, PROTOCOL = "linear-probe", "linear-probe-v1"
# Strongest first.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5)
DEFAULT = 0.01  # without validation films
_BATCH = 64


class Features:
  """An image encoder as what makes a vector of a film; see `evaluators.retrieval.ImageEmbedder`."""

  def __init__(self, encoder, weights: dict, image_px: int):
    """`weights`: {"params", "batch_stats"}; `image_px`: side of the square."""
    self._mesh = make_mesh(-1, 1)
    self._image_px, self._weights = image_px, weights
    self._batch = -(-_BATCH // self._mesh.size) * self._mesh.size

    def pooled(weights, image):
      return encoder.apply(weights, image).astype(jnp.float32).mean((1, 2))

    whole = everywhere(self._mesh)
    self._pooled = jax.jit(
      pooled, in_shardings=(whole, batch_sharding(self._mesh)), out_shardings=whole
    )

  def embed_images(self, films: list[np.ndarray]) -> np.ndarray:
    """Films uint8 [H, W], of any size, to float32 [N, C]."""
    side, out = self._image_px, []
    for start in range(0, len(films), self._batch):
      some = films[start : start + self._batch]
      fitted = np.zeros((self._batch, side, side, 1), np.float32)
      for i, film in enumerate(some):
        fitted[i, ..., 0] = images.fit(film, side)
      out.append(np.asarray(self._pooled(self._weights, spread(fitted, self._mesh)))[: len(some)])
    return np.concatenate(out)


def probe(arguments: argparse.Namespace) -> list[results.Row]:
  """Computes features, fits, evaluates and writes; the rows of the evaluation.

  Raises UserError where run, records or --out are not fit.
  """
  run, out = Workdir(arguments.workdir), Workdir(arguments.out)
  if out.evaluation.exists():
    raise UserError(f"{out.path} holds an evaluation already: name another --out, or delete it")
  config = ConfigDict(run.read_config())
  there = records.splits(arguments.records)
  if not there.get("train") or not there.get("test"):
    raise UserError(f"{arguments.records} needs a train and a test split; it has {there}")
  side = arguments.image_px or config.model.image_px
  stride = image_encoder(config.model.image).output_stride
  if side % stride:
    raise UserError(f"--image_px={side} is no multiple of {stride}, the stride of the encoder")
  encoder, weights, step = encoder_of(
    arguments.workdir, config, fresh=arguments.encoder == "random", image_px=side,
    seed=arguments.seed,
  )  # fmt: skip
  settings = ConfigDict({key: getattr(arguments, key) for key in ("encoder", "fraction", "seed")})
  settings.image_px, settings.run_step, settings.image = side, step, config.model.image.to_dict()
  settings.findings = tuple(filter(None, arguments.findings.split(",")))
  settings.records = records.fingerprint(arguments.records)
  try:
    out.claim(settings)
  except WorkdirError as error:
    raise UserError(str(error).replace("--workdir", "--out")) from error
  features = Features(encoder, weights, side)
  findings, places = _training(settings, arguments.records)
  films = _films(features, arguments.records, "train", places)
  validation = None
  if there.get("validation"):
    validation = _films(features, arguments.records, "validation")
  else:
    say(f"no validation split: the penalty is {DEFAULT}, the threshold .5")
  test = _films(features, arguments.records, "test")
  chosen = choose(films, validation, findings)
  found, views = scored(chosen, test, findings)
  if found is None:
    raise UserError(
      f"no finding of {', '.join(findings)} is both present and absent in the test split of"
      f" {arguments.records}"
    )
  data = data_name(arguments.records, "test")
  rows = probe_rows(
    found,
    views,
    data=data,
    validation=validation and scored(chosen, validation, findings)[0],
    resamples=arguments.resamples,
    seed=arguments.seed,
  )
  say(results.table(rows))
  np.savez(
    out.path / "probe.npz", weights=chosen.weights, bias=chosen.bias, mean=chosen.mean,
    deviation=chosen.deviation, findings=np.array(findings),
  )  # fmt: skip
  units.write(out.units_of(TASK), found)
  results.write(out.evaluation, results.Evaluation(step, rows, {data: settings.records}))
  return rows


def table_of(films: Films, findings: list[str]) -> np.ndarray:
  """Labels int [N, K]: 1, 0, or -1 where uncertain or absent."""
  return np.array([[some.get(name, -1) for name in findings] for some in films.labels], int)


def scored(model: Logistic, films: Films, findings: list[str]) -> tuple[Units | None, list[str]]:
  """Scores of the films by the findings that are both present and absent, and the units' views.

  None where there is no such finding.
  """
  scores, both = model.scores(films.vectors), films.findings()[0]
  ids, groups, patients, views, values = [], [], [], [], []
  for k, name in enumerate(findings):
    if name not in both:
      continue
    places, present = films.labelled(name)
    ids += [unit_id(films.ids[i], name) for i in places]
    groups += [name] * len(places)
    patients += [films.patients[i] for i in places]
    views += [films.views[i] for i in places]
    values.append(np.stack([scores[places, k], present], axis=1))
  if not ids:
    return None, []
  return Units(ids, groups, patients, SCORED, np.concatenate(values)), views


def probe_rows(
  found: Units,
  views: list[str],
  *,
  data: str,
  validation: Units | None,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[results.Row]:
  """Rows of the protocol; thresholds are those of the highest F1 on `validation`, .5 for None."""
  head, draws = (TASK, PROTOCOL, data), {"resamples": resamples, "seed": seed}
  thresholds, suffix, behind = dict.fromkeys(found.groups, 0.5), " at .5", []
  if validation is not None:
    thresholds, suffix = {}, ""
    groups = np.array(validation.groups)
    for name in dict.fromkeys(validation.groups):
      score, present = validation.values[groups == name].T
      thresholds[name] = classification.best_threshold(score, present == 1)
      behind.append((name, len(score)))
  if without := sorted(set(found.groups) - set(thresholds)):
    say(f"{TASK}: of one kind in the validation split, so no threshold: {', '.join(without)}")
  rows = finding_rows(head, found, thresholds, draws, suffix=suffix)
  rows += [
    results.Row(*head, name, "threshold", results.RUN, thresholds[name], np.nan, np.nan, n)
    for name, n in behind
    if name in found.groups
  ]
  return rows + view_rows(head, found, views, draws)


def _training(settings: ConfigDict, folder: Path) -> tuple[list[str], list[int]]:
  """The findings to learn, and the places of the films of the share of patients."""
  source = records.RecordSource(folder, "train")
  bar = tqdm(range(len(source)), desc="labels", unit="film", mininterval=1)
  studies = [(study.patient_id, study.labels) for study in (source[i] for i in bar)]
  kinds = {pair for _, labels in studies for pair in labels.items()}
  both = sorted(name for name, value in kinds if value == 1 and (name, 0) in kinds)
  if missing := sorted(set(settings.findings) - set(both)):
    raise UserError(
      f"--findings: {', '.join(missing)} not both present and absent in the training films of"
      f" {folder} (there: {', '.join(both) or 'none'})"
    )
  if not both:
    raise UserError(f"{folder}: no finding is both present and absent in the training films")
  kept = subset((patient for patient, _ in studies), settings.fraction, settings.seed)
  places = [i for i, (patient, _) in enumerate(studies) if patient in kept]
  say(f"training on {len(places)} films of {len(kept)} patients")
  return list(settings.findings) or both, places


def _films(
  features: Features, folder: Path, split: str, places: Sequence[int] | None = None
) -> Films:
  source = records.RecordSource(folder, split)
  places = range(len(source)) if places is None else places
  bar = tqdm(places, desc=f"features, {split}", unit="film", mininterval=1)
  films = labelled.embed(features, (source[i] for i in bar), f"{TASK}, {split}", batch=_BATCH)
  if films is None:
    raise UserError(
      f"{folder}: none of the {len(places)} films of the {split} split has a label of 1 or 0"
    )
  return films


def fit(films: Films, findings: Sequence[str], penalties: Sequence[float]) -> list[Logistic]:
  """A regression for each penalty; a finding of one kind only gets no weight, and that is said."""
  labels = table_of(films, findings)
  learned = np.flatnonzero((labels == 1).any(0) & (labels == 0).any(0))
  if alone := [name for k, name in enumerate(findings) if k not in learned]:
    say(
      f"{TASK}: the training films have only one kind of {', '.join(alone)}: the same score for all"
    )
  if not len(learned):
    raise UserError("no finding is both present and absent in these films: raise --fraction")
  out = []
  for some in logistic.fit(films.vectors, labels[:, learned], penalties):
    weights, bias = np.zeros((len(some.mean), len(findings))), np.zeros(len(findings))
    weights[:, learned], bias[learned] = some.weights, some.bias
    out.append(Logistic(some.mean, some.deviation, weights, bias))
  return out


def choose(films: Films, validation: Films | None, findings: list[str]) -> Logistic:
  """The regression of the best penalty; see the top of this file."""
  if validation is None:
    return fit(films, findings, (DEFAULT,))[0]
  fitted = fit(films, findings, PENALTIES)
  areas = []
  for model in fitted:
    found, _ = scored(model, validation, findings)
    if found is None:
      raise UserError("no finding is both present and absent in the validation split")
    score, present = found.values.T
    who = found.groups, found.patients
    areas.append(auc.grouped(score, present == 1, *who, resamples=0)[MACRO].value)
  best = int(np.argmax(areas))
  say(f"penalty {PENALTIES[best]:g}: macro AUC {areas[best]:.3f} on the validation split")
  return fitted[best]


def parser() -> argparse.ArgumentParser:
  """The command line."""
  out = argparse.ArgumentParser(
    prog="python -m plan_jax.probe",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = out.add_argument
  add("--workdir", type=Path, required=True, help="of the run whose encoder it is")
  add("--encoder", choices=("run", "random"), default="run")
  add("--records", type=Path, required=True, help="folder of records with labels")
  add("--out", type=Path, required=True, help="folder of the probe")
  add("--findings", default="", help="names with commas between (default: all of both kinds)")
  add("--fraction", type=float, default=1.0, help="of the training patients: 0.01, 0.1, 1")
  add("--image_px", type=int, default=0, help="side of the square film (default: the run's)")
  add("--resamples", type=int, default=bootstrap.RESAMPLES, help="bootstrap draws")
  add("--seed", type=int, default=0, help="of the share, fresh weights and bootstrap draws")
  return out


def main() -> None:
  """The command line: the table, or one error and exit status 1."""
  arguments = parser().parse_args()
  if not 0 < arguments.fraction <= 1:
    raise SystemExit(f"error: --fraction={arguments.fraction:g} must be above 0, and 1 at most")
  try:
    probe(arguments)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
  main()
