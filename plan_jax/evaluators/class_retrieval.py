"""Class retrieval: do an image's nearest texts speak of the same finding, and a text's nearest images?

The protocol of CheXpert-5x200 (Zhang et al., ConVIRT, 2020; Huang et al., GLoRIA, 2021), whole.
Protocol "class-retrieval-v1":

- The class of an image is the one finding that its study labels 1 ("No Finding" is none). Images with
  none or several are left out and counted, as are those without text, and classes of one image. On
  a 5x200 selection these rules take all 1,000 images, 200 a class.
- Candidates are ranked by the dot product of unit-norm global embeddings. P@K is the share of
  the query's class among the first K, the mean over the queries; K is 1, 2, 5, 10; in both
  directions. Equal scores (within 1e-6) share their places evenly, so that a model that gives every
  candidate the same score gets chance.
- "with own": the query's own text (image) is among the candidates and is a hit, as in the baselines'
  code; so P@1 is part retrieval of the pair itself. "without own" leaves it out.
- Groups are the classes of the queries, and `macro` their plain mean. Intervals are 95 % percentile
  intervals of 1,000 bootstrap draws of the queries' patients; the gallery stays whole.
- Floor `chance`: the share of the query's class among the candidates.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from plan_jax.evaluators.retrieval import DIRECTIONS, TOLERANCE, Embedded, Scores
from plan_jax.metrics import bootstrap
from plan_jax.results.example_scores import ExampleScores, example_id
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "class-retrieval-v1"
AT = (1, 2, 5, 10)
OWN = ("with own", "without own")


def single_finding(labels: dict[str, int]) -> str:
  """The one finding that is labelled 1, or "" where there is none, or several."""
  found = [name for name, value in labels.items() if value == 1 and name != "No Finding"]
  return found[0] if len(found) == 1 else ""


def precision(
  scores: np.ndarray, hit: np.ndarray, ks: Sequence[int], tolerance: float = TOLERANCE
) -> np.ndarray:
  """Expected share of hits among the first K, with ties in random order.

  Args:
    scores: [Q, N] float; -inf for what is no candidate.
    hit: [Q, N] bool.
    ks: each at most the number of candidates of any query.
    tolerance: scores within it of the K-th highest are tied with it.

  Returns:
    float64 [Q, len(ks)].
  """
  most = max(ks)
  if most + 1 < scores.shape[1]:
    # Among the first most + 1 lies all that counts, unless ties go on beyond them.
    top = np.argpartition(-scores, most, axis=1)[:, : most + 1]
    highest = np.take_along_axis(scores, top, 1)
    ordered = -np.sort(-highest, axis=1)
    alone = ordered[:, most] < ordered[:, most - 1] - tolerance
    out = precision(highest, np.take_along_axis(hit, top, 1), ks, tolerance)
    if not alone.all():
      rows = np.flatnonzero(~alone)
      out[rows] = _precision(scores[rows], hit[rows], ks, tolerance)
    return out
  return _precision(scores, hit, ks, tolerance)


def _precision(
  scores: np.ndarray, hit: np.ndarray, ks: Sequence[int], tolerance: float
) -> np.ndarray:
  """As `precision`, looking at every candidate."""
  out = np.zeros((len(scores), len(ks)))
  ordered = -np.sort(-scores, axis=1)
  for i, k in enumerate(ks):
    last = ordered[:, k - 1 : k]
    above = scores > last + tolerance
    tied = (scores >= last - tolerance) & ~above & np.isfinite(scores)
    places = k - above.sum(1)
    share = places / tied.sum(1)
    out[:, i] = ((above & hit).sum(1) + share * (tied & hit).sum(1)) / k
  return out


def score_classes(
  found: Embedded | None, scores: Scores | None = None, *, block: int = 512
) -> tuple[ExampleScores, ExampleScores] | None:
  """P@K of every query and that of chance on the same units; None where no two classes remain.

  Args:
    found: of `retrieval.embed`.
    scores: as `reranking.scorer` gives it; by default dot products of the embeddings.
    block: queries scored at a time.
  """
  if found is None:
    return None
  classes = np.array([single_finding(labels) for labels in found.labels])
  names, counts = np.unique(classes[classes != ""], return_counts=True)
  names = names[counts > 1]
  chosen = np.flatnonzero(np.isin(classes, names))
  if len(names) < 2:
    if (classes != "").any():
      log.info(
        "class retrieval is left out: no two findings stand alone in two images or more each"
      )
    return None
  if (left := len(classes) - len(chosen)) and scores is None:
    log.info(
      f"class retrieval: {left} of {len(classes)} images have no single finding and are left out"
    )
  _, of = np.unique(classes[chosen], return_inverse=True)
  n, ks = len(chosen), [k for k in AT if k < len(chosen)]
  sizes = np.bincount(of)[of]
  figures, floors = {}, {}
  for direction in DIRECTIONS:
    near = (scores or partial(_dot_products, found))(direction, chosen)
    parts = [[], []]
    starts = tqdm(range(0, n, block), desc="classes", unit="block", delay=1, mininterval=1)
    for start in starts:
      rows = np.arange(start, min(start + block, n))
      some = near(start, start + len(rows))
      hit = of[rows, None] == of[None, :]
      parts[0].append(precision(some, hit, ks))
      some[np.arange(len(rows)), rows] = -np.inf
      parts[1].append(precision(some, hit, ks))
    for own, part, chance in zip(OWN, parts, (sizes / n, (sizes - 1) / (n - 1)), strict=True):
      for k, values in zip(ks, np.concatenate(part).T, strict=True):
        figures[f"P@{k} {direction} {own}"] = values
        floors[f"P@{k} {direction} {own}"] = chance
  ids = [example_id(found.ids[i]) for i in chosen]
  groups, patients = classes[chosen].tolist(), [found.patients[i] for i in chosen]
  run, floor = (
    ExampleScores(ids, groups, patients, tuple(some), np.stack(list(some.values()), axis=1))
    for some in (figures, floors)
  )
  return run, floor


def _dot_products(found: Embedded, direction: str, chosen: np.ndarray):
  queries, candidates = found.sides(direction, chosen)
  return lambda start, stop: queries[start:stop] @ candidates.T


def class_rows(
  scores: tuple[ExampleScores, ExampleScores] | None,
  *,
  data: str,
  task: str = "class-retrieval",
  protocol: str = PROTOCOL,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows of `score_classes` by group ("macro" first) and metric, beside chance; none of none."""
  if scores is None:
    return []
  run, floor = scores
  means = bootstrap.grouped_means(
    run.values, run.groups, run.patients, resamples=resamples, seed=seed
  )
  chance = bootstrap.grouped_means(floor.values, run.groups, run.patients, resamples=0)
  rows = []
  for group in means:
    for m, metric in enumerate(run.metrics):
      s, gallery = means[group][m], len(run.ids) - ("without" in metric)
      head = (task, protocol, data, group, metric)
      rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n, gallery=gallery))
      value = chance[group][m].value
      rows.append(Row(*head, "chance", value, np.nan, np.nan, s.n, gallery=gallery))
  return rows
