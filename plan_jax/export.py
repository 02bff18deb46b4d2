"""A trained run as a folder to hand on, and back: python -m plan_jax.export --workdir=W --out=O.

The folder has the form of a Hugging Face repository:

  model.safetensors    every parameter and running statistic, float32, "image_encoder.stem.kernel"
  config.json          the run's config, the step, and the inputs of the function
  tokenizer.json, ...  the vocabulary
  grounding.jax        phrase grounding as a function of weights and batch (jax.export)
  README.md            the model card: data, figures with their protocols, limits
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError
from input_pipeline.files import replace_text
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.alignment.methods.base import Alignment
from plan_jax.inference import load as grounder
from plan_jax.models.two_towers import TwoTowers, build
from plan_jax.models.weights.files import WeightsError, read
from plan_jax.results import model_card
from plan_jax.runtime.logging import log
from plan_jax.runtime.workdir import Workdir
from plan_jax.training.assembly import assemble
from plan_jax.training.state import TrainState

PLATFORMS = ("cpu", "cuda", "tpu")  # the function is lowered for each of them
_TENSORS, _CONFIG, _FUNCTION = "model.safetensors", "config.json", "grounding.jax"


def write(workdir: Workdir, out: str | Path, *, step: int | None = None) -> Path:
  """Exports a checkpoint of a run; `out` appears when it is whole.

  Args:
    workdir: of a run that has a checkpoint.
    out: folder to be made.
    step: of the checkpoint; by default as config.checkpoint.evaluate says.

  Raises UserError where `out` is taken, or the run has no such checkpoint.
  """
  out = Path(out)
  if out.exists():
    raise UserError(f"--out={out} exists: name a new folder, or delete it")
  model = grounder.load(workdir, step=step)
  config = ConfigDict(workdir.read_config())
  tokenizer = Tokenizer(workdir.tokenizer)
  weights = _flat(jax.device_get(model.variables))
  inputs = _inputs(config)
  exported = _export(build(config.model, tokenizer.vocabulary_size), model, config, weights, inputs)
  temporary = out.with_name(out.name + ".tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  shutil.copytree(workdir.tokenizer, temporary)
  (temporary / _TENSORS).write_bytes(safetensors.save(weights))
  (temporary / _FUNCTION).write_bytes(exported.serialize())
  about = {"library": "plan_jax", "step": model.step, "run": config.to_dict(), "inputs": inputs}
  replace_text(temporary / _CONFIG, json.dumps(about, indent=2) + "\n")
  replace_text(temporary / "README.md", model_card.text(workdir, config, model.step, model.grid))
  os.replace(temporary, out)
  return out


def load(folder: str | Path) -> grounder.Grounder:
  """The model of an exported folder, as grounder.load gives that of a run: the same bits.

  Raises WeightsError, naming the file, where the folder is not whole.
  """
  folder = Path(folder)
  about = _about(folder)
  config = ConfigDict(about["run"])
  config.mesh = {"data": -1, "fsdp": 1}
  tokenizer = Tokenizer(folder)
  parts = assemble(config, tokenizer)
  wanted = parts.abstract_state
  names = _flat({"params": wanted.params, "batch_stats": wanted.batch_stats})
  tensors = read(folder / _TENSORS).tensors
  wrong = [f"missing {name}" for name in names if name not in tensors]
  wrong += [f"unexpected {name}" for name in tensors if name not in names]
  wrong += [
    f"{name} is {tensors[name].shape}, not {x.shape}"
    for name, x in names.items()
    if name in tensors and tensors[name].shape != x.shape
  ]
  if wrong:
    raise WeightsError(f"{folder / _TENSORS} does not fit its {_CONFIG}: {'; '.join(wrong)}")

  def tree(like):
    flat = {path: tensors[".".join(path)] for path in flatten_dict(like)}
    return unflatten_dict(flat)

  state = TrainState(
    step=np.int32(about["step"]),
    params=jax.device_put(tree(wanted.params), parts.shardings.params),
    batch_stats=jax.device_put(tree(wanted.batch_stats), parts.shardings.batch_stats),
    opt_state=(),
    ema=None,
  )
  return grounder.of_state(parts, state, tokenizer)


def serving(folder: str | Path) -> Callable[[dict], dict]:
  """The exported function with its weights: {"map", "peak"} of a batch.

  It wants the arrays that config.json names under "inputs", any number of pairs b: "image" is the
  image letterboxed to the square, in [0, 1]; the others are of Tokenizer.encode. It gives "map"
  [b, rows, columns], maximum 1, and "peak" [b], as Grounder.ground_on_grid and peaks do, of
  float32 arrays; products are as exact as the device's default. The file needs only jax to run; see
  docs/weights.md.

  Raises WeightsError where the folder is not whole.
  """
  folder = Path(folder)
  _about(folder)
  weights = jax.device_put(read(folder / _TENSORS).tensors)
  function = jax_export.deserialize(bytearray((folder / _FUNCTION).read_bytes()))
  return lambda batch: function.call(weights, {name: jnp.asarray(x) for name, x in batch.items()})


def _about(folder: Path) -> dict:
  for name in (_CONFIG, _TENSORS, _FUNCTION):
    if not (folder / name).is_file():
      raise WeightsError(f"{folder} holds no {name}: it is no folder of plan_jax.export")
  return json.loads((folder / _CONFIG).read_text())


def _flat(variables: dict) -> dict:
  """{"image_encoder.stem.kernel": leaf}; parameters and statistics never share a name."""
  return {
    ".".join(path): leaf for tree in variables.values() for path, leaf in flatten_dict(tree).items()
  }


def _inputs(config: ConfigDict) -> dict[str, dict]:
  """Shape and dtype of each input; "b" stands for any number of pairs."""
  side, length, words = (
    config.model.image_px, config.evaluation.max_tokens, config.evaluation.max_words
  )  # fmt: skip
  tokens = {"shape": ["b", length], "dtype": "int32"}
  names = ("tokens", "word_index", "sentence_index", "position")
  return {
    "image": {"shape": ["b", side, side, 1], "dtype": "float32"},
    **{name: tokens for name in names},
    "word_mask": {"shape": ["b", words], "dtype": "bool"},
  }


def _export(
  plan: TwoTowers, model: grounder.Grounder, config: ConfigDict, weights: dict, inputs: dict
) -> jax_export.Exported:
  # Half precision would tie it to the devices that have it.
  plan = plan.clone(dtype=jnp.float32)
  stage, alignment = model.stage, Alignment(**config.alignment.to_dict() | {"dtype": "float32"})
  paths = {
    part: [".".join(path) for path in flatten_dict(tree)] for part, tree in model.variables.items()
  }

  def ground(weights: dict, batch: dict) -> dict:
    variables = {
      part: unflatten_dict({name: weights[name] for name in names}, sep=".")
      for part, names in paths.items()
    }
    image = plan.apply(variables, batch["image"], method=plan.embed_images)
    text = plan.apply(variables, batch, method=plan.embed_texts)
    maps, similar = jax.vmap(lambda i, t: grounder.ground_pair(i, t, stage, alignment))(image, text)
    top = maps.max(-1, keepdims=True)
    maps = maps / jnp.where(top > 0, top, 1)
    return {"map": maps.reshape(maps.shape[0], *model.grid), "peak": similar.max(-1)}

  (b,) = jax_export.symbolic_shape("b")
  batch = {
    name: jax.ShapeDtypeStruct((b, *x["shape"][1:]), jnp.dtype(x["dtype"]))
    for name, x in inputs.items()
  }
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
  return jax_export.export(jax.jit(ground), platforms=PLATFORMS)(shapes, batch)


def main() -> None:
  """The command line: exit status 1 with one line for an error."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--out", required=True, help="folder to be made")
  parser.add_argument("--step", type=int, help="of a checkpoint; by default the run's own choice")
  options = parser.parse_args()
  try:
    log.info(f"exported to {write(Workdir(options.workdir), options.out, step=options.step)}")
  except UserError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
