"""Ranks of N pairs of embeddings, each side among all of the other, in one pass over the scores.

What a query's best hit scores is known beforehand, for hits are few; so a tile of scores is counted
by row and by column while it lies in the cache, and no score is kept.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from tqdm import tqdm

from plan_jax.metrics.ranking import TOLERANCE, Ranks

_TILE = (512, 1024)  # scores of so many queries and candidates: 2 MiB
_HITS = 2**22  # scores of hits at a time
# Above the larger side of a tile. Its square is 2**24: up to there float32 counts exactly.
_PACKED = 4096.0


def mutual_ranks(
  images: Float[np.ndarray, "..."],
  texts: Float[np.ndarray, "..."],
  keys: Shaped[np.ndarray, " N"],
  *,
  tile: tuple[int, int] = _TILE,
) -> tuple[Ranks, Ranks]:
  """Ranks all texts for each image, and all images for each text, by their dot products.

  Args:
    images, texts: [N, D], of unit norm.
    keys: image i and text j are hits for each other where keys[i] == keys[j].
    tile: images and texts that are compared at once, at most 4,095 of each.

  Raises:
    ValueError: the shapes do not fit, a tile is larger, or an embedding is not of unit norm (to
      1 %).
  """
  if max(tile) >= _PACKED:
    raise ValueError(f"a tile of {tile}: at most 4,095 of each side")
  if images.ndim != 2 or images.shape != texts.shape or len(images) != len(keys):
    raise ValueError(f"{images.shape}, {texts.shape} and {len(keys)} keys do not fit")
  images, texts = images.astype(np.float32), texts.astype(np.float32)
  for name, values in (("image", images), ("text", texts)):
    norm = np.linalg.norm(values, axis=1)
    if len(norm) and not np.abs(norm - 1).max() < 0.01:
      raise ValueError(f"an embedding of {name}s is not of unit norm")
  _, group = np.unique(keys, return_inverse=True)
  best, tied_hits = _hits(images, texts, group)
  misses = _misses(images, texts, group.astype(np.int32), best, tile)
  ranks = (
    Ranks(above, hits, reached - above)
    for (above, reached), hits in zip(misses, tied_hits, strict=True)
  )
  return tuple(ranks)


def _hits(
  images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "N D"], group: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "2 N"], Int[np.ndarray, "2 N"]]:
  """Computes the best hit's score of each image and of each text, and how many hits share it."""
  best = np.broadcast_to(np.einsum("nd,nd->n", images, texts), (2, len(group))).copy()
  tied = np.ones((2, len(group)), np.int64)
  members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
  for places in (places for places in members if len(places) > 1):
    for side, (queries, candidates) in enumerate(((images, texts), (texts, images))):
      turned = candidates[places].T
      for part in np.array_split(places, -(-(len(places) ** 2) // _HITS)):
        scores = queries[part] @ turned
        best[side, part] = scores.max(1)
        tied[side, part] = (scores >= best[side, part, None] - TOLERANCE).sum(1)
  return best, tied


def _misses(images, texts, group, best, tile) -> Int[np.ndarray, "2 2 N"]:
  """Counts the misses above each best hit, and those above it or tied: [side, count, N]."""
  rows, columns = (
    _cut((x, group, of_best), size)
    for x, of_best, size in zip((images, texts), best, tile, strict=True)
  )
  by_image = np.zeros((2, len(rows) * tile[0]), np.int64)
  by_text = np.zeros((2, len(columns) * tile[1]), np.int64)
  blocks = tqdm(enumerate(rows), total=len(rows), desc="ranks", unit="block", delay=1)
  for i, row in blocks:
    counts = jax.device_get([_count(row, column) for column in columns])
    for j, (by_row, by_column) in enumerate(counts):
      by_image[:, i * tile[0] : (i + 1) * tile[0]] += by_row
      by_text[:, j * tile[1] : (j + 1) * tile[1]] += by_column
  return np.stack([by_image[:, : len(group)], by_text[:, : len(group)]])


def _cut(arrays, size: int) -> list[tuple]:
  """Cuts [N, ...] each into parts of `size`; the last is filled up with NaN, which never counts."""
  parts = []
  for start in range(0, len(arrays[0]), size):
    embeddings, group, best = (x[start : start + size] for x in arrays)
    missing = size - len(group)
    embeddings = np.pad(embeddings, ((0, missing), (0, 0)), constant_values=np.nan)
    parts.append((embeddings, np.pad(group, (0, missing)), np.pad(best, (0, missing))))
  return jax.device_put(parts)


@jax.jit
def _count(
  row: tuple[Float[Array, "I D"], Int[Array, " I"], Float[Array, " I"]],
  column: tuple[Float[Array, "J D"], Int[Array, " J"], Float[Array, " J"]],
) -> tuple[Int[Array, "2 I"], Int[Array, "2 J"]]:
  """Counts the misses of a tile above each best hit, and with those that are tied."""
  (images, image_group, image_best), (texts, text_group, text_best) = row, column
  exact = jax.lax.Precision.HIGHEST  # on an accelerator too, as the scores of the hits are
  scores = jnp.matmul(images, texts.T, precision=exact)
  scores = jnp.where(image_group[:, None] != text_group[None], scores, -jnp.inf)

  def counted(best):
    return _PACKED * (scores > best + TOLERANCE) + (scores >= best - TOLERANCE)

  # Sums as matrix products, which take a third of the time of two sums of each.
  ones = [jnp.ones(size, jnp.float32) for size in scores.shape]
  by_row = jnp.matmul(counted(image_best[:, None]), ones[1], precision=exact)
  by_column = jnp.matmul(ones[0], counted(text_best[None]), precision=exact)
  return tuple(
    jnp.stack(jnp.divmod(each.astype(jnp.int32), int(_PACKED))) for each in (by_row, by_column)
  )
