"""Training from stored features, beside encoding each time: python -m benchmarks.stored_features.

Steps of configs/frozen.py, from the records to the update, on the same images and with the same
texts. The two take turns in one process; before each turn those batches are used up that the loader
has had the time to prepare. A turn's ratio is that of its two rates. The encoder is a DINOv2-S of
random numbers unless --weights names a folder, whose sizes and image side then hold.

  python -m benchmarks.stored_features --json=out.json
  python -m benchmarks.stored_features --weights=/models/dinov2-small --records=runs/mine/records
  python -m benchmarks.stored_features --predict=227000          # by count, nothing is run
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors import numpy as safetensors
from tabulate import tabulate

from benchmarks.loader import draw
from configs import frozen
from input_pipeline import records
from input_pipeline.command_line import at_least
from plan_jax import train
from plan_jax.models.two_towers import image_encoder
from plan_jax.runtime.mesh import to_global
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import features, pretrained
from plan_jax.training.assembly import assemble
from plan_jax.training.step import StagedStep

_SMALL = dict(variant="dinov2", embed_dim=384, num_heads=6, mlp_dim=1536, patch_px=14, grid=16)
_BASE = dict(variant="dinov2", embed_dim=768, num_heads=12, mlp_dim=3072, patch_px=14, grid=37)
# GFLOP/s of a ViT-B/16 forward at 224 px: tables of docs/benchmarks/h100.md and docs/benchmarks.md.
_RATES = {"an H100": 239_277, "two CPU cores": 121}


def config(weights: str, batch: int, **text: int) -> ConfigDict:
  """Configures the training; without `weights` the encoder is a DINOv2-S at 224 px."""
  made = frozen.get_config()
  made.model.image.weights = weights
  made.model.image.vit.update(_SMALL)
  made.model.image_px = 224
  made.data.flip_fraction = 0.0  # mirror images would be stored too
  made.train.batch_size = batch
  made.text.update(text)
  return made


def count(made: ConfigDict) -> tuple[int, float]:
  """Counts the bytes that are stored of an image, and the FLOP of the products that make them.

  A block has four products of its width with its width, two with the perceptron's, and two of all
  places with all places.
  """
  side, vit = made.model.image_px, made.model.image.vit
  image = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
  encoder = image_encoder(made.model.image)
  features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
  patches, width = (side // vit.patch_px) ** 2, vit.embed_dim
  places = patches + 1 + vit.registers
  of_places = 2 * places * width * (4 * width + 2 * vit.mlp_dim) + 4 * places**2 * width
  of_patches = 2 * patches * vit.patch_px**2 * width
  blocks = max(vit.layers, default=vit.depth)
  return 2 * math.prod(features.shape[1:]), float(of_patches + blocks * of_places)


def predict(images: int) -> None:
  """Prints what storing so many images takes: disk, and hours of the encoder alone."""
  print("predicted: images x bytes; images x FLOP / (FLOP a second of a ViT-B/16)\n")
  rows = []
  for name, sizes, side in (("DINOv2-S", _SMALL, 224), ("DINOv2-B (RAD-DINO)", _BASE, 518)):
    made = config("", 1)
    made.model.image.vit.update(sizes)
    made.model.image_px = side
    stored, flops = count(made)
    hours = (f"{images * flops / (3.6e12 * rate):,.3f}" for rate in _RATES.values())
    values = f"{stored / 1e3:,.0f}", f"{images * stored / 1e9:,.0f}", f"{flops / 1e9:.1f}"
    rows.append((f"{name}, block {made.model.image.vit.layers[-1]}, {side} px", *values, *hours))
  heads = ["kB an image", f"GB of {images:,}", "GFLOP an image", *(f"hours of {x}" for x in _RATES)]
  print(tabulate(rows, ["", *heads], tablefmt="github", disable_numparse=True))


def draw_weights(made: ConfigDict, path: Path) -> None:
  """Writes random weights of the image encoder, and names them in the config."""
  model, side = image_encoder(made.model.image), made.model.image_px
  image = jax.numpy.zeros((1, side, side, 1))
  params = jax.jit(model.init)(jax.random.key(0), image)["params"]
  flat = flatten_dict(jax.device_get(params), sep=".")
  safetensors.save_file({f"image_encoder.{name}": x for name, x in flat.items()}, path)
  made.model.image.weights = str(path)


def trainer(made: ConfigDict, words, source) -> Callable[[int], float]:
  """Builds a function that trains so many steps, and gives its images a second."""
  parts = assemble(made, words)
  encoders = {"image_encoder": pretrained.load_encoders(made.model)["image_encoder"]}
  state, step = parts.with_encoders(parts.initial_state(), encoders), StagedStep(parts)
  batches = train.make_batches(made, words, source, 0)

  def work(steps: int) -> None:
    nonlocal state
    for _ in range(steps):
      state, _ = step(0, state, to_global(next(batches), parts.mesh))
    jax.block_until_ready(state)

  def rate(steps: int) -> float:
    work(1 + 2 * made.data.threads)  # which the loader had ready
    began = time.perf_counter()
    work(steps)
    return steps * made.train.batch_size / (time.perf_counter() - began)

  return rate


def measure(made: ConfigDict, folder: Path, scratch: Path, *, steps: int, repeats: int) -> dict:
  """Measures images a second of each turn: {"storing", "stored", "encoding", "ratio"}.

  "storing" is one rate, of all records, compilation included.
  """
  stored, images = scratch / "features", sum(records.splits(folder).values())
  run = Workdir(scratch / "run")
  began = time.perf_counter()
  features.store(made, [features.Source(folder, stored)], run)
  storing = images / (time.perf_counter() - began)
  sources = {
    name: records.RecordSource(folder, "train", where="text", features=where)
    for name, where in (("stored", stored), ("encoding", None))
  }
  words = train.make_tokenizer(made, run, sources["encoding"])
  rates = {name: trainer(made, words, source) for name, source in sources.items()}
  for rate in rates.values():
    rate(1)  # compiles
  turns = [{name: rate(steps) for name, rate in rates.items()} for _ in range(repeats)]
  by_name = {name: [turn[name] for turn in turns] for name in rates}
  ratio = [turn["stored"] / turn["encoding"] for turn in turns]
  return {"storing": storing, **by_name, "ratio": ratio}


def main() -> None:
  """Prints the table, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--weights", default="", help="folder of any encoder of docs/weights.md")
  parser.add_argument("--records", help="a record folder; by default phantom images are drawn")
  parser.add_argument("--images", type=int, default=256, help="that are drawn")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--max_tokens", type=int, default=32)
  parser.add_argument("--max_words", type=int, default=16)
  parser.add_argument("--steps", type=int, default=10, help="of a turn")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json", help="file to write all values to")
  parser.add_argument("--predict", type=at_least(1), help="prints what so many images would take")
  options = parser.parse_args()
  if options.predict and options.json:
    parser.error("--json: is of what is measured; --predict prints alone")
  if options.predict:
    predict(options.predict)
    return
  flags.FLAGS.mark_as_parsed()  # Grain reads one
  text = dict(max_tokens=options.max_tokens, max_words=options.max_words)
  made = config(options.weights, options.batch, **text)
  with tempfile.TemporaryDirectory() as name:
    scratch = Path(name)
    if options.weights:
      made = pretrained.with_settings(made, Workdir(scratch / "none"))
    else:
      draw_weights(made, scratch / "random.safetensors")
    folder = Path(options.records or draw(scratch / "records", options.images, 256))
    values = measure(made, folder, scratch, steps=options.steps, repeats=options.repeats)
  print(f"{jax.devices()[0].device_kind}, {made.model.image_px} px, batch {options.batch}\n")
  print("| | median | least | most |\n|---|---:|---:|---:|")
  for row, key, digits in (
    ("from stored features, images/s", "stored", 0),
    ("encoding each time, images/s", "encoding", 0),
    ("ratio", "ratio", 1),
  ):
    numbers = (f(values[key]) for f in (statistics.median, min, max))
    print(f"| {row} | {' | '.join(f'{x:.{digits}f}' for x in numbers)} |")
  print(f"\nstoring: {values['storing']:.0f} images/s, once")
  if options.json:
    facts = vars(options) | {"image_px": made.model.image_px}
    Path(options.json).write_text(json.dumps(facts | values, indent=1) + "\n")


if __name__ == "__main__":
  main()
