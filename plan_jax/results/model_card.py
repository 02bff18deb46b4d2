"""The model card of an exported run: what it is, what it learned from, how well, and its limits."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import records
from input_pipeline.errors import UserError
from plan_jax.results import rows as results
from plan_jax.runtime.workdir import Workdir

_USE = """```python
from plan_jax import export

model = export.load("THIS_FOLDER")
maps = model.ground([image], ["small left effusion"])  # image: uint8 [H, W]; map: float32 [H, W]
serve = export.serving("THIS_FOLDER")  # the function of grounding.jax, see config.json "inputs"
```"""

_LIMITS = """- For research. It is no medical device, and was tested for no clinical use.
- It was trained on frontal images of the data below and their reports, and knows their devices,
  patients, language and style of reporting. Elsewhere it has to be evaluated anew.
- A map shows where a phrase finds its like, with its maximum scaled to 1, also where the finding is
  absent. Whether it is there is for the peaks, whose threshold has to be chosen on images of one's
  own.
- Pre-training used no region label: regions are soft, of the grid's resolution, and no outlines.
- Figures below hold for their protocol, data and number of units alone; figures of other protocols
  are not comparable."""


def text(workdir: Workdir, config: ConfigDict, step: int, grid: tuple[int, int]) -> str:
  """The card as Markdown.

  Args:
    workdir: of the run.
    config: of the run.
    step: of the checkpoint.
    grid: rows and columns of the maps.
  """
  model, image, words = config.model, config.model.image, config.model.text
  encoder = f"ResNet-{image.depth}, width {image.width:g}, {image.stages} stages, {image.norm} norm"
  if image.name == "vit":
    encoder = (
      f"ViT, {image.vit.depth} layers of {image.vit.embed_dim}, patches of {image.vit.patch_px} px"
    )
  parts = [
    "---\nlibrary_name: plan_jax\ntags:\n- chest-x-ray\n- phrase-grounding\n---",
    "# Word-pixel alignment of chest X-rays and their reports",
    f"Pre-trained with plan_jax, method `{config.alignment.method}`: every word of a report has a"
    f" soft region of the image.\n\n"
    f"- image: {encoder}, {model.image_px} px, maps of {grid[0]} x {grid[1]}\n"
    f"- text: BERT-style, {words.layers} layers of {words.size}\n"
    f"- shared space: {model.embed_dim}\n"
    f"- step {step} of {config.train.steps}, batches of {config.train.batch_size}, seed"
    f" {config.seed}",
    f"## Use\n\n{_USE}",
    f"## Training data\n\n{_data(workdir, config)}",
    f"## Figures\n\n{_figures(workdir, step)}",
    f"## Limits\n\n{_LIMITS}",
  ]
  return "\n\n".join(parts) + "\n"


def _data(workdir: Workdir, config: ConfigDict) -> str:
  told = [f"- data set: {config.data.dataset}"]
  if config.data.dataset == "phantom":
    told[0] += " (synthetic: nothing here was learned from patients)"
  if workdir.records_note.is_file():
    told.append(f"- records: fingerprint {workdir.records_note.read_text().strip()}")
  try:
    images = records.splits(Path(config.data.records or workdir.records))
    told.append(f"- images: {', '.join(f'{count} {split}' for split, count in images.items())}")
  except (UserError, OSError):
    told.append("- images: the records are not at hand to be counted")
  given = json.loads(workdir.weights.read_text()) if workdir.weights.is_file() else {}
  for name in ("image_encoder", "text_encoder"):
    encoder = given.get(name)
    begun = f"from {encoder['source']}, SHA-256 {encoder['sha256']}" if encoder else "at random"
    told.append(f"- {name} started {begun}")
  return "\n".join(told)


def _figures(workdir: Workdir, step: int) -> str:
  if not workdir.evaluation.is_file():
    return "The run was not evaluated."
  found = results.read(workdir.evaluation)
  evaluated, rows = found.step, found.rows
  if evaluated != step:
    return f"The run was evaluated at step {evaluated}, not at this one: no figures."
  return (
    "Each table has its task, data and protocol above it; intervals are 95 % bootstraps, the other"
    " columns floors and, of tasks that were learned on the encoder, other encoders.\n\n"
    f"```\n{results.table(rows)}\n```"
  )
