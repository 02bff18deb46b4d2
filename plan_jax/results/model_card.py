"""The model card of an exported run: its architecture, data, results and limits."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import digests, records
from input_pipeline.errors import UserError
from input_pipeline.readers.by_name import FACTS
from plan_jax.results import rows, tables
from plan_jax.runtime.workdir import Workdir

_CARD = """---
library_name: plan_jax
tags:
- chest-x-ray
- phrase-grounding
---

# Word-pixel alignment of chest X-rays and their reports

Pre-trained with plan_jax, method `{method}`: every word of a report has a soft region of the image.

- image: {image}, {px} px, maps of {grid[0]} x {grid[1]}
- text: BERT-style, {text.depth} layers of {text.embed_dim}
- shared space: {embed_dim}
- step {step} of {train.steps}, batches of {train.batch_size}, seed {seed}

## Use

```python
import plan_jax
from plan_jax import export

model = plan_jax.load("THIS_FOLDER")
grounding = model.ground("image.png", "small left effusion")  # or a DICOM, or an array
grounding.map, grounding.score, grounding.boxes(0.5), grounding.overlay()
serve = export.serving("THIS_FOLDER")  # the function of grounding.jax, see config.json "inputs"
```

## Training data

{data}

## Results

{results}

## Limits

- For research. It is no medical device, and was tested for no clinical use.
- It was trained on frontal images of the data above and their reports, and knows their devices,
  patients, language and style of reporting. Elsewhere it has to be evaluated anew.
- A map shows where a phrase finds its like, with its maximum scaled to 1, also where the finding is
  absent. Whether it is there is for the peaks, whose threshold has to be chosen on images of one's
  own.
- Pre-training used no region label: regions are soft, of the grid's resolution, and no outlines.
- The results above hold for their protocol, data and number of examples alone; those of other
  protocols are not comparable.
"""


def text(workdir: Workdir, config: ConfigDict, step: int, grid: tuple[int, int]) -> str:
  """Returns the card as Markdown; `grid` are the rows and columns of the maps."""
  model, image = config.model, config.model.image
  encoder = f"ResNet-{image.depth}, width {image.width:g}, {image.stages} stages, {image.norm} norm"
  if image.name == "vit":
    encoder = (
      f"ViT, {image.vit.depth} layers of {image.vit.embed_dim}, patches of {image.vit.patch_px} px"
    )
  return _CARD.format(
    method=config.alignment.method,
    image=encoder,
    px=model.image_px,
    grid=grid,
    text=model.text,
    embed_dim=model.embed_dim,
    step=step,
    train=config.train,
    seed=config.seed,
    data=_data(workdir, config),
    results=_results(workdir, step),
  )


def _data(workdir: Workdir, config: ConfigDict) -> str:
  synthetic = " (synthetic: nothing here was learned from patients)"
  lines = [f"data set: {config.data.dataset}{synthetic * FACTS[config.data.dataset].synthetic}"]
  if workdir.records_note.is_file():
    lines.append(f"records: fingerprint {workdir.read_records_note()}")
  try:
    images = records.splits(Path(config.data.records or workdir.records))
    lines.append(f"images: {', '.join(f'{count} {split}' for split, count in images.items())}")
  except (UserError, OSError):
    lines.append("images: the records are not at hand to be counted")
  weights = {}
  if config.model.image.weights or config.model.text.weights:
    weights = digests.read_sealed(workdir.weights, "give it back from a copy")
  for name in ("image_encoder", "text_encoder"):
    start = "at random"
    if encoder := weights.get(name):
      start = f"from {encoder['source']}, SHA-256 {encoder['sha256']}"
    lines.append(f"{name} started {start}")
  return "\n".join(f"- {line}" for line in lines)


def _results(workdir: Workdir, step: int) -> str:
  if not workdir.evaluation.is_file():
    return "The run was not evaluated."
  evaluation = rows.read(workdir.evaluation)
  if evaluation.step != step:
    return f"The run was evaluated at step {evaluation.step}, not at this one: no results."
  return (
    "Each table has its task, data and protocol above it; intervals are 95 % bootstraps, the other"
    " columns chance baselines and, of tasks that were learned on the encoder, other encoders.\n\n"
    f"```\n{tables.table(evaluation.rows)}\n```"
  )
