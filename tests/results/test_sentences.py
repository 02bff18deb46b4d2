"""The first metrics in words: which are chosen, and what they say about chance."""

import math
from dataclasses import replace

import pytest

from plan_jax.results.rows import Row
from plan_jax.results.sentences import MOST, sentences

POINTING = Row(
  "grounding", "grounding-v1", "d/test", "macro", "pointing", "run", 0.6, 0.5, 0.7, 1200
)
CHANCE = replace(POINTING, model="mean_box", value=0.4, low=math.nan, high=math.nan)


def test_a_sentence_has_value_interval_n_data_and_the_best_chance_baseline():
  (sentence,) = sentences([POINTING, CHANCE, replace(CHANCE, model="random", value=0.1)], {})
  assert "0.600 [0.500, 0.700] (1,200 phrases of d/test)" in sentence.text
  assert sentence.standing == "better"
  assert sentence.chance == "better than the best chance baseline, mean box: 0.400"


@pytest.mark.parametrize(
  ("value", "standing", "words"),
  [(0.55, "level", "no different from the"), (0.8, "worse", "worse than the")],
)
def test_it_says_where_a_run_is_not_better(value, standing, words):
  (sentence,) = sentences([POINTING, replace(CHANCE, value=value)], {})
  assert sentence.standing == standing and sentence.chance.startswith(words)


def test_no_verdict_without_a_baseline_an_interval_or_enough_patients():
  (alone,) = sentences([POINTING], {})
  assert alone.standing == "" and "no chance baseline" in alone.chance
  (bare,) = sentences([replace(POINTING, low=math.nan, high=math.nan), CHANCE], {})
  assert bare.standing == "" and bare.chance == "the best chance baseline, mean box: 0.400"
  (few,) = sentences([POINTING, CHANCE], {("d/test", "grounding"): {"macro": 19}})
  assert few.standing == "" and few.chance.startswith("not judged: only 19 patients; the best")


def test_the_first_metrics_that_exist_are_chosen():
  retrieval = Row("retrieval", "retrieval-v1", "d/test", "all", "", "run", 0.2, 0.1, 0.3, 50, 40)
  rows = [
    replace(retrieval, metric="R@5 text-to-image"),
    replace(retrieval, metric="R@5 image-to-text"),
    Row("presence", "presence-v1", "d/test", "macro", "AUC", "run", math.nan, 0, 1, 9),
    replace(POINTING, protocol="compat-x", value=0.9),
    replace(POINTING, data="e/test"),
    replace(POINTING, metric="mIoU"),
    Row("zero-shot-ours", "zero-shot-v1", "d/test", "macro", "AUC", "run", 0.7, 0.6, 0.8, 9),
  ]
  texts = [sentence.text for sentence in sentences(rows, {})]
  assert len(texts) == MOST
  starts = ["Pointing", "Grounding", "Retrieval: among 40 reports", "Zero-shot"]
  assert all(map(str.startswith, texts, starts)) and "0.600" in texts[0] and "e/test" in texts[0]
