"""Two evaluations of all image x report scores: the same numbers, different memory."""

import jax
import jax.numpy as jnp

from plan_jax.alignment.scores import Rounds, plan_scores


def full(pixels, words, significance, rounds: Rounds) -> jax.Array:
  """[K, I, J] scores with every intermediate held at once: the oracle, for small batches."""
  return plan_scores(pixels, words, significance, rounds)


def chunked(
  pixels: jax.Array,
  words: jax.Array,
  significance: jax.Array,
  rounds: Rounds,
  *,
  tile_images: int,
  tile_reports: int,
) -> jax.Array:
  """[K, I, J] scores, tile by tile; the backward pass computes each tile anew.

  Peak memory beyond inputs is one tile's intermediates, a few times
  tile_images * tile_reports * W * P floats, whatever I and J. Neither needs to be a multiple of its
  tile: the rest is padded and cut off.

  Args:
    pixels: [I, P, D], unit norm.
    words: [J, W, D], unit norm.
    significance: [J, W], zero where there is no word.
    rounds: K rounds.
    tile_images, tile_reports: size of a tile.
  """
  images, reports = pixels.shape[0], words.shape[0]
  pixels = _tiles(pixels, tile_images)
  words, significance = _tiles(words, tile_reports), _tiles(significance, tile_reports)
  tile = jax.checkpoint(lambda v, t, r: plan_scores(v, t, r, rounds))

  def row(v):
    return jax.lax.map(lambda text: tile(v, *text), (words, significance))

  scores = jax.lax.map(row, pixels)  # [image tiles, report tiles, K, tile, tile]
  scores = scores.transpose(2, 0, 3, 1, 4)
  k, a, b, c, d = scores.shape
  return scores.reshape(k, a * b, c * d)[:, :images, :reports]


def _tiles(x: jax.Array, size: int) -> jax.Array:
  """[N, ...] -> [ceil(N / size), size, ...], padded with zeros."""
  missing = -x.shape[0] % size
  x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
  return x.reshape(-1, size, *x.shape[1:])
