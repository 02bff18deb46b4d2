"""Image-text retrieval: does an image find its own report among many, and a report its image?

Protocol "retrieval-v1":

- The gallery is every image of the data that has text, with its text, each pair once. Its size is
  in every row, since the figures fall as it grows. Studies without a word of text are left out.
- Candidates are ranked by the dot product of unit-norm global embeddings. A candidate is a hit
  where its text equals the query's after normalisation (case, punctuation, blanks): duplicate
  reports, and other images of the study, are right answers, not wrong ones.
- A query's rank is that of its best hit, counted from 1. Scores within 1e-6 of that of the best hit
  are ties, broken at random: with a candidates above, m misses and k hits tied, the rank is
  1 + a + m / (k + 1) (the mean over orders; half of the ties for one hit), and the query counts for
  R@K by the probability 1 - C(m, K - a) / C(m + k, K - a) that a hit is among the first K. So a
  model that gives every candidate the same score gets chance, not rank 1.
- R@1, R@5, R@10 and the median rank, image-to-text and text-to-image. Intervals are 95 %
  percentile intervals of 1,000 bootstrap draws of the queries' patients; the gallery stays whole.
- Floor `chance`: random scores on the same gallery. R@K is the exact expectation; the median rank
  is that of the distribution of ranks over all queries and orders. Neither has an interval.
- Data with both radiologists' reports and sentences made from labels is also scored by kind of
  text, each kind its own gallery; group "all" holds all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm import tqdm

from input_pipeline import images
from input_pipeline.example import Example
from input_pipeline.text import reports
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "retrieval-v1"
AT = (1, 5, 10)
DIRECTIONS = ("image-to-text", "text-to-image")
TOLERANCE = 1e-6
_NONE = float("nan")
# (direction, pairs that are the gallery) -> (start, stop) -> [stop - start, pairs], of its queries.
Scores = Callable[[str, np.ndarray], Callable[[int, int], np.ndarray]]


class ImageEmbedder(Protocol):
  """A model that makes a vector of an image."""

  def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
    """Images uint8 [H, W], of any size, to float32 [N, D]."""


class Embedder(ImageEmbedder, Protocol):
  """What retrieval needs of a model: unit-norm global embeddings of one width."""

  def embed_texts(self, texts: list[tuple[str, ...]]) -> np.ndarray:
    """Reports, each a tuple of sentences, to float32 [N, D]."""


@dataclass(frozen=True)
class Ranks:
  """Where the best hit of each of N queries stands; int64 [N] each.

  Attributes:
    above: candidates scored higher than the best hit.
    tied_hits: hits that share its score, itself included; at least 1.
    tied_misses: other candidates that share its score.
  """

  above: np.ndarray
  tied_hits: np.ndarray
  tied_misses: np.ndarray

  def expected(self) -> np.ndarray:
    """Float64 [N]: the rank of the first hit, from 1, in the mean over orders of the tied."""
    return 1 + self.above + self.tied_misses / (self.tied_hits + 1)

  def recall(self, k: int) -> np.ndarray:
    """Float64 [N]: the probability that a hit is among the first k, 0 or 1 without ties."""
    tied = self.tied_misses + self.tied_hits
    places = k - self.above  # left for the tied
    missed = np.ones(len(tied))
    for i in range(k):
      factor = np.maximum(self.tied_misses - i, 0) / np.maximum(tied - i, 1)
      missed = np.where(i < places, missed * factor, missed)
    return np.where(places > 0, 1 - missed, 0.0)


def rank(
  scores: Callable[[int, int], np.ndarray],
  keys: np.ndarray,
  *,
  block: int = 512,
  tolerance: float = TOLERANCE,
) -> Ranks:
  """Ranks N candidates for each of N queries, never holding more than block x N scores.

  Args:
    scores: (start, stop) -> float [stop - start, N], scores of queries start..stop-1.
    keys: int [N]; candidate j is a hit for query i where keys[i] == keys[j].
    block: queries at a time.
    tolerance: scores closer than this are tied.

  Raises:
    ValueError: a block of scores has the wrong shape or holds a NaN.
  """
  _, group, sizes = np.unique(np.asarray(keys), return_inverse=True, return_counts=True)
  n, hits = len(group), np.argsort(group, kind="stable")  # candidates, group by group
  first = np.concatenate([[0], np.cumsum(sizes)])
  counts = np.zeros((3, n), np.int64)
  starts = tqdm(range(0, n, block), desc="ranks", unit="block", delay=1, mininterval=1)
  for start in starts:
    stop = min(start + block, n)
    found = np.asarray(scores(start, stop))
    if found.shape != (stop - start, n):
      raise ValueError(f"scores are {found.shape}, not {(stop - start, n)}")
    if np.isnan(found).any():
      raise ValueError("a score is NaN")
    # Hits are few: looked up, so that the whole block is gone through for the counts alone.
    own = group[start:stop]
    size = sizes[own]
    ends = np.cumsum(size)
    place = np.arange(ends[-1]) - np.repeat(ends - size - first[own], size)
    of_hits = found[np.repeat(np.arange(stop - start), size), hits[place]]
    best = np.maximum.reduceat(of_hits, ends - size)
    tied_hits = np.add.reduceat(of_hits >= np.repeat(best - tolerance, size), ends - size)
    above = np.count_nonzero(found > best[:, None] + tolerance, axis=1)  # never a hit
    reached = np.count_nonzero(found >= best[:, None] - tolerance, axis=1)
    counts[:, start:stop] = above, tied_hits, reached - above - tied_hits
  return Ranks(*counts)


def rank_embeddings(
  queries: np.ndarray, candidates: np.ndarray, keys: np.ndarray, *, block: int = 512
) -> Ranks:
  """`rank` by the dot product of queries [N, D] and candidates [N, D], query i with candidate i.

  Raises:
    ValueError: the shapes do not fit, or an embedding is not of unit norm (to 1 %).
  """
  if queries.ndim != 2 or queries.shape != candidates.shape or len(queries) != len(keys):
    raise ValueError(f"{queries.shape}, {candidates.shape} and {len(keys)} keys do not fit")
  for name, values in (("query", queries), ("candidate", candidates)):
    norm = np.linalg.norm(values.astype(np.float32), axis=1)
    if len(norm) and not np.abs(norm - 1).max() < 0.01:
      raise ValueError(f"a {name} is not of unit norm")
  turned = np.ascontiguousarray(candidates.T, np.float32)
  return rank(lambda a, b: queries[a:b].astype(np.float32) @ turned, keys, block=block)


def chance(keys: np.ndarray) -> tuple[dict[int, float], float]:
  """What random scores get: K -> R@K for K of `AT`, and the median rank.

  Args:
    keys: int [N], at least one; see `rank`.
  """
  _, inverse, counts = np.unique(np.asarray(keys), return_inverse=True, return_counts=True)
  hits, n = counts[inverse], len(inverse)
  everything_tied = Ranks(np.zeros(n, np.int64), hits, n - hits)
  recalls = {k: float(everything_tied.recall(k).mean()) for k in AT}
  beyond = np.zeros(n)  # beyond[r - 1]: share of queries whose first hit ranks lower than r
  sizes, queries = np.unique(hits, return_counts=True)
  for size, share in zip(sizes.tolist(), (queries / n).tolist(), strict=True):
    drawn = np.arange(n)
    beyond += share * np.cumprod(np.maximum(n - size - drawn, 0) / (n - drawn))
  # As np.median of many ranks would: between two ranks where exactly half lie at or under one.
  lower = int(np.argmax(beyond <= 0.5 + 1e-12)) + 1
  upper = int(np.argmax(beyond < 0.5 - 1e-12)) + 1
  return recalls, (lower + upper) / 2


@dataclass(frozen=True)
class Gallery:
  """What the queries of one gallery score, and what chance does.

  Attributes:
    units: the pairs, by the image; metrics "R@K DIRECTION" for K of `AT`, then "rank DIRECTION"
      (the expected rank), for both of `DIRECTIONS`.
    recalls: K -> R@K of chance.
    median: the median rank of chance.
  """

  units: ExampleScores
  recalls: dict[int, float]
  median: float


def score_gallery(
  v: np.ndarray,
  t: np.ndarray,
  keys: np.ndarray,
  ids: Sequence[str],
  patients: Sequence[str],
  *,
  group: str = "all",
  block: int = 512,
) -> Gallery:
  """Ranks every pair of a gallery in both directions.

  Args:
    v: [N, D] unit-norm embeddings of images.
    t: [N, D] unit-norm embeddings of their texts.
    keys: int [N], equal for equal texts.
    ids: [N], the images.
    patients: [N], for the bootstrap.
    group: name of the gallery.
    block: queries ranked at a time.

  Raises:
    ValueError: as `rank_embeddings`.
  """
  found = {}
  for direction, queries, candidates in zip(DIRECTIONS, (v, t), (t, v), strict=True):
    found |= figures(rank_embeddings(queries, candidates, keys, block=block), direction)
  return gallery(found, keys, ids, patients, group=group)


def figures(ranks: Ranks, direction: str) -> dict[str, np.ndarray]:
  """The metrics of a direction -> float64 [N], of every query."""
  found = {f"R@{k} {direction}": ranks.recall(k) for k in AT}
  return found | {f"rank {direction}": ranks.expected()}


def gallery(
  found: dict[str, np.ndarray],
  keys: np.ndarray,
  ids: Sequence[str],
  patients: Sequence[str],
  *,
  group: str = "all",
) -> Gallery:
  """A gallery of the `figures` of both directions; the rest as in `score_gallery`."""
  names = [example_id(image_id) for image_id in ids]
  values = np.stack(list(found.values()), axis=1)
  units = ExampleScores(names, [group] * len(names), list(patients), tuple(found), values)
  return Gallery(units, *chance(keys))


@dataclass(frozen=True)
class Embedded:
  """The pairs of a gallery.

  Attributes:
    images, texts: float32 [N, D], unit norm.
    keys: int [N], equal for texts that say the same.
    ids, patients, kinds: [N], image, patient and kind of text.
    labels: [N], of the studies.
  """

  images: np.ndarray
  texts: np.ndarray
  keys: np.ndarray
  ids: list[str]
  patients: list[str]
  kinds: list[str]
  labels: list[dict[str, int]]

  def sides(self, direction: str, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and candidates [len(pairs), D] of one of `DIRECTIONS`, those of these pairs."""
    images, texts = self.images[pairs], self.texts[pairs]
    return (images, texts) if direction == DIRECTIONS[0] else (texts, images)


