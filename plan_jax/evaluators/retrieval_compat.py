"""Image-text retrieval as published evaluators measure it, one emulated protocol each.

Both differ from "retrieval-v1" (see `retrieval`) in what a hit is: the query's own pair alone, so
that a report which says the same, or another image of the study, is a wrong answer.

- "compat-instance": the whole gallery, as most papers have it.
- "compat-limitr" (LIMITR's code): the pairs are cut into galleries of 1,000 in their order, a last
  one that is not full is left out, and figures are the mean over the galleries; MedR is the floor
  of the median of the ranks counted from 0, plus 1. Left out below 1,000 pairs.

Ties are shared as in "retrieval-v1", where those codes leave them to the sort. The floor `chance`
is exact for R@K. Intervals: 1,000 bootstrap draws of patients; LIMITR's MedR has none.
"""

import numpy as np

from plan_jax.evaluators import retrieval
from plan_jax.evaluators.retrieval import AT, DIRECTIONS, Embedded
from plan_jax.metrics import bootstrap
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

CHUNK = 1000


def compat_rows(
  found: Embedded | None,
  *,
  data: str,
  chunk: int = CHUNK,
  resamples: int = bootstrap.RESAMPLES,
  seed: int = 0,
) -> list[Row]:
  """Rows of both protocols by direction and metric; none of nothing."""
  if found is None:
    return []
  n = len(found.ids)
  galleries = {"compat-instance": [np.arange(n)]}
  if n >= chunk:
    galleries["compat-limitr"] = [np.arange(i, i + chunk) for i in range(0, n - chunk + 1, chunk)]
    if n % chunk:
      log.info(f"compat-limitr: the last {n % chunk} of {n} pairs fill no gallery and are left out")
  rows = []
  for protocol, parts in galleries.items():
    queries = np.concatenate(parts)
    patients = [found.patients[i] for i in queries]
    size = len(parts[0])
    for direction in DIRECTIONS:
      ranks = [
        retrieval.rank_embeddings(*found.sides(direction, part), np.arange(len(part)))
        for part in parts
      ]
      head = ("retrieval", protocol, data, "all")
      # Galleries are of one size, so the mean over queries is the mean over galleries.
      recall = np.stack([np.concatenate([r.recall(k) for r in ranks]) for k in AT], axis=1)
      means = bootstrap.grouped_means(
        recall, ["all"] * len(queries), patients, resamples=resamples, seed=seed
      )["all"]
      for k, s in zip(AT, means, strict=True):
        metric = f"R@{k} {direction}"
        rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=size))
        chance = min(1.0, k / size)
        rows.append(Row(*head, metric, "chance", chance, np.nan, np.nan, s.n, gallery=size))
      if protocol == "compat-instance":
        s = bootstrap.median(ranks[0].expected(), patients, resamples=resamples, seed=seed)
      else:
        medians = [np.floor(np.median(r.expected() - 1)) + 1 for r in ranks]
        s = bootstrap.Summary(float(np.mean(medians)), np.nan, np.nan, len(queries))
      metric = f"median rank {direction}"
      rows.append(Row(*head, metric, RUN, s.value, s.low, s.high, s.n, gallery=size))
  return rows
