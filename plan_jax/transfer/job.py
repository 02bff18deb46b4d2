"""A job: one task, one encoder, one folder of records, and the folder of what is learned."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import digests, records
from input_pipeline.errors import UserError
from plan_jax.inference.load import of_this_version
from plan_jax.models.config import ModelConfig
from plan_jax.models.two_towers import image_encoder
from plan_jax.results import example_scores, tables
from plan_jax.results import rows as results
from plan_jax.results.example_scores import ExampleScores
from plan_jax.runtime.logging import log
from plan_jax.runtime.mesh import make_mesh
from plan_jax.runtime.workdir import Workdir
from plan_jax.transfer.encoder import Encoder, fresh_encoder, run_encoder
from plan_jax.transfer.settings import Settings

# Settings that may differ where a job goes on: none of them changes what is learned.
_FREE = {"workdir", "records", "out", "step", "resamples", "compatibility"}


@dataclass(frozen=True)
class Job:
  """The inputs of a task.

  Attributes:
    settings: of the task; its image side is settled.
    encoder: to start from.
    out: claimed folder of what is learned.
    mesh: of the devices that share each batch.
  """

  settings: Settings
  encoder: Encoder
  out: Workdir
  mesh: Mesh

  def source(self, split: str, where: str | None = None) -> records.RecordSource:
    """Returns the examples of a split, all or those with `where`."""
    return records.RecordSource(self.settings.records, split, where=where)

  def data(self, split: str) -> str:
    """Returns the name of a split of the records, for rows."""
    info = json.loads((self.settings.records / "dataset_info.json").read_text())
    return f"{info['name']}/{split}"

  def finish(self, step: int, rows: list[results.Row], scores: ExampleScores) -> None:
    """Logs the table and writes example_scores/ and, as a sign that all is done, evaluation.json.

    All rows are of one task and data.
    """
    log.info(tables.table(rows))
    example_scores.write(self.out.example_scores_of(rows[0].task), scores)
    digests.write_sums(self.out.example_scores)
    data = {rows[0].data: records.fingerprint(self.settings.records)}
    results.write(self.out.evaluation, results.Evaluation(step, rows, data))


def start(settings: Settings) -> Job:
  """Loads the encoder, or makes a fresh one, and claims the folder --out.

  Raises UserError where run, records or --out are not fit, or the image's side is no multiple of
  the encoder's stride and of the head's.
  """
  splits = records.splits(settings.records)
  if not splits.get("train") or not splits.get("test"):
    raise UserError(f"{settings.records} needs a train and a test split; it has {splits}")
  out = Workdir(settings.out)
  if out.evaluation.exists() and not out.begun():  # without a checkpoint, whose it is is not known
    raise UserError(f"{settings.out} holds an evaluation already: name another --out")
  config = Workdir(settings.workdir).load_model_config()
  settings = dataclasses.replace(settings, image_px=settings.image_px or config.model.image_px)
  with of_this_version(Workdir(settings.workdir)):
    ModelConfig.read_at("model", config.model.to_dict())
  stride = math.lcm(settings.STRIDE, image_encoder(config.model.image).output_stride)
  if settings.image_px % stride:
    raise UserError(f"--image_px={settings.image_px} is no multiple of {stride}")
  if settings.encoder == "run":
    encoder = run_encoder(settings.workdir, config, step=settings.step)
  else:
    encoder = fresh_encoder(config, image_px=settings.image_px, seed=settings.seed)
  _claim(out, settings, config, encoder)
  return Job(settings, encoder, out, make_mesh(-1, 1))


def _claim(out: Workdir, settings: Settings, config: ConfigDict, encoder: Encoder) -> None:
  claimed = {"task": settings.TASK, "image": config.model.image.to_dict()}
  claimed |= {"run_step": encoder.step, "run_weights": encoder.fingerprint}
  values = dataclasses.asdict(settings)
  claimed |= {name: value for name, value in values.items() if name not in _FREE}
  folder: Path = settings.records
  try:
    out.claim(ConfigDict(claimed))
    out.claim_records(folder, records.fingerprint(folder))
  except UserError as error:
    raise UserError(
      str(error).replace("--workdir", "--out").replace("config.data.records", "--records")
    ) from error
