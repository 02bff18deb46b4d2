"""Terms: contrasts by hand, cut sentences, and the kinds of the phantom's words."""

import math
from dataclasses import replace

import pytest

from input_pipeline.example import Entity, Example
from input_pipeline.phantom import reports as phantom_reports
from input_pipeline.text import diagnostic_terms as term_lists
from input_pipeline.text import reports
from plan_jax.evaluators import terms

SCORES = {"mass": 0.9, "left": 0.6, "lower": 0.3, "the": 0.1, "is": 0.3, "clear": 0.7}
KINDS = {"mass": "finding", "left": "attribute", "lower": "attribute"}


def _example(i, *sentences):
  return Example(b"image", 1, 1, f"i{i}", f"s{i}", f"p{i}", sentences=sentences)


def _kinds(example, number):
  sentence = example.sentences[number]
  return [KINDS.get(word, "other") for word in reports.normalise(sentence).split()]


def _listed(sentence):
  return [word in ("mass", "clear") for word in reports.normalise(sentence).split()]


class _Reader:
  """Knows the words of `SCORES`; returns three words of a sentence at most."""

  def __init__(self):
    self.calls = []

  def significances(self, texts):
    self.calls.append(texts)
    return [
      [(word, SCORES[word]) for word in reports.normalise(text[0]).split()[:3]] for text in texts
    ]


def evaluate(reader, examples, kinds, listed, *, batch=64, resamples=0):
  scores = terms.score_terms(reader, examples, kinds, listed, batch=batch)
  return terms.terms_rows(scores, data="toy", resamples=resamples)


def test_contrasts_by_hand(capsys):
  reader = _Reader()
  examples = [
    _example(0, "Left mass.", "The is clear."),
    _example(1, "Left mass.", "Left lower."),
    _example(2, "The left lower mass is clear."),
    _example(3),
  ]
  rows = evaluate(reader, iter(examples), _kinds, _listed, batch=3, resamples=50)
  # Each distinct sentence is read once, each occurrence counts.
  assert reader.calls == [
    [("Left mass.",), ("The is clear.",), ("Left lower.",)],
    [("The left lower mass is clear.",)],
  ]
  assert capsys.readouterr().out == (
    "terms: 1 of 5 sentences came back without all their words and are left out\n"
  )
  assert {(row.task, row.protocol, row.group) for row in rows} == {("terms", "terms-v1", "all")}
  cells = {(row.metric, row.model): row for row in rows}
  assert len(cells) == len(rows) == 3 * 3 + 3
  # finding .9 .9, attribute .6 .6 .6 .3, other .1 .3 .7
  expected = {
    "AUC finding against rest": (1.0, 9),
    "AUC finding against other": (1.0, 5),
    "AUC finding or attribute against other": ((2 * 3 + 3 * 2 + 1.5) / 18, 9),
  }
  for metric, (value, n) in expected.items():
    run, chance = cells[metric, "run"], cells[metric, "chance"]
    assert (run.value, run.n) == (pytest.approx(value), n)
    assert run.low <= run.value <= run.high
    assert (chance.value, chance.n) == (0.5, n) and math.isnan(chance.low)
  # On the list: both findings, and one of three other words.
  baselines = [row.value for row in rows if row.model == "term_list"]
  assert baselines == pytest.approx([1 - 0.5 / 7, 1 - 0.5 / 3, (2 * (1 - 0.5 / 3) + 4 / 3) / 6])
  for kind, value, n in (("finding", 0.9, 2), ("attribute", 2.1 / 4, 4), ("other", 1.1 / 3, 3)):
    row = cells[f"mean significance {kind}", "run"]
    assert (row.value, row.n) == (pytest.approx(value), n)


def test_without_finding_words_the_area_is_missing():
  rows = evaluate(_Reader(), [_example(0, "the is")], _kinds, _listed, resamples=10)
  for row in rows:
    known = row.model == "chance" or row.metric == "mean significance other"
    assert math.isnan(row.value) != known
    assert math.isnan(row.low)  # one patient
  only_attributes = [_example(0, "left"), _example(1, "left")]
  rows = evaluate(_Reader(), only_attributes, _kinds, _listed, resamples=10)
  assert [row.value for row in rows if row.metric == "mean significance attribute"] == [0.6]


def test_empty_and_wrong_input():
  assert evaluate(_Reader(), [], _kinds, _listed) == []
  assert evaluate(_Reader(), [_example(0)], _kinds, _listed) == []
  cut = [_example(0, "the is clear mass")]
  assert evaluate(_Reader(), cut, _kinds, _listed) == []
  with pytest.raises(ValueError, match="'mass' has words of kind verb"):
    evaluate(_Reader(), [_example(0, "mass")], lambda s, i: ["verb"], _listed)


def test_the_phantoms_words_have_kinds_that_terms_knows():
  class Perfect:
    def significances(self, texts):
      levels = {"finding": 0.9, "attribute": 0.5, "other": 0.1}
      return [[("", levels[kind]) for kind in phantom_reports.word_kinds(t[0])] for t in texts]

  examples = [
    _example(0, "Small left pleural effusion is seen.", "The heart size is normal."),
    _example(1, "There is no pleural effusion or pneumothorax."),
  ]
  rows = evaluate(
    Perfect(),
    examples,
    lambda example, i: phantom_reports.word_kinds(example.sentences[i]),
    term_lists.load().named,
    resamples=10,
  )
  assert [row.value for row in rows if row.model == "run"][:3] == [1, 1, 1]
  assert next(row.value for row in rows if row.model == "term_list") == 1


def test_entities_give_the_kinds():
  sentence = "Small left effusion, no pneumothorax, possible edema."
  spans = {
    "Small": "OBS-DP",
    "left": "ANAT-DP",
    "effusion": "OBS-DP",
    "pneumothorax": "OBS-DA",
    "edema": "OBS-U",
  }
  entities = [
    Entity(1, sentence.index(word), sentence.index(word) + len(word), label)
    for word, label in spans.items()
  ]
  entities.append(Entity(0, 0, 4, "OBS-DP"))
  example = replace(_example(0, "Mass.", sentence), entities=tuple(entities))
  assert terms.entity_kinds(example, 0) == ["finding"]
  assert terms.entity_kinds(example, 1) == [
    "finding",
    "attribute",
    "finding",
    "other",
    "other",
    "other",
    "finding",
  ]
  assert terms.entity_kinds(_example(0, "No mass."), 0) == ["other", "other"]
  # An entity of two words marks both; one of half a word, the word.
  half = replace(_example(0, "Right-sided mass seen."), entities=(Entity(0, 6, 14, "OBS-DP"),))
  assert terms.entity_kinds(half, 0) == ["finding", "finding", "other"]
