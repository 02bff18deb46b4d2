"""The model card of an exported run: its architecture, data, results and limits."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import pages, records
from input_pipeline.errors import UserError
from plan_jax.results import rows, tables
from plan_jax.runtime.workdir import Workdir


def text(workdir: Workdir, config: ConfigDict, step: int, grid: tuple[int, int]) -> str:
  """Returns the card as Markdown.

  Args:
    workdir: of the run.
    config: of the run.
    step: of the checkpoint.
    grid: rows and columns of the maps.
  """
  image = config.model.image
  encoder = f"ResNet-{image.depth}, width {image.width:g}, {image.stages} stages, {image.norm} norm"
  if image.name == "vit":
    encoder = (
      f"ViT, {image.vit.depth} layers of {image.vit.embed_dim}, patches of {image.vit.patch_px} px"
    )
  try:
    images = records.splits(Path(config.data.records or workdir.records))
  except (UserError, OSError):
    images = {}
  evaluation = rows.read(workdir.evaluation) if workdir.evaluation.is_file() else None
  note = workdir.records_note
  template = pages.environment(Path(__file__).parent).get_template("model_card.md")
  return template.render(
    config=config,
    step=step,
    grid=grid,
    image_encoder=encoder,
    synthetic=config.data.dataset == "phantom",
    fingerprint=note.read_text().strip() if note.is_file() else "",
    images=images,
    weights=json.loads(workdir.weights.read_text()) if workdir.weights.is_file() else {},
    evaluated=evaluation.step if evaluation else None,
    table=tables.table(evaluation.rows) if evaluation else "",
  )
