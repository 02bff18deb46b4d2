"""Seconds that an evaluation's measures take, without the model: python -m benchmarks.evaluation.

Retrieval: random embeddings of images and reports, both directions, ranks and class precision, with
bootstrap. Grounding: random maps and boxes at 512 px, all figures and floors, with bootstrap. The
last column is the largest that the process has been so far.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator

import cv2
import numpy as np

from input_pipeline.example import Example, Region
from plan_jax.evaluators import class_retrieval, grounding, retrieval

_SIDE_PX = 512
_GRID = (32, 32)
_CLASSES_MOST = 10_000  # pairs of which class precision is measured


def embeddings(count: int, size: int) -> retrieval.Embedded:
  """Pairs that are somewhat alike."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(count, size)).astype(np.float32)
  texts = images + 2 * rng.normal(size=(count, size)).astype(np.float32)
  images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
  names = [f"i{i}" for i in range(count)]
  patients = [f"p{i // 2}" for i in range(count)]
  labels = [{f"finding {i % 5}": 1} for i in range(count)]
  return retrieval.Embedded(
    images, texts, np.arange(count), names, patients, ["report"] * count, labels
  )


class Maps:
  """Random maps on a grid, brought to the image."""

  grid = _GRID

  def ground(self, images, phrases, of):
    """One map a phrase."""
    rng = np.random.default_rng(len(phrases))
    maps = rng.random((len(phrases), *_GRID), np.float32)
    maps /= maps.max((1, 2), keepdims=True)
    pairs = zip(maps, images, strict=True)
    return [np.clip(self.to_image(m, image.shape), 0, 1) for m, image in pairs]

  def to_image(self, grid, shape):
    """The grid over the whole image."""
    return cv2.resize(grid, shape[::-1])


def examples(count: int):
  """Images of noise, with a box and a phrase each."""
  rng = np.random.default_rng(0)
  image = cv2.imencode(".jpg", rng.integers(0, 256, (_SIDE_PX, _SIDE_PX), np.uint8))[1].tobytes()
  for i in range(count):
    low = rng.integers(0, 300, 2)
    box = np.array([[*low, *(low + rng.integers(20, 200, 2))]], np.float32)
    region = Region(f"phrase {i}", f"finding {i % 8}", box)
    name = f"i{i}"
    yield Example(image, _SIDE_PX, _SIDE_PX, name, name, f"p{i // 2}", regions=(region,))


def measure(pairs: list[int], phrases: int, size: int) -> Iterator[dict]:
  """A row for every measure: {"what", "count", "seconds", "peak_mib"}."""

  def timed(name: str, count: int, work) -> dict:
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"what": name, "count": count, "seconds": seconds, "peak_mib": peak}

  for count in pairs:
    found = embeddings(count, size)
    yield timed(
      "retrieval, both directions", count,
      lambda found=found: retrieval.retrieval_rows(retrieval.score_retrieval(found), data="x"),
    )  # fmt: skip
    if count <= _CLASSES_MOST:
      yield timed(
        "class retrieval, both directions", count,
        lambda found=found: class_retrieval.class_rows(
          class_retrieval.score_classes(found), data="x"
        ),
      )  # fmt: skip
  some = list(examples(phrases))
  yield timed(
    "grounding at 512 px, with floors", phrases,
    lambda: grounding.evaluate_grounding(Maps(), some, some[: phrases // 5], data="x"),
  )  # fmt: skip


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--pairs", type=int, nargs="*", default=[1000, 10_000, 100_000])
  parser.add_argument("--phrases", type=int, default=1000)
  parser.add_argument("--size", type=int, default=128, help="width of the embeddings")
  parser.add_argument("--json", help="where to write the figures")
  options = parser.parse_args()
  rows = []
  print("| | count | seconds | peak, MiB |\n|---|---:|---:|---:|")
  for row in measure(options.pairs, options.phrases, options.size):
    rows.append(row)
    print(
      f"| {row['what']} | {row['count']:,} | {row['seconds']:.1f} | {row['peak_mib']:,.0f} |",
      flush=True,
    )
  if options.json:
    with open(options.json, "w", encoding="utf-8") as file:
      json.dump(rows, file, indent=1)


if __name__ == "__main__":
  main()
