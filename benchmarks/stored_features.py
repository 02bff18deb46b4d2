"""Training from stored features, beside encoding each time: python -m benchmarks.stored_features.

Steps of configs/frozen.py, from the records to the update, on the same images and with the same
texts. The two take turns in one process; before each turn those batches are used up that the loader
has had the time to prepare. A turn's ratio is that of its two rates. The encoder is a DINOv2-S of
random numbers unless --weights names a folder, whose sizes and image side then hold.

  python -m benchmarks.stored_features --json=out.json
  python -m benchmarks.stored_features --weights=/models/dinov2-small --records=runs/mine/records
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from benchmarks.loader import draw
from configs import frozen
from input_pipeline import records
from plan_jax import train
from plan_jax.models.two_towers import image_encoder
from plan_jax.runtime.mesh import to_global
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import features, pretrained
from plan_jax.training.assembly import assemble
from plan_jax.training.step import StagedStep

_SMALL = dict(variant="dinov2", embed_dim=384, num_heads=6, mlp_dim=1536, patch_px=14, grid=16)


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
  stored, count = scratch / "features", sum(records.splits(folder).values())
  run = Workdir(scratch / "run")
  began = time.perf_counter()
  features.store(made, [(folder, stored)], run)
  storing = count / (time.perf_counter() - began)
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
  options = parser.parse_args()
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
