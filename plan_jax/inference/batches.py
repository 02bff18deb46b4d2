"""Batches of one size, so that functions compile seldom."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from plan_jax.inference.inputs import InputError
from plan_jax.runtime.mesh import batch_sharding, shared_rows


def run(function: Callable[[list], Any], items: Sequence, batch: int) -> Any:
  """Applies a function to lists of `batch` items, the last filled up, and joins the results.

  The function returns a tree of arrays with an item a row. Raises InputError where there is none.
  """
  if not items:
    raise InputError("nothing to embed: the list is empty")
  parts = []
  for start in range(0, len(items), batch):
    chunk = list(items[start : start + batch])
    chunk += [chunk[-1]] * (batch - len(chunk))
    parts.append(jax.tree.map(np.asarray, function(chunk)))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(items)], *parts)


def size_of_few(count: int, most: int, devices: int) -> int:
  """Gives the size of a batch for few items: a power of 2 or, where more, all devices or `most`."""
  return min(most, shared_rows(2 ** (count - 1).bit_length(), devices))


def cut(arrays: Any, size: int) -> list[Any]:
  """Cuts a tree of arrays into parts of `size` rows, the last filled up with its last row."""
  count = len(jax.tree.leaves(arrays)[0])
  places = np.minimum(np.arange(-(-count // size) * size), count - 1)
  return [jax.tree.map(lambda x, rows=rows: x[rows], arrays) for rows in places.reshape(-1, size)]


def by_image(pair_scores: Callable, mesh: Mesh) -> Callable:
  """Lets the devices of a mesh share the images of a ModelSpec's `pair_scores`."""

  def shared(variables, image, text):
    image = jax.lax.with_sharding_constraint(image, batch_sharding(mesh))
    return pair_scores(variables, image, text)

  return shared


def distinct(items: Sequence, key: Callable) -> tuple[list[int], list]:
  """The place of each item among the distinct ones, and these."""
  places: dict = {}
  kept = []
  for item in items:
    if key(item) not in places:
      places[key(item)] = len(kept)
      kept.append(item)
  return [places[key(item)] for item in items], kept
