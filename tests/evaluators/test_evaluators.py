"""The contract of all evaluators: rows, chance baselines, per-example scores, what is left out."""

import dataclasses
import hashlib
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from input_pipeline import digests
from input_pipeline.phantom import radiograph
from input_pipeline.text import diagnostic_terms, reports
from plan_jax.evaluators import embeddings, stored_scores
from plan_jax.evaluators.by_name import EVALUATORS
from plan_jax.evaluators.embeddings import Embeddings
from plan_jax.inference import prompts
from plan_jax.results import example_scores
from plan_jax.results.rows import RUN

EXAMPLES = [radiograph.example(1, i, 64) for i in range(40)]
OURS = {"prompts": tuple(prompts.load(("ours",)))}
OPTIONS = {
  "zero_shot": OURS,
  "grounding_compat": OURS,
  "segmentation_compat": OURS,
  "terms": {"listed": diagnostic_terms.load().named},
}
COMMON = {"data": "toy/validation", "resamples": 20, "seed": 0}


class Dataset:
  """Examples in memory, as `EvaluationSet` gives them."""

  dataset, split, data, radiologists = "phantom", "validation", "toy/validation", None

  def __init__(self, examples):
    self._examples = list(examples)

  def has(self, where, split=""):
    return any(self.examples(where, split=split))

  def examples(self, where=None, what="", split=""):
    field = {"text": "sentences", "regions": "regions"}.get(where)
    return (each for each in self._examples if field is None or getattr(each, field))


def numbers(key, *shape):
  """Numbers in [0, 1) that are a function of the key."""
  digest = hashlib.sha256(key if isinstance(key, bytes) else str(key).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "little")).random(shape)


