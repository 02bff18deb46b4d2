"""Ranking metrics: recall at K, expected rank and precision at K, ties in random order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from tqdm import tqdm

TOLERANCE = 1e-6  # scores closer than this are tied


@dataclass(frozen=True)
class Ranks:
  """Ranks of the best hits of N queries."""

  above: Int[np.ndarray, " N"]  # candidates scored higher than the best hit
  tied_hits: Int[np.ndarray, " N"]  # hits that share its score, itself included; at least 1
  tied_misses: Int[np.ndarray, " N"]  # other candidates that share its score

  def expected(self) -> Float64[np.ndarray, " N"]:
    """Ranks of the first hit, from 1, in the mean over orders of the tied."""
    return 1 + self.above + self.tied_misses / (self.tied_hits + 1)

  def recall(self, k: int) -> Float64[np.ndarray, " N"]:
    """Probabilities that a hit is among the first k, 0 or 1 without ties."""
    tied = self.tied_misses + self.tied_hits
    places = k - self.above  # left for the tied
    missed = np.ones(len(tied))
    for i in range(k):
      factor = np.maximum(self.tied_misses - i, 0) / np.maximum(tied - i, 1)
      missed = np.where(i < places, missed * factor, missed)
    return np.where(places > 0, 1 - missed, 0.0)


def rank(
  scores: Callable[[int, int], np.ndarray],
  keys: Shaped[np.ndarray, " N"],
  *,
  block: int = 512,
  tolerance: float = TOLERANCE,
) -> Ranks:
  """Ranks N candidates for each of N queries, never holding more than block x N scores.

  Args:
    scores: (start, stop) -> float [stop - start, N], scores of queries start..stop-1.
    keys: candidate j is a hit for query i where keys[i] == keys[j].
    block, tolerance: queries at a time; scores closer than this are tied.

  Raises:
    ValueError: a block of scores has the wrong shape or holds a NaN.
  """
  _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
  n, hits = len(group), np.argsort(group, kind="stable")  # candidates, group by group
  first = np.concatenate([[0], np.cumsum(sizes)])
  counts = np.zeros((3, n), np.int64)
  starts = tqdm(range(0, n, block), desc="ranks", unit="block", delay=1, mininterval=1)
  for start in starts:
    stop = min(start + block, n)
    scored = np.asarray(scores(start, stop))
    if scored.shape != (stop - start, n):
      raise ValueError(f"scores are {scored.shape}, not {(stop - start, n)}")
    if np.isnan(scored).any():
      raise ValueError("a score is NaN")
    # Hits are few: looked up, so that the whole block is gone through for the counts alone.
    groups = group[start:stop]
    size = sizes[groups]
    ends = np.cumsum(size)
    place = np.arange(ends[-1]) - np.repeat(ends - size - first[groups], size)
    hit_scores = scored[np.repeat(np.arange(stop - start), size), hits[place]]
    best = np.maximum.reduceat(hit_scores, ends - size)
    tied_hits = np.add.reduceat(hit_scores >= np.repeat(best - tolerance, size), ends - size)
    above = np.count_nonzero(scored > best[:, None] + tolerance, axis=1)  # never a hit
    reached = np.count_nonzero(scored >= best[:, None] - tolerance, axis=1)
    counts[:, start:stop] = above, tied_hits, reached - above - tied_hits
  return Ranks(*counts)


def chance_ranks(
  keys: Shaped[np.ndarray, " N"], ks: Sequence[int]
) -> tuple[dict[int, float], float]:
  """Computes the baseline of random scores: K -> recall at K, for all of `ks`; the median rank."""
  _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
  hits, n = counts[inverse], len(inverse)
  everything_tied = Ranks(np.zeros(n, np.int64), hits, n - hits)
  recalls = {k: float(everything_tied.recall(k).mean()) for k in ks}
  beyond = np.zeros(n)  # beyond[r - 1]: share of queries whose first hit ranks lower than r
  sizes, queries = np.unique(hits, return_counts=True)
  for size, share in zip(sizes.tolist(), (queries / n).tolist(), strict=True):
    drawn = np.arange(n)
    beyond += share * np.cumprod(np.maximum(n - size - drawn, 0) / (n - drawn))
  # As np.median of many ranks would: between two ranks where exactly half lie at or under one.
  lower = int(np.argmax(beyond <= 0.5 + 1e-12)) + 1
  upper = int(np.argmax(beyond < 0.5 - 1e-12)) + 1
  return recalls, (lower + upper) / 2


def precision_at(
  scores: Float[np.ndarray, "Q N"],
  hit: Bool[np.ndarray, "Q N"],
  ks: Sequence[int],
) -> Float64[np.ndarray, "Q K"]:
  """Computes the expected share of hits among the first k, with ties in random order.

  Scores are -inf for what is no candidate, and each k is at most the number of the candidates.
  """
  most = max(ks)
  if most + 1 >= scores.shape[1]:
    return _precision_of_all(scores, hit, ks)
  # Among the first most + 1 lies all that counts, unless ties go on beyond them.
  top = np.argpartition(-scores, most, axis=1)[:, : most + 1]
  highest = np.take_along_axis(scores, top, 1)
  ordered = -np.sort(-highest, axis=1)
  tied = ordered[:, most] >= ordered[:, most - 1] - TOLERANCE
  out = _precision_of_all(highest, np.take_along_axis(hit, top, 1), ks)
  if tied.any():
    out[tied] = _precision_of_all(scores[tied], hit[tied], ks)
  return out


def _precision_of_all(scores: np.ndarray, hit: np.ndarray, ks: Sequence[int]) -> np.ndarray:
  out = np.zeros((len(scores), len(ks)))
  ordered = -np.sort(-scores, axis=1)
  for i, k in enumerate(ks):
    last = ordered[:, k - 1 : k]
    above = scores > last + TOLERANCE
    tied = (scores >= last - TOLERANCE) & ~above & np.isfinite(scores)
    share = (k - above.sum(1)) / tied.sum(1)
    out[:, i] = ((above & hit).sum(1) + share * (tied & hit).sum(1)) / k
  return out
