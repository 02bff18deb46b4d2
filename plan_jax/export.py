"""A run as a folder to share, in the form of a Hugging Face repository.

  plan-jax export --workdir=runs/a --out=exported

  model.safetensors    every parameter and running statistic, float32, "image_encoder.stem.kernel"
  config.json          the run's config, the step, and the inputs of the function
  tokenizer.json, ...  the vocabulary
  calibration.json     peaks on validation images, where the run was evaluated at this step
  grounding.jax        phrase grounding as a function of weights and batch (jax.export)
  README.md            the model card: data, metrics with their protocols, limits
  SHA256SUMS           of all but the card; `plan_jax.load` and `serving` check them

In Python:

  model = plan_jax.load("exported")  # the Predictor, as of the run
  serve = export.serving("exported")  # batch -> {"map", "peak"}
"""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export as jax_export
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from input_pipeline import digests
from input_pipeline.errors import UserError
from input_pipeline.files import replace_text, replacing
from input_pipeline.terminal import escape_lines
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment.curriculum import Stage
from plan_jax.inference import calibration, exported
from plan_jax.inference.grounding import ground_pair
from plan_jax.inference.load import load as load_run
from plan_jax.inference.load import load_tokenizer
from plan_jax.inference.run_spec import run_spec
from plan_jax.models import lora
from plan_jax.models.two_towers import build
from plan_jax.models.weights.files import read_safetensors
from plan_jax.results import model_card
from plan_jax.runtime.workdir import TENSORS, Workdir

PLATFORMS = ("cpu", "cuda", "tpu")  # the function is lowered for each of them
_CARD = "README.md"  # a text of its own, which may be edited
_FUNCTION = "grounding.jax"


def write(workdir: Workdir, out: str | Path, *, step: int | None = None) -> Path:
  """Exports a checkpoint of a run; `out` appears when it is whole.

  Args:
    workdir: of a run that has a checkpoint.
    out: new folder.
    step: of the checkpoint; by default as config.checkpoint.evaluate says.

  Raises:
    UserError: `out` exists or cannot be written, the run has no such checkpoint, or a file of it is
      not as it was written.
  """
  out = Path(out)
  if out.exists():
    raise UserError(f"--out={out} exists: name a new folder, or delete it")
  with replacing(out) as temporary:
    temporary.mkdir()  # before the work: where nothing can be written, it is in vain
    model = load_run(workdir, step=step)
    variables = jax.device_get(model.variables)
    variables |= {"params": lora.merged(variables["params"])}
    config = workdir.load_config()
    merged = ConfigDict(config.to_dict())
    merged.model.image.update(lora_rank=0, lora_blocks=0)
    inputs = _inputs(config)
    function = _export(variables, model.stage, merged, load_tokenizer(workdir), inputs)
    about = {"library": "plan_jax", "step": model.step, "run": merged.to_dict(), "inputs": inputs}
    _, *grid = function.out_avals[0].shape  # of "map"
    card = model_card.text(workdir, config, model.step, tuple(grid))  # with what the run learned
    shutil.copytree(workdir.tokenizer, temporary, dirs_exist_ok=True)
    tensors = safetensors.save(exported.flat(variables))
    (temporary / TENSORS).write_bytes(tensors)
    (temporary / _FUNCTION).write_bytes(function.serialize())
    if model.calibration:
      calibration.write(temporary / workdir.calibration.name, model.calibration)
    replace_text(temporary / exported.CONFIG, json.dumps(about, indent=2) + "\n")
    replace_text(temporary / _CARD, escape_lines(card))
    digests.write_sums(temporary, without=(_CARD,))
  return out


def serving(folder: str | Path) -> Callable[[dict], dict]:
  """Loads the exported function with its weights: batch -> {"map", "peak"}.

  The batch has the arrays that config.json names under "inputs", for any number of pairs b: "image"
  is letterboxed to the square, in [0, 1]; the others are of Tokenizer.encode. "map" [b, rows,
  columns], maximum 1, and "peak" [b] are those of Predictor.maps_on_grid and peaks, float32;
  products are as exact as the device's default. The file needs only jax to run, see
  docs/weights.md.

  Raises:
    DamagedError: the folder is not whole, or not as it was written; the message names the file.
    UserError: `folder` is no path.
  """
  if not isinstance(folder, str | os.PathLike):
    raise UserError(f"folder is of type {type(folder).__name__}: give the path of an exported one")
  folder = Path(folder)
  exported.check(folder)
  weights = jax.device_put(read_safetensors(folder / TENSORS))
  function = jax_export.deserialize(bytearray((folder / _FUNCTION).read_bytes()))
  return lambda batch: function.call(weights, {name: jnp.asarray(x) for name, x in batch.items()})


def _inputs(config: ConfigDict) -> dict[str, dict]:
  """Shape and dtype of each input; "b" stands for any number of pairs."""
  side, evaluation = config.model.image_px, config.evaluation
  tokens = {"shape": ["b", evaluation.max_tokens], "dtype": "int32"}
  names = ("tokens", "word_index", "sentence_index", "position")
  return {
    "image": {"shape": ["b", side, side, 1], "dtype": "float32"},
    **{name: tokens for name in names},
    "word_mask": {"shape": ["b", evaluation.max_words], "dtype": "bool"},
  }


def _export(
  variables: dict, stage: Stage, config: ConfigDict, tokenizer: Tokenizer, inputs: dict
) -> jax_export.Exported:
  # Half precision would tie it to the devices that have it.
  config = ConfigDict(config.to_dict())
  config.alignment.dtype = "float32"
  network = build(config.model, tokenizer.vocabulary_size).clone(dtype=jnp.float32)
  spec = run_spec(network, tokenizer, config)
  ground_pairs = jax.vmap(partial(ground_pair, spec.attend), (None, 0, 0, None))
  weights = exported.flat(variables)
  names = {part: list(exported.flat({part: tree})) for part, tree in variables.items()}

  def ground(weights: dict, batch: dict) -> dict:
    variables = {
      part: unflatten_dict({name: weights[name] for name in names[part]}, sep=".") for part in names
    }
    image = spec.embed_images(variables, batch["image"])
    text = spec.embed_texts(variables, batch)
    maps, similarity = ground_pairs(variables, image, text, stage)
    top = maps.max(-1, keepdims=True)
    maps = maps / jnp.where(top > 0, top, 1)
    return {"map": spec.on_grid(maps), "peak": similarity.max(-1)}

  (b,) = jax_export.symbolic_shape("b")
  batch = {
    name: jax.ShapeDtypeStruct((b, *x["shape"][1:]), jnp.dtype(x["dtype"]))
    for name, x in inputs.items()
  }
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
  return jax_export.export(jax.jit(ground), platforms=PLATFORMS)(shapes, batch)