class Model:
  """Answers by hashes of images and texts."""

  spec = SimpleNamespace(probability=None)
  variables, grid, map_sigma, map_nearest = {}, (4, 5), 0.0, False
  has_pair_scores, has_significance, has_local_scores, local_bytes = False, True, True, 100

  def embed_images(self, images):
    return self._units([numbers(image.tobytes(), 6) - 0.5 for image in images])

  def embed_texts(self, texts):
    return self._units([numbers(text, 6) - 0.5 for text in texts])

  embed_prompts = embed_texts

  @staticmethod
  def _units(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

  def similarities(self, images, phrases, of):
    pairs = zip(images, phrases, strict=True)
    return np.stack(
      [
        numbers(image.tobytes() + of.encode() + phrase.encode(), *self.grid)
        for image, phrase in pairs
      ]
    ).astype(np.float32)

  def maps(self, images, phrases, of):
    maps = self.similarities(images, phrases, of)
    return [self.to_image(m / m.max(), image.shape) for m, image in zip(maps, images, strict=True)]

  def to_image(self, grid, shape, *, nearest=False):
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.resize(grid.astype(np.float32), shape[::-1], interpolation=mode)

  def peaks(self, images, phrases):
    return self.similarities(images, phrases, "words").max((1, 2))

  def significances(self, texts):
    words = [reports.normalise(" ".join(text)).split() for text in texts]
    return [[(word, float(numbers(word, 1)[0])) for word in each] for each in words]

  def local_features(self, images, texts):
    return self.embed_images(images), self.embed_texts(texts)

  def local_logits(self, features, images, texts):
    return np.einsum("qid,qjd->qij", features[0][images], features[1][texts])

  def local_similarities(self, texts):
    return lambda images: self.embed_images(images) @ self.embed_texts(texts).T

  def global_scale(self):
    return 2.0


class PairModel(Model):
  """The same answers as scores of pairs; notes how many images it is asked for at a time."""

  has_pair_scores, has_local_scores = True, False
  embed_images = embed_texts = None

  def __init__(self):
    self.asked = []

  def pair_scores(self, texts):
    embeddings = Model().embed_texts(texts)

    def scores(images):
      self.asked.append(len(images))
      return Model().embed_images(images) @ embeddings.T

    return scores


def evaluate(name, examples, model=None, **options):
  """Rows, and the per-example scores by task."""
  evaluator = EVALUATORS[name](**OPTIONS.get(name, {}) | options)
  model, dataset = model or Model(), Dataset(examples)
  scores = evaluator.score(model, dataset, Embeddings(model, dataset))
  return evaluator.rows(scores, **COMMON), evaluator.example_scores(scores)


@pytest.fixture(scope="module")
def results():
  return {name: evaluate(name, EXAMPLES) for name in EVALUATORS}


@pytest.mark.parametrize("name", EVALUATORS)
def test_rows_have_intervals_and_chance_beside_them(results, name):
  rows, _ = results[name]
  keys = [(row.task, row.protocol, row.group, row.metric, row.model) for row in rows]
  assert rows and len(set(keys)) == len(keys)
  for row in rows:
    protocol = row.protocol.partition(",")[0].removesuffix("-global")
    assert protocol in EVALUATORS[name].protocols and row.data == "toy/validation"
    assert (row.task, row.protocol, row.group, row.metric, RUN) in keys
    assert row.n > 0 or math.isnan(row.value)
    assert math.isnan(row.low) or row.low <= row.value <= row.high
  assert any(row.model == RUN and row.low < row.high for row in rows)
  for protocol in {row.protocol for row in rows if not row.protocol.startswith("compat-")}:
    models = {row.model for row in rows if row.protocol == protocol}
    assert models & {"chance", "random"}, f"{protocol} has no chance baseline"


@pytest.mark.parametrize("name", EVALUATORS)
def test_the_order_of_examples_does_not_matter(results, name):
  def values(rows):
    keys = [(row.task, row.protocol, row.group, row.metric, row.model) for row in rows]
    return dict(zip(keys, [(row.value, row.low, row.high, row.n) for row in rows], strict=True))

  rows, by_task = results[name]
  order = np.random.default_rng(0).permutation(len(EXAMPLES))
  other, other_by_task = evaluate(name, [EXAMPLES[i] for i in order])
  first, second = values(rows), values(other)
  assert first.keys() == second.keys()
  for key in first:
    if "compat-limitr-v2" not in key[1]:  # whose galleries follow the order
      assert first[key] == pytest.approx(second[key], nan_ok=True, abs=1e-5), key
  assert by_task.keys() == other_by_task.keys()
  for task, scores in by_task.items():
    assert set(scores.ids) == set(other_by_task[task].ids)


@pytest.mark.parametrize("name", EVALUATORS)
def test_what_cannot_be_scored_changes_nothing(results, name):
  """An image without text and regions, of which every finding is uncertain."""
  unusable = dataclasses.replace(
    EXAMPLES[0], image_id="unusable", sentences=(), regions=(), labels={"edema": -1}
  )
  rows, _ = evaluate(name, [*EXAMPLES[:20], unusable, *EXAMPLES[20:]])
  assert repr(rows) == repr(results[name][0])


@pytest.mark.parametrize("name", EVALUATORS)
def test_nothing_to_score_gives_nothing(name):
  bare = dataclasses.replace(EXAMPLES[0], sentences=(), regions=(), labels={})
  for examples in ([], [bare]):
    assert evaluate(name, examples) == ([], {})


@pytest.mark.parametrize("name", EVALUATORS)
def test_example_scores_are_of_tasks_with_rows(results, name):
  rows, by_task = results[name]
  assert {key.partition("@")[0] for key in by_task} <= {row.task for row in rows}
  # Published protocols are no tasks of their own, which two runs would be compared by.
  assert all("@" in key for key in by_task) == name.endswith("compat")
  for scores in by_task.values():
    assert {*scores.patients} <= {example.patient_id for example in EXAMPLES}


def test_scores_of_pairs_are_evaluated_as_embeddings_are():
  """Each image is decoded once for all texts; "embeddings" become the mean of scores."""
  several = prompts.Prompts(("left lung", "right lung"), ("no lung",))
  sets = [prompts.PromptSet(name, "abcdef", name, {}, several) for name in prompts.ENSEMBLES]
  vectors = {"zero_shot": {"prompts": tuple(each.of_pairs() for each in sets)}}
  pairs = {"zero_shot": {"prompts": tuple(sets)}}
  protocols = {"zero_shot": ("zero-shot-v1", "zero-shot-classes-v1", "compat-test-threshold-v2")}
  for name in ("retrieval", "retrieval_compat", "class_retrieval", "zero_shot"):
    some = {"protocols": protocols[name]} if name in protocols else {}
    model = PairModel()
    rows, by_task = evaluate(name, EXAMPLES, model, **some, **pairs.get(name, {}))
    want, want_by_task = evaluate(name, EXAMPLES, **some, **vectors.get(name, {}))
    assert model.asked == [len(EXAMPLES)]
    assert [(r.task, r.protocol, r.group, r.metric, r.model, r.n) for r in rows] == [
      (r.task, r.protocol, r.group, r.metric, r.model, r.n) for r in want
    ]
    values = [[(r.value, r.low, r.high) for r in each] for each in (rows, want)]
    np.testing.assert_allclose(*values, atol=1e-6)
    for task, scores in want_by_task.items():
      np.testing.assert_allclose(by_task[task].values, scores.values, atol=1e-6)


def test_what_a_model_that_scores_pairs_leaves_out(monkeypatch, capsys):
  monkeypatch.setattr(embeddings, "MOST_SCORED", 39)
  assert evaluate("retrieval", EXAMPLES, PairModel()) == ([], {})
  assert (
    "retrieval: the gallery of 40 pairs is left out, 39 are the most" in capsys.readouterr().out
  )
  silent = prompts.PromptSet("mine", "abcdef", "embeddings", {}, None)
  assert evaluate("zero_shot", EXAMPLES, PairModel(), prompts=(silent,)) == ([], {})
  assert "zero-shot is left out: no set of prompts has any for a label" in capsys.readouterr().out


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("examples", [EXAMPLES, EXAMPLES[:1]], ids=["many", "one"])
def test_rows_are_made_again_from_what_is_kept(name, examples, tmp_path):
  """Of the files alone: no model, no data set, and prompts as they were."""
  evaluator = EVALUATORS[name](**OPTIONS.get(name, {}))
  model, dataset = Model(), Dataset(examples)
  scores = evaluator.score(model, dataset, Embeddings(model, dataset))
  rows, kept = evaluator.rows(scores, **COMMON), evaluator.example_scores(scores)
  assert bool(rows) == bool(kept)
  for key, each in kept.items():
    example_scores.write(tmp_path / f"{key}.csv", each)
  entries = stored_scores.describe(evaluator, scores, kept)
  place = {"folder": "", "data": COMMON["data"], "evaluators": entries}
  draws = {key: COMMON[key] for key in ("resamples", "seed")}
  stored_scores.write(tmp_path, [place], **draws)
  digests.write_sums(tmp_path)
  remade, rest = stored_scores.remake(tmp_path)
  assert repr(remade) == repr(rows) and rest == []
  if any(row.low < row.high for row in rows):
    assert repr(stored_scores.remake(tmp_path, seed=draws["seed"] + 1)[0]) != repr(rows)
