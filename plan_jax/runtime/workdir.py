"""The folder of a run: its paths, and the run that it belongs to."""

import json
import os
import re
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.locks import is_vacant

# Keys that may differ when a run goes on or is evaluated again: none of them changes what is
# learned. The folder of the records is free too: their fingerprint tells whether they are the same.
FREE = (
  "evaluation",
  "checkpoint",
  "mesh",
  "data.workers",
  "data.threads",
  "data.records",
  "data.features",
  "data.store_features",
  "data.source",
  "data.max_decoded_px",
  "data.max_skipped_fraction",
  "train.log_every_steps",
)

TENSORS = "model.safetensors"  # in an exported folder

ON_OTHER_DATA = "; to evaluate a run on other data: plan-jax evaluate --workdir=RUN --on=FOLDER"


class WorkdirError(UserError):
  """The folder is not fit for this run; the message names key and remedy."""


class Workdir:
  """Paths of a run."""

  def __init__(self, path: str | Path):
    """Raises WorkdirError where the path is none of a folder."""
    if not isinstance(path, str | os.PathLike):
      raise WorkdirError(f"workdir is of type {type(path).__name__}: give the path of a folder")
    self.path = Path(path)
    if re.match(r"\w+:/", str(path)):
      raise WorkdirError(f"{path} must be a folder; a bucket is none: mount a shared disk")
    self.config = self.path / "config.json"
    self.records = self.path / "records"
    self.features = self.path / "features"  # stored ones, of a frozen encoder
    self.records_note = self.path / "records.json"  # their fingerprint
    self.tokenizer = self.path / "tokenizer"
    self.weights = self.path / "weights.json"  # what the encoders started from, if not at random
    self.extended = self.path / "extended.json"  # schedules before the present one, if any
    self.checkpoints = self.path / "checkpoints"
    self.metrics = self.path / "metrics.jsonl"
    self.evaluation = self.path / "evaluation.json"
    self.calibration = self.path / "calibration.json"  # peaks on validation images, of one step
    self.example_scores = self.path / "example_scores"  # the scores behind it, one file a task
    self.report = self.path / "report" / "index.html"
    self.suites = self.path / "suites"  # evaluations by suites, a folder each

  def is_exported(self) -> bool:
    """Tells whether the folder is one that `plan_jax.export` wrote, and no run."""
    return (self.path / TENSORS).is_file() or digests.has_sums(self.path, TENSORS)

  def example_scores_of(self, task: str, name: str = "") -> Path:
    """Gives the file of the scores of a task; `name` is that of an attached evaluation set."""
    return self.example_scores / name / f"{task}.csv"

  def claim(self, config: ConfigDict, *, new: bool = True) -> None:
    """Writes the config of a new run, or checks that the run here has the same.

    Without `new` there must be a run already. The caller has the `locks.lock` of the folder.

    Raises WorkdirError if the folder belongs to a run of another config (naming the keys), or holds
    files of something else.
    """
    if not new:
      self.read_config()
    if not self.config.exists():
      if not is_vacant(self.path):
        raise WorkdirError(
          f"{self.path} is not empty and holds no config.json: name an empty --workdir"
        )
      self.path.mkdir(parents=True, exist_ok=True)
    else:
      differ = differences(self.read_config(), config.to_dict())
      if not differ:
        return
      if self.begun():
        raise WorkdirError(
          f"{self.path} belongs to a run of another config ({differ}): leave out --config to go on"
          " with its own, name another --workdir, or delete this one" + (not new) * ON_OTHER_DATA
        )
      # Nothing was learned yet: a config that was mended replaces the one that failed.
      shutil.rmtree(self.tokenizer, ignore_errors=True)
      self.records_note.unlink(missing_ok=True)
    replace_text(self.config, digests.seal(config.to_dict(), indent=2))

  def refuse_other_baseline(self, config: ConfigDict) -> None:
    """Raises WorkdirError if a run lies here, or another baseline's evaluation.

    The config of a baseline is a run's without training; `claim` would replace both.
    """
    if not self.config.exists():
      return
    before = self.read_config().get("baseline")
    if before is None:
      raise WorkdirError(f"{self.path} belongs to a run: name another --workdir for the baseline")
    differ = differences({"baseline": before}, {"baseline": config.baseline.to_dict()})
    if differ and (self.evaluation.exists() or self.suites.exists()):
      raise WorkdirError(
        f"{self.path} holds the evaluation of another baseline ({differ}): name another --workdir,"
        " or delete this one"
      )

  def begun(self) -> bool:
    """Tells whether there is a checkpoint."""
    return self.newest_step() is not None

  def newest_step(self) -> int | None:
    """Gives the step of the newest checkpoint, None without any; unfinished ones have no number."""
    steps = [int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()]
    return max(steps, default=None)

  def claim_records(self, folder: Path, fingerprint: str) -> None:
    """Notes the records of a new run, or checks that the run here has the same.

    Raises WorkdirError, naming both, where it was trained on others.
    """
    if not self.begun():
      replace_text(self.records_note, digests.seal({"fingerprint": fingerprint}))
    elif (before := self.read_records_note()) != fingerprint:
      raise WorkdirError(
        f"{self.path} was trained on records {before}, {folder} holds {fingerprint}: give back"
        " config.data.records, or name another --workdir"
      )

  def read_records_note(self) -> str:
    """Reads the fingerprint of the run's records. Raises DamagedError."""
    remedy = "give it back from a copy, or name another --workdir"
    return digests.read_sealed(self.records_note, remedy)["fingerprint"]

  def load_config(self) -> ConfigDict:
    """Loads the config that the run was started with; its sequences are tuples, as they were."""
    return ConfigDict(_with_tuples(self.read_config()))

  def load_model_config(self) -> ConfigDict:
    """Loads the config as `load_config`, of a run that has a model of its own.

    Raises WorkdirError also of a folder of an evaluation alone.
    """
    config = self.load_config()
    if "baseline" in config:
      raise WorkdirError(f"{self.path} holds the evaluation of a baseline, and no model to load")
    if "on" in config:
      raise WorkdirError(
        f"{self.path} holds an evaluation of a run on other data, and no model to load: name"
        " the run's own folder"
      )
    return config

  def read_config(self) -> dict:
    """Reads the config that the run was started with, as JSON has it.

    Raises WorkdirError where there is none, DamagedError where it is not as it was written.
    """
    if self.is_exported():
      raise WorkdirError(
        f"{self.path} is an exported folder, which ground, embed, classify and app take: name the"
        " run that it was made of"
      )
    if not self.config.exists():
      raise WorkdirError(
        f"{self.path} holds no run (no config.json): train first, or name another --workdir"
      )
    return digests.read_sealed(self.config, "give it back from a copy, or name another --workdir")


def _with_tuples(value):
  if isinstance(value, dict):
    return {key: _with_tuples(entry) for key, entry in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(before: dict, now: dict) -> str:
  """Lists the keys that differ, but for FREE ones; neither need have gone through JSON."""
  before, now = (flatten(json.loads(json.dumps(config))) for config in (before, now))
  return "; ".join(
    f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} now"
    for key in sorted(before.keys() | now.keys())
    if before.get(key) != now.get(key) and not key.startswith(FREE)
  )


def flatten(tree: dict, prefix: str = "") -> dict:
  """Flattens a nested dict to {"a.b": value}."""
  flat = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
  return flat
