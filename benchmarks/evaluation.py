"""Seconds that an evaluation's measures take, without the model: python -m benchmarks.evaluation.

Retrieval: random embeddings of images and reports, both directions, ranks and class precision, with
bootstrap. Grounding: random maps and boxes at 512 px, all metrics and chance baselines, with
bootstrap. The last column is the largest memory of the process so far.
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
from plan_jax.evaluators.embeddings import Pairs

_SIDE_PX = 512
_GRID = (32, 32)
_CLASSES_MOST = 10_000  # pairs of which class precision is measured


def embeddings(count: int, width: int) -> Pairs:
  """Makes pairs that are somewhat alike."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(count, width)).astype(np.float32)
  texts = images + 2 * rng.normal(size=(count, width)).astype(np.float32)
  images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
  names = [f"i{i}" for i in range(count)]
  patients = [f"p{i // 2}" for i in range(count)]
  labels = [{f"finding {i % 5}": 1} for i in range(count)]
  return Pairs(images, texts, np.arange(count), names, patients, ["report"] * count, labels)


class Maps:
  """Random maps on a grid, brought to the image."""

  grid = _GRID

  def maps(self, images, phrases, of):
    """Makes a map for each phrase."""
    rng = np.random.default_rng(len(phrases))
    maps = rng.random((len(phrases), *_GRID), np.float32)
    maps /= maps.max((1, 2), keepdims=True)
    pairs = zip(maps, images, strict=True)
    return [np.clip(self.to_image(m, image.shape), 0, 1) for m, image in pairs]

  def to_image(self, grid, shape):
    """Stretches the grid over the whole image."""
    return cv2.resize(grid, shape[::-1])


def examples(count: int):
  """Makes images of noise, with a box and a phrase each."""
  rng = np.random.default_rng(0)
  image = cv2.imencode(".jpg", rng.integers(0, 256, (_SIDE_PX, _SIDE_PX), np.uint8))[1].tobytes()
  for i in range(count):
    low = rng.integers(0, 300, 2)
    box = np.array([[*low, *(low + rng.integers(20, 200, 2))]], np.float32)
    region = Region(f"phrase {i}", f"finding {i % 8}", box)
    name = f"i{i}"
    yield Example(image, _SIDE_PX, _SIDE_PX, name, name, f"p{i // 2}", regions=(region,))


def _retrieval(pairs: Pairs) -> None:
  retrieval.retrieval_rows(retrieval.score_retrieval(pairs), data="x")


def _class_retrieval(pairs: Pairs) -> None:
  class_retrieval.class_rows(class_retrieval.score_classes(pairs), data="x")


def _grounding(images: list[Example]) -> None:
  prior = grounding.box_prior(images[: len(images) // 5])
  grounding.grounding_rows(grounding.score_grounding(Maps(), images, prior), data="x")


def measure(pairs: list[int], phrases: int, width: int) -> Iterator[dict]:
  """Yields a row for every measure: {"what", "count", "seconds", "peak_mib"}."""

  def timed(name: str, count: int, work, data) -> dict:
    start = time.perf_counter()
    work(data)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"what": name, "count": count, "seconds": seconds, "peak_mib": peak}

  for count in pairs:
    data = embeddings(count, width)
    yield timed("retrieval, both directions", count, _retrieval, data)
    if count <= _CLASSES_MOST:
      yield timed("class retrieval, both directions", count, _class_retrieval, data)
  yield timed(
    "grounding at 512 px, with chance baselines", phrases, _grounding, list(examples(phrases))
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--pairs", type=int, nargs="*", default=[1000, 10_000, 100_000])
  parser.add_argument("--phrases", type=int, default=1000)
  parser.add_argument("--width", type=int, default=128, help="width of the embeddings")
  parser.add_argument("--json", help="where to write the rows")
  options = parser.parse_args()
  rows = []
  print("| | count | seconds | peak, MiB |\n|---|---:|---:|---:|")
  for row in measure(options.pairs, options.phrases, options.width):
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
