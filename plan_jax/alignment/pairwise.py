"""Two evaluations of all image x report scores: the same numbers, different memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (pixels [I, P, D], words [J, W, D], say [J, W]) -> [K, I, J, ...].
Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def full(score: Score, pixels: jax.Array, words: jax.Array, say: jax.Array) -> jax.Array:
  """[K, I, J, ...] with every intermediate held at once: the oracle, for small batches."""
  return score(pixels, words, say)


def chunked(
  score: Score,
  pixels: jax.Array,
  words: jax.Array,
  say: jax.Array,
  *,
  tile_images: int,
  tile_reports: int,
) -> jax.Array:
  """[K, I, J, ...], tile by tile; the backward pass computes each tile anew.

  Peak memory beyond inputs is one tile's intermediates, a few times
  tile_images * tile_reports * W * P floats, whatever I and J. Neither needs to be a multiple of its
  tile: the rest is padded and cut off.

  Args:
    score: of images and reports that do not depend on one another.
    pixels: [I, P, D].
    words: [J, W, D].
    say: [J, W], zero where there is no word.
    tile_images, tile_reports: size of a tile.
  """
  images, reports = pixels.shape[0], words.shape[0]
  pixels = _tiles(pixels, tile_images)
  words, say = _tiles(words, tile_reports), _tiles(say, tile_reports)
  tile = jax.checkpoint(score)

  def row(v):
    return jax.lax.map(lambda text: tile(v, *text), (words, say))

  found = jax.lax.map(row, pixels)  # [image tiles, report tiles, K, tile, tile, ...]
  found = jnp.moveaxis(found, (2, 0, 3, 1), (0, 1, 2, 3))
  k, a, b, c, d, *rest = found.shape
  return found.reshape(k, a * b, c * d, *rest)[:, :images, :reports]


def _tiles(x: jax.Array, size: int) -> jax.Array:
  """[N, ...] -> [ceil(N / size), size, ...], padded with zeros."""
  missing = -x.shape[0] % size
  x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
  return x.reshape(-1, size, *x.shape[1:])
