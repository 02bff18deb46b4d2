"""Side: does the map of a phrase lie on the side that it names, and move with the word?

Grounding scores of a finding that sits on one side, or in an image that shows a single lesion, say
little about whether the words "left" and "right" are read. Here each phrase is also grounded with
left and right exchanged.

Protocol "side-v1":

- An example is a phrase of an image, as in "grounding-v1", whose words name exactly one side
  ("left", "right", "LLL", ...; see input_pipeline/text/mirror.py). Left out, by text, view and
  region alone, and counted: phrases that name no side, both ("bilateral", "both"), or one that
  cannot be told; of lateral views; whose region does not lie with more than half of its pixels on
  the side that is named.
- A side is a half of the image at its stored resolution; the patient's right is the image's left.
  The middle column of an odd width is on neither.
- The map is that of "grounding-v1" from the phrase's words, and so is that of the swapped phrase,
  in which left and right are exchanged. Pixels that the model did not see hold no mass.
- "on the named side" is 1 where more of the map's mass lies on the side that the phrase names.
- "moves" is 1 where more of the mass of the swapped phrase's map lies on the other half than that
  of the phrase's own. A model that does not read the side scores 0.
- "true side brighter" is 1 where the peak of the phrase is higher than that of the swapped phrase:
  the maximum over the image of the mean similarity of its words, as in "presence-v1", unscaled.
- Ties count 0: masses that differ by less than a millionth of all, as those of a flat map, and
  peaks that differ by less than 1e-6.
- A finding scores the mean of its examples, `macro` the plain mean of the findings. Intervals are
  95 % percentile intervals of 1,000 bootstrap draws of patients.
- Chance baseline `chance`: .5, of maps and peaks drawn at random.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from input_pipeline import terminal
from input_pipeline.example import Example
from input_pipeline.text import mirror
from plan_jax.evaluators.base import Evaluator
from plan_jax.evaluators.datasets import EvaluationSet
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.evaluators.phrases import Phrase, phrase_batches
from plan_jax.inference.predictor import Predictor
from plan_jax.metrics import bootstrap
from plan_jax.metrics.localization import side_balance
from plan_jax.metrics.ranking import TOLERANCE
from plan_jax.results.example_scores import ExampleScores
from plan_jax.results.rows import RUN, Row
from plan_jax.runtime.logging import log

PROTOCOL = "side-v1"
METRICS = ("on the named side", "moves", "true side brighter")
_OF_IMAGE = {"left": 1, "right": -1}  # sign of `side_balance` where the mass is on that side


def score_side(
  model: Predictor, examples: Iterable[Example], *, batch: int = 32
) -> ExampleScores | None:
  """Scores every phrase that names one side; None where there is none.

  `batch` phrases are grounded at a time, and as many swapped. What is left out is logged. Raises
  UserError as `phrase_batches`.
  """
  reasons: Counter[str] = Counter()

  def keep(phrase: Phrase) -> bool:
    reasons[reason := _why_left_out(phrase)] += 1
    return not reason

  who, values = [], []
  for images, phrases in phrase_batches(examples, batch, keep):
    texts = [phrase.text for phrase in phrases]
    asked = images * 2, texts + [mirror.swapped(text) for text in texts], "words"
    maps, similarities = model.maps(*asked), model.similarities(*asked)
    balances = [side_balance(heatmap) for heatmap in maps]
    # The nearest cell: its own value, and none of the margin beside the image.
    peaks = [
      np.nanmax(model.to_image(similarity, image.shape, nearest=True))
      for similarity, image in zip(similarities, asked[0], strict=True)
    ]
    for i, phrase in enumerate(phrases):
      own, other = balances[i], balances[len(phrases) + i]
      brighter = peaks[i] - peaks[len(phrases) + i] > TOLERANCE
      values.append([own * _OF_IMAGE[_side(phrase)] > 0, own * other < 0, brighter])
    who += [phrase.who for phrase in phrases]
  count = reasons.pop("", 0)
  if reasons:
    parts = [f"{number} {reason}" for reason, number in sorted(reasons.items())]
    total = count + reasons.total()
    log.info(f"side: {count} of {total} phrases are scored; left out: {terminal.join(parts)}")
  if not who:
    return None
  columns = map(list, zip(*who, strict=True))
  return ExampleScores(*columns, METRICS, np.array(values, np.float64))


def side_rows(scores: ExampleScores | None, *, data: str, **draws: int) -> list[Row]:
  """Makes rows by group ("macro" first), metric and model; none of no scores."""
  if scores is None:
    return []
  means = bootstrap.grouped_means(scores.values, scores.groups, scores.patients, **draws)
  rows = []
  for group, summaries in means.items():
    for metric, s in zip(METRICS, summaries, strict=True):
      head = ("side", PROTOCOL, data, group, metric)
      rows.append(Row(*head, RUN, s.value, s.low, s.high, s.n))
      rows.append(Row(*head, "chance", 0.5, np.nan, np.nan, s.n))
  return rows


@dataclass(frozen=True, kw_only=True)
class Side(Evaluator):
  """Evaluator of "side-v1"."""

  needs = "regions"
  protocols: tuple[str, ...] = (PROTOCOL,)
  rows = staticmethod(side_rows)

  def score(
    self, model: Predictor, dataset: EvaluationSet, embeddings: Embeddings
  ) -> ExampleScores | None:
    """Scores every phrase that names one side."""
    return score_side(model, dataset.examples("regions", "side"))

  def example_scores(self, scores: ExampleScores | None) -> dict[str, ExampleScores]:
    """Picks the scores of the phrases."""
    return {"side": scores} if scores else {}

  def restore(self, kept: dict[str, ExampleScores], facts: dict) -> ExampleScores | None:
    """Takes the phrases back."""
    return kept.get("side")


def _why_left_out(phrase: Phrase) -> str:
  """Returns why the protocol leaves a phrase out, "" where it does not."""
  if not mirror.can_be_swapped([phrase.text]):
    return "name a side that cannot be told"
  sides = mirror.sides(phrase.text)
  if len(sides) != 1:
    return "name both sides" if sides else "name no side"
  if phrase.example.is_lateral:
    return "are of a lateral view"
  if side_balance(phrase.mask) * _OF_IMAGE[_side(phrase)] <= 0:
    return "have a region that is not on their side"
  return ""


def _side(phrase: Phrase) -> str:
  """Returns the one side that a phrase names."""
  return next(iter(mirror.sides(phrase.text)))
