"""Contrasts of the per-example scores of words: which kinds should score above which."""

from collections.abc import Iterator

import numpy as np

from plan_jax.results.example_scores import ExampleScores

METRICS = ("significance", "listed")
KINDS = ("finding", "attribute", "other")
# AUC -> the kinds that should score high, and those that should score low.
CONTRASTS = {
  "AUC finding against rest": (("finding",), ("attribute", "other")),
  "AUC finding against other": (("finding",), ("other",)),
  "AUC finding or attribute against other": (("finding", "attribute"), ("other",)),
}


def contrasts(
  scores: ExampleScores,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[str]]]:
  """Yields each AUC of `CONTRASTS`: places of its words, which should score high, patients."""
  kinds, patients = np.array(scores.groups), np.array(scores.patients)
  for metric, (high, low) in CONTRASTS.items():
    places = np.flatnonzero(np.isin(kinds, high + low))
    yield metric, places, np.isin(kinds[places], high), patients[places].tolist()
