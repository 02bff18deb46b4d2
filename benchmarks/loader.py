"""Speed of the loader in images a second, from bytes to batches, beside bare OpenCV.

Each row does the work of the row above, and more, on the same images in one process with one
thread; then Grain does all of it. Rows take turns, values are medians; workers start and fill their
buffers before the clock does.

  python -m benchmarks.loader --json=out.json                   # phantom images, drawn first
  python -m benchmarks.loader --records=runs/mine/records --image_px=224
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tabulate import tabulate

from input_pipeline import images, loader, records
from input_pipeline.conversion import convert
from input_pipeline.text import diagnostic_terms, tokenizer

_BATCH = 32
_AHEAD = 4  # batches that a worker may have ready when the clock starts: read before


def draw(folder: Path, images: int, stored_px: int) -> Path:
  """Writes phantom images with their reports as records."""
  counts = {"train_images": images, "validation_images": 0, "test_images": 0}
  convert.convert("phantom", folder, image_px=stored_px, size_px=stored_px, seed=0, **counts)
  return folder


def stages(source, encode: loader.Encode, count: int) -> dict[str, Callable[[int], object]]:
  """Returns name -> work on image i; each includes the work of the one before."""
  examples = [source[i] for i in range(count)]
  augment = encode.augment

  def decode(i):
    return images.decode(examples[i].image)

  def bare(i):
    return cv2.imdecode(np.frombuffer(examples[i].image, np.uint8), cv2.IMREAD_GRAYSCALE)

  def augmented(i):
    return augment(decode(i), encode.image_px, np.random.default_rng(i))

  return {
    "OpenCV's decoder": bare,
    "decode, as we do": decode,
    "+ resize": lambda i: images.fit(decode(i), encode.image_px),
    "+ augment": augmented,
    "+ tokenise (all of Encode)": lambda i: encode.random_map(
      examples[i], np.random.default_rng(i)
    ),
    "+ read the record": lambda i: encode.random_map(source[i], np.random.default_rng(i)),
  }


def grain_rate(source, encode: loader.Encode, workers: int, threads: int, count: int) -> float:
  """Measures the images a second that `loader.batches` yields, `count` batches after the start."""
  batches = loader.batches(
    source, encode, batch_size=_BATCH, seed=0, workers=workers, threads=threads
  )
  try:
    for _ in range(1 + _AHEAD * max(1, workers)):
      next(batches)
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
      pass
    return count * _BATCH / (time.perf_counter() - began)
  finally:
    batches.close()


def measure(
  source, encode: loader.Encode, *, images: int, batches: int, repeats: int, workers: list[int]
) -> list[dict]:
  """Returns one row a stage, then one a number of Grain's workers; rates in images a second."""
  images = min(images, len(source))
  plain = stages(source, encode, images)
  rates: dict[str, list[float]] = {name: [] for name in plain}

  def rate(work):
    began = time.perf_counter()
    for i in range(images):
      work(i)
    return images / (time.perf_counter() - began)

  grains = {f"Grain, {n} workers" if n else "Grain, one thread of this process": n for n in workers}
  rates |= {name: [] for name in grains}
  for work in plain.values():
    rate(work)  # warm-up
  for _ in range(repeats):
    for name, work in plain.items():
      rates[name].append(rate(work))
    for name, count in grains.items():
      rates[name].append(grain_rate(source, encode, count, 1, batches))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  bare, loop = medians["OpenCV's decoder"], medians["+ read the record"]
  return [
    {
      "row": name,
      "images_per_s": value,
      "per_worker": value / max(1, grains.get(name, 1)),
      "of_bare_decoding": value / max(1, grains.get(name, 1)) / bare,
      # Time of an image in a worker, against that of the plain loop.
      "overhead": loop * max(1, grains[name]) / value - 1 if name in grains else None,
    }
    for name, value in medians.items()
  ]


def main() -> None:
  """Prints the table, and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--records", help="a record folder; by default phantom images are drawn")
  parser.add_argument("--images", type=int, default=256)
  parser.add_argument("--stored_px", type=int, default=512, help="of drawn images")
  parser.add_argument("--image_px", type=int, default=224)
  parser.add_argument("--batches", type=int, default=24, help="timed, of 32 images each")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
  parser.add_argument("--json", help="file to write all values to")
  options = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # Grain reads one in its workers
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(options.records or Path(scratch) / "records")
    if not options.records:
      draw(folder, options.images, options.stored_px)
    source = records.RecordSource(folder, "train", where="text")
    texts = (" ".join(source[i].sentences) for i in range(min(len(source), 2000)))
    trained = tokenizer.train(texts, Path(scratch) / "tokenizer", vocabulary_size=2000)
    terms, augment = diagnostic_terms.load(""), images.Augment()
    encode = loader.Encode(trained, terms, options.image_px, 192, 96, augment)
    size = "x".join(map(str, images.decode(source[0].image).shape))
    counts = {name: getattr(options, name) for name in ("images", "batches", "repeats", "workers")}
    rows = measure(source, encode, **counts)
  print(f"{len(source)} images of {size}, to {options.image_px} px\n")
  heads = ("", "images/s", "a worker", "of OpenCV's decoder", "over the plain loop")
  formats = ("", ".0f", ".0f", ".2f", "+.0%")
  print(tabulate([row.values() for row in rows], heads, tablefmt="github", floatfmt=formats))
  if options.json:
    Path(options.json).write_text(json.dumps({"images": size, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