def evaluate_retrieval(
  embedder: Embedder,
  examples: Iterable[Example],
  *,
  data: str,
  batch: int = 64,
  block: int = 512,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Scores a model under protocol "retrieval-v1" (see the top of this file).

  Args:
    embedder: the model.
    studies: the gallery; images are decoded and embedded `batch` at a time, and not kept.
    data: name of data set and split, for the rows.
    batch: images embedded at a time.
    block: queries ranked at a time.
    resamples: bootstrap draws.
    seed: of the draws.

  Returns:
    As `retrieval_rows`.

  Raises:
    ValueError: as `embed` and `score_retrieval`.
  """
  galleries = score_retrieval(embed(embedder, examples, batch=batch), block=block)
  return retrieval_rows(galleries, data=data, resamples=resamples, seed=seed)


def embed(embedder: Embedder, examples: Iterable[Example], *, batch: int = 64) -> Embedded | None:
  """The pairs of the studies with text, `batch` decoded at a time; None where there is none.

  How many had no text is said. Raises ValueError, naming the image, where an image is unreadable.
  """
  v, t, decoded, texts = [], [], [], []
  known: dict[str, int] = {}
  keys, ids, patients, kinds, labels = [], [], [], [], []
  without = 0

  def flush() -> None:
    if decoded:
      v.append(np.asarray(embedder.embed_images(list(decoded)), np.float32))
      t.append(np.asarray(embedder.embed_texts(list(texts)), np.float32))
      decoded.clear()
      texts.clear()

  for example in examples:
    normal = reports.normalise(" ".join(example.sentences))
    if not normal:
      without += 1
      continue
    try:
      decoded.append(images.decode(example.image))
    except ValueError as error:
      raise ValueError(f"{example.image_id}: {error}") from error
    texts.append(example.sentences)
    keys.append(known.setdefault(normal, len(known)))
    ids.append(example.image_id)
    patients.append(example.patient_id)
    kinds.append(example.text_kind)
    labels.append(example.labels)
    if len(decoded) == batch:
      flush()
  flush()
  if without:
    log.info(f"retrieval: {without} of {without + len(keys)} studies have no text and are left out")
  if not keys:
    return None
  return Embedded(
    np.concatenate(v), np.concatenate(t), np.array(keys), ids, patients, kinds, labels
  )


def score_retrieval(found: Embedded | None, *, block: int = 512) -> dict[str, Gallery]:
  """The gallery "all" and, where there are several kinds of text, that of each kind.

  Empty where nothing was found. Raises ValueError where the embeddings do not fit.
  """
  if found is None:
    return {}
  kinds, ids, patients = (np.array(x) for x in (found.kinds, found.ids, found.patients))
  groups = {"all": np.ones(len(kinds), bool)}
  if len(set(found.kinds)) > 1:
    groups |= {kind: kinds == kind for kind in sorted(set(found.kinds))}
  return {
    group: score_gallery(
      found.images[chosen], found.texts[chosen], found.keys[chosen], ids[chosen].tolist(),
      patients[chosen].tolist(), group=group, block=block,
    )
    for group, chosen in groups.items()
  }  # fmt: skip


def retrieval_rows(
  galleries: dict[str, Gallery],
  *,
  data: str,
  task: str = "retrieval",
  protocol: str = PROTOCOL,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows of `score_retrieval` by gallery, direction and metric, the run beside chance."""
  rows = []
  for group, gallery in galleries.items():
    units, n = gallery.example_scores, len(gallery.example_scores.ids)
    means = bootstrap.grouped_means(
      units.values, units.groups, units.patients, resamples=resamples, seed=seed
    )[group]
    means = dict(zip(units.metrics, means, strict=True))
    found = []
    for direction in DIRECTIONS:
      for k in AT:
        metric = f"R@{k} {direction}"
        found.append((metric, means[metric], gallery.recalls[k]))
      ranks = units.values[:, units.metrics.index(f"rank {direction}")]
      middle = bootstrap.median(ranks, units.patients, resamples=resamples, seed=seed)
      found.append((f"median rank {direction}", middle, gallery.median))
    for metric, run, floor in found:
      head = (task, protocol, data, group, metric)
      rows.append(Row(*head, RUN, run.value, run.low, run.high, n, gallery=n))
      rows.append(Row(*head, "chance", floor, _NONE, _NONE, n, gallery=n))
  return rows
