"""Zero-shot classification by hand: scores, thresholds, views, classes, and what is left out."""

import math
import random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.example import Example
from plan_jax.evaluators import labelled_images, zero_shot, zero_shot_classes
from plan_jax.evaluators.classification import RANKED
from plan_jax.inference import prompts
from plan_jax.inference.prompts import Prompts, PromptSet
from plan_jax.metrics import auc, classification
from plan_jax.results.example_scores import SCORED


def texts_of(name, positive, negative=()):
  return {name: Prompts(tuple(positive), tuple(negative))}


def prompt_set(findings, ensemble="embeddings", template=None):
  return PromptSet("mine", "abcdef", ensemble, findings, template)


def example(i, labels, view="PA", patient=None, image=None):
  pixels = np.full((5, 7), i % 250, np.uint8)
  image = cv2.imencode(".png", pixels)[1].tobytes() if image is None else image
  return Example(image, 7, 5, f"i{i}", f"s{i}", patient or f"p{i}", view=view, labels=labels)


class Model:
  """An image is looked up by its grey, a text by itself; says how often it is asked."""

  has_local_scores, variables = False, 3
  spec = SimpleNamespace(probability=None)

  def __init__(self, seed=0, images=None, texts=None):
    self.rng, self.images, self.texts = np.random.default_rng(seed), images or {}, texts or {}
    self.calls = {"images": [], "texts": []}

  def _embed(self, kind, table, keys):
    self.calls[kind].append(list(keys))
    for key in keys:
      if key not in table:
        table[key] = self.rng.normal(size=4)
    scores = np.array([table[key] for key in keys], np.float32)
    return scores / np.linalg.norm(scores, axis=1, keepdims=True)

  def embed_images(self, images):
    return self._embed("images", self.images, [int(image[0, 0]) for image in images])

  def embed_prompts(self, texts):
    assert all(len(text) == 1 for text in texts)
    return self._embed("texts", self.texts, [text[0] for text in texts])


def unit(x):
  return np.asarray(x, float) / np.linalg.norm(x)


def cells(rows):
  return {(r.task, r.protocol.split(",")[0], r.group, r.metric, r.model): r for r in rows}


EXAMPLES = [
  example(1, {"mass": 1, "edema": 0}),
  example(2, {"mass": 0, "edema": -1}),
  example(3, {"mass": 1, "edema": 1, "tube": 1}),
  example(4, {"mass": 0, "edema": 0, "scar": 0}),
  example(5, {"mass": -1}, image=b"not looked at"),
  example(6, {}, image=b"not looked at"),
]
BOTH = texts_of("mass", ["a mass", "there is a mass"], ["no mass"]) | texts_of(
  "edema", ["edema"], ["no edema", "dry lungs"]
)


def test_images_are_embedded_once_and_what_is_left_out_is_said(capsys):
  model = Model()
  images = labelled_images.embed(model, iter(EXAMPLES), batch=3, what="zero-shot")
  assert model.calls["images"] == [[1, 2, 3], [4]]
  assert images.ids == ["i1", "i2", "i3", "i4"] and images.patients == ["p1", "p2", "p3", "p4"]
  assert images.findings() == (["edema", "mass"], ["scar", "tube"])
  assert capsys.readouterr().out.splitlines() == [
    "zero-shot: 2 of 6 images have no label of 1 or 0 and are left out",
    "zero-shot: 1 uncertain pairs of image and finding are left out",
    "zero-shot: 2 findings are only present or only absent and left out: scar, tube",
  ]
  scores = zero_shot.score_zero_shot(
    model, images, prompt_set(texts_of("mass", ["x", "y"], ["x", "z"]))
  )
  assert model.calls["texts"] == [["x", "y", "z"]] and len(model.calls["images"]) == 2
  assert set(scores.example_scores.groups) == {"mass"} and scores.classes is None
  assert "prompts mine: no prompts for edema; left out" in capsys.readouterr().out
  assert (
    labelled_images.embed(model, [], what="zero-shot") is None
    and labelled_images.embed(model, EXAMPLES[4:], what="zero-shot") is None
  )
  with pytest.raises(UserError, match="i7"):
    labelled_images.embed(model, [example(7, {"mass": 1}, image=b"no")], what="zero-shot")


@pytest.mark.parametrize("ensemble", prompts.ENSEMBLES)
def test_scores_by_hand(ensemble):
  model = Model(1)
  images = labelled_images.embed(model, EXAMPLES, what="zero-shot")
  scores = zero_shot.score_zero_shot(model, images, prompt_set(BOTH, ensemble)).example_scores
  assert scores.metrics == SCORED
  expected = {}
  for finding, labels in (("edema", {1: 0, 3: 1, 4: 0}), ("mass", {1: 1, 2: 0, 3: 1, 4: 0})):
    for i, present in labels.items():
      image, s = unit(model.images[i]), []
      for texts in (BOTH[finding].positive, BOTH[finding].negative):
        vectors = [unit(model.texts[text]) for text in texts]
        each = [float(image @ vector) for vector in vectors]
        s.append(
          {
            "embeddings": float(image @ unit(np.mean(vectors, axis=0))),
            "similarities": sum(each) / len(each),
            "highest": max(each),
          }[ensemble]
        )
      score = math.exp(s[0]) / (math.exp(s[0]) + math.exp(s[1]))
      expected[f"i{i}\t{finding}"] = (score, present)
  assert dict(zip(scores.ids, map(tuple, scores.values), strict=True)) == {
    name: pytest.approx(values, abs=1e-6) for name, values in expected.items()
  }
  # Without negative prompts the similarity is the score.
  alone = prompt_set(texts_of("mass", BOTH["mass"].positive), ensemble)
  similar = zero_shot.score_zero_shot(model, images, alone).example_scores.values[:, 0]
  vectors = np.stack([unit(model.texts[text]) for text in BOTH["mass"].positive])
  table = np.stack([unit(model.images[i]) for i in (1, 2, 3, 4)]) @ vectors.T
  if ensemble == "highest":
    np.testing.assert_allclose(similar, table.max(1), atol=1e-6)
  elif ensemble == "similarities":
    np.testing.assert_allclose(similar, table.mean(1), atol=1e-6)
  # A model that makes a probability of it says that instead.
  model.spec = SimpleNamespace(probability=lambda scale, cos: 1 / (1 + np.exp(-scale * cos)))
  told = zero_shot.score_zero_shot(model, images, alone).example_scores.values[:, 0]
  np.testing.assert_allclose(told, 1 / (1 + np.exp(-3 * similar)), atol=1e-6)


def test_prompts_that_cancel_and_embeddings_that_are_no_numbers():
  images = np.eye(3, dtype=np.float32)
  opposite = np.array([[1, 0, 0], [-1, 0, 0]], np.float32)
  np.testing.assert_array_equal(prompts.similarities(images, opposite, "embeddings"), 0)
  for ensemble in prompts.ENSEMBLES:
    with pytest.raises(ValueError, match="NaN"):
      prompts.similarities(images * np.nan, opposite, ensemble)
  np.testing.assert_array_equal(zero_shot_classes.standardised(np.full(4, 0.3)), 0)


def many(n=120, seed=0, views=("PA",), shift=0):
  """Images whose labels follow, with noise, from what their grey stands for."""
  rng = np.random.default_rng(seed)
  return [
    example(
      i + shift,
      {"mass": int(rng.random() < 0.4), "edema": int(rng.random() < 0.3), "rare": int(i == 0)},
      views[i % len(views)],
      f"p{(i + shift) // 2}",
    )
    for i in range(n)
  ]


THREE = BOTH | texts_of("rare", ["rare thing"], ["no rare thing"])


def test_thresholds_are_of_the_validation_images(capsys):
  model = Model(2)
  images = labelled_images.embed(model, many(), what="zero-shot")
  # One kind of "rare" only.
  validation = labelled_images.embed(model, many(40, seed=5, shift=121), what="validation")
  for labels in validation.labels:
    labels["rare"] = 0
  scores = zero_shot.score_zero_shot(model, images, prompt_set(THREE), validation)
  assert "not both present and absent in the validation split, so without a threshold: rare" in (
    capsys.readouterr().out
  )
  assert set(scores.thresholds) == {"mass", "edema"}
  by = zero_shot.score_zero_shot(model, validation, prompt_set(BOTH)).example_scores
  rows = cells(zero_shot.zero_shot_rows(scores, data="toy/test", resamples=30))
  task, protocol = "zero-shot-mine", "zero-shot-v1"
  score, present = scores.example_scores.values[:, 0], scores.example_scores.values[:, 1] == 1
  groups = np.array(scores.example_scores.groups)
  for name in ("mass", "edema"):
    some = np.array(by.groups) == name
    threshold = classification.best_threshold(by.values[some, 0], by.values[some, 1] == 1)
    row = rows[task, protocol, name, "threshold", "run"]
    assert (row.value, row.n) == (threshold, 40) and math.isnan(row.low)
    i = groups == name
    figures = classification.thresholded(score[i] >= threshold, present[i], np.ones((1, i.sum())))
    for metric, value in zip(classification.THRESHOLDED, figures[0], strict=True):
      row = rows[task, protocol, name, metric, "run"]
      assert row.value == pytest.approx(value) and row.n == 120
      assert row.low <= value <= row.high
    share = present[i].mean()
    baseline = {
      m: rows[task, protocol, name, m, f].value
      for m, f in (
        ("F1", "constant"),
        ("accuracy", "constant"),
        ("average precision", "chance"),
        ("MCC", "chance"),
        ("AUC", "chance"),
      )
    }
    always = classification.thresholded(np.ones(120, bool), present[i], np.ones((1, 120)))[0]
    assert baseline["F1"] == pytest.approx(always[0])
    assert baseline["accuracy"] == pytest.approx(max(always[1], 1 - always[1]))
    assert (baseline["MCC"], baseline["AUC"]) == (0, 0.5)
    assert baseline["average precision"] == pytest.approx(share)
  assert (task, protocol, "rare", "F1", "run") not in rows
  assert (task, protocol, "rare", "AUC", "run") in rows
  macro = rows[task, protocol, "macro", "F1", "run"]
  each = [rows[task, protocol, name, "F1", "run"].value for name in ("mass", "edema")]
  assert macro.value == pytest.approx(np.mean(each)) and macro.n == 240
  assert rows[task, protocol, "macro", "AUC", "run"].n == 360
  patients = scores.example_scores.patients
  expected = auc.grouped(score, present, scores.example_scores.groups, patients, resamples=30)
  for name, s in expected.items():
    row = rows[task, protocol, name, "AUC", "run"]
    assert (row.value, row.low, row.high, row.n) == (s.value, s.low, s.high, s.n)


def test_without_validation_images_the_threshold_is_half_and_named():
  model = Model(3)
  images = labelled_images.embed(model, many(40), what="zero-shot")
  scores = zero_shot.score_zero_shot(model, images, prompt_set(BOTH))
  assert scores.thresholds is None
  rows = zero_shot.zero_shot_rows(scores, data="toy/test", resamples=0)
  assert {row.metric for row in rows if row.task == "zero-shot-mine"} == {
    *RANKED,
    *(f"{name} at .5" for name in classification.THRESHOLDED),
  }
  by = cells(rows)
  score, present = (
    scores.example_scores.values[:40, 0] >= 0.5,
    scores.example_scores.values[:40, 1] == 1,
  )
  accuracy = by["zero-shot-mine", "zero-shot-v1", "edema", "accuracy at .5", "run"]
  assert accuracy.value == pytest.approx((score == present).mean())
  assert by["zero-shot-mine", "zero-shot-v1", "macro", "F1 at .5", "constant"].value > 0
  # A similarity has no such threshold.
  similar = prompt_set(texts_of("mass", ["a mass"]))
  rows = zero_shot.zero_shot_rows(
    zero_shot.score_zero_shot(model, images, similar), data="toy/test", resamples=0
  )
  assert {row.metric for row in rows} == set(RANKED)
  assert {row.protocol for row in rows} == {"zero-shot-v1, prompts abcdef"}


def test_a_threshold_of_the_scored_images_is_never_worse():
  model = Model(4)
  images, validation = (
    labelled_images.embed(model, many(80, s, shift=s * 100), what="zero-shot") for s in (0, 1)
  )
  scores = zero_shot.score_zero_shot(model, images, prompt_set(BOTH), validation)
  plain = cells(zero_shot.zero_shot_rows(scores, data="toy", resamples=0))
  rows = cells(
    zero_shot.zero_shot_rows(scores, data="toy", resamples=0, protocols=zero_shot.PROTOCOLS)
  )
  assert {key: repr(rows[key]) for key in plain} == {key: repr(plain[key]) for key in plain}
  assert {key[1] for key in rows.keys() - plain.keys()} == {
    "compat-test-threshold-v2",
    "compat-gloria-global",
  }
  for name in ("mass", "edema", "macro"):
    own, chosen = (
      rows["zero-shot-mine", protocol, name, "F1", "run"].value
      for protocol in ("zero-shot-v1", "compat-test-threshold-v2")
    )
    assert chosen >= own
  assert ("zero-shot-mine", "compat-test-threshold-v2", "macro", "AUC", "run") not in rows


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_threshold_of_the_scored_images_as_medklip_takes_it(repeats):
  """The steps of its code: F1 from the threshold on, accuracy above it."""
  library = pytest.importorskip("sklearn.metrics")
  images = labelled_images.embed(Model(3), many(30, 3), what="zero-shot")
  images.embeddings[:] = images.embeddings[np.arange(30) // repeats * repeats]
  scores = zero_shot.score_zero_shot(Model(4), images, prompt_set(BOTH))
  protocols = ("compat-test-threshold-v2",)
  rows = cells(zero_shot.zero_shot_rows(scores, protocols, data="toy", resamples=0))
  groups = np.array(scores.example_scores.groups)
  for name in ("mass", "edema"):
    score, present = scores.example_scores.values[groups == name].T
    precision, recall, thresholds = library.precision_recall_curve(present, score)
    sums = precision + recall
    f1 = np.divide(2 * precision * recall, sums, out=np.zeros_like(sums), where=sums != 0)
    accuracy = library.accuracy_score(present, score > thresholds[np.argmax(f1)])
    for metric, value in (("F1", f1.max()), ("accuracy", accuracy)):
      row = rows["zero-shot-mine", protocols[0], name, metric, "run"]
      assert row.value == pytest.approx(value), (name, metric)
    assert accuracy != library.accuracy_score(present, score >= thresholds[np.argmax(f1)])


def test_views_are_compared_on_the_findings_that_all_have():
  model = Model(5)
  images = labelled_images.embed(model, many(120, views=("PA", "AP")), what="zero-shot")
  scores = zero_shot.score_zero_shot(model, images, prompt_set(THREE))
  rows = cells(zero_shot.zero_shot_rows(scores, data="toy", resamples=20))
  score, present = scores.example_scores.values[:, 0], scores.example_scores.values[:, 1] == 1
  for view in ("PA", "AP"):
    each = []
    for name in ("mass", "edema"):  # "rare" is not in AP
      i = [
        j
        for j, (g, v) in enumerate(zip(scores.example_scores.groups, scores.views, strict=True))
        if (g, v) == (name, view)
      ]
      each.append(auc.auc(score[i], present[i], np.ones((1, len(i))))[0])
    row = rows["zero-shot-mine", "zero-shot-v1", f"view {view}", "AUC", "run"]
    assert row.value == pytest.approx(np.mean(each)) and row.n == 120 and row.low < row.high
  for views, n in ((("PA", "AP"), 98), (("PA",), 120), (("PA", ""), 120)):
    few = labelled_images.embed(model, many(n, views=views), what="zero-shot")
    few = zero_shot.score_zero_shot(model, few, prompt_set(THREE))
    rows = zero_shot.zero_shot_rows(few, data="toy", resamples=0)
    assert not [row for row in rows if row.group.startswith("view")]


def single(names, shift=0):
  every = sorted({"a", "b", "c", *names} - {""})
  return [
    example(i + shift, {"No Finding": 0} | {x: int(x == name) for x in every})
    for i, name in enumerate(names, 1)
  ]


LETTERS = (
  texts_of("a", [f"a{i}" for i in range(7)])
  | texts_of("b", ["b0", "b1"])
  | texts_of("c", [f"c{i}" for i in range(5)])
)


def test_classes_by_hand(capsys):
  model = Model(6)
  names = ["a"] * 9 + ["b"] * 6 + ["c"] * 5 + ["d"] * 2 + ["e"] + [""]
  images = labelled_images.embed(model, single(names), what="zero-shot")
  scores = zero_shot.score_zero_shot(model, images, prompt_set(LETTERS, "highest"))
  assert "4 of 24 images have no single finding with prompts" in capsys.readouterr().out
  classes = scores.classes
  assert classes.names == ["a", "b", "c"] and classes.ids == [f"i{i}" for i in range(1, 21)]
  draw = random.Random(6)
  own, gloria = [], []
  for name in "abc":
    texts = LETTERS[name].positive
    for table, some in ((own, texts), (gloria, draw.sample(texts, min(5, len(texts))))):
      table.append(
        [
          max(float(unit(model.images[i]) @ unit(model.texts[text])) for text in some)
          for i in range(1, 21)
        ]
      )
  gloria = [[(x - np.mean(c)) / np.std(c) for x in c] for c in gloria]
  rows = cells(
    zero_shot.zero_shot_rows(scores, data="toy", resamples=40, protocols=zero_shot.PROTOCOLS)
  )
  task = "zero-shot-classes-mine"
  of = np.repeat([0, 1, 2], [9, 6, 5])
  for protocol, table in (("zero-shot-classes-v1", own), ("compat-gloria-global", gloria)):
    given = np.argmax(table, axis=0)
    accuracy = rows[task, protocol, "all", "accuracy", "run"]
    assert accuracy.value == pytest.approx((given == of).mean()) and accuracy.n == 20
    assert accuracy.low <= accuracy.value <= accuracy.high and accuracy.low < accuracy.high
    f1 = []
    for c, name in enumerate("abc"):
      hits = ((given == c) & (of == c)).sum()
      f1.append(2 * hits / ((given == c).sum() + (of == c).sum()))
      row = rows[task, protocol, name, "F1", "run"]
      assert row.value == pytest.approx(f1[-1]) and row.n == (of == c).sum()
    assert rows[task, protocol, "macro", "F1", "run"].value == pytest.approx(np.mean(f1))
    assert rows[task, protocol, "all", "accuracy", "chance"].value == pytest.approx(1 / 3)
    assert rows[task, protocol, "all", "accuracy", "constant"].value == pytest.approx(9 / 20)
    constant = rows[task, protocol, "macro", "F1", "constant"].value
    assert constant == pytest.approx(2 * 9 / (20 + 9) / 3)
  assert classes.example_scores().values[:, 0].tolist() == (np.argmax(own, axis=0) == of).tolist()


class Local(Model):
  """Has a local similarity, too: of an image's grey and a text's letters."""

  has_local_scores = True

  def local_similarities(self, texts):
    def similar(images):
      self.calls["local"] = [*self.calls.get("local", []), [int(image[0, 0]) for image in images]]
      return np.array([[local_similarity_of(image[0, 0], t) for (t,) in texts] for image in images])

    return similar


def local_similarity_of(grey, text):
  return math.sin(int(grey) * (1 + ord(text[0])) + 7 * int(text[1:]))


def test_gloria_s_similarity_has_a_local_half():
  """Images are looked at again, some at a time, those of the classes alone, in any order."""
  model, names = Local(6), ["a"] * 50 + ["b"] * 40 + ["c"] * 30 + ["d"]
  examples = single(names)
  images = labelled_images.embed(model, examples, what="zero-shot")
  scores = zero_shot.score_zero_shot(
    model, images, prompt_set(LETTERS, "highest"), local_examples=lambda: reversed(examples)
  )
  assert [len(some) for some in model.calls["local"]] == [64, 56]
  draw, wanted = random.Random(6), []
  for name in "abc":
    texts = LETTERS[name].positive
    drawn = draw.sample(texts, min(5, len(texts)))
    of_class = [
      max(
        (float(unit(model.images[i]) @ unit(model.texts[t])) + local_similarity_of(i, t)) / 2
        for t in drawn
      )
      for i in range(1, 121)
    ]
    wanted.append((np.array(of_class) - np.mean(of_class)) / np.std(of_class))
  np.testing.assert_allclose(scores.classes.as_gloria, np.stack(wanted, axis=1), atol=1e-5)
  rows = cells(
    zero_shot.zero_shot_rows(scores, data="toy", resamples=0, protocols=zero_shot.PROTOCOLS)
  )
  accuracy = rows["zero-shot-classes-mine", "compat-gloria", "all", "accuracy", "run"].value
  of = np.repeat([0, 1, 2], [50, 40, 30])
  assert accuracy == pytest.approx((np.argmax(wanted, axis=0) == of).mean())
  with pytest.raises(ValueError, match="i3 is NaN, or the image is missing"):
    zero_shot.score_zero_shot(
      model,
      images,
      prompt_set(LETTERS),
      local_examples=lambda: (s for s in examples if s.image_id != "i3"),
    )


def test_images_of_one_class_only_have_no_classes():
  model = Model(7)
  images = labelled_images.embed(
    model, [example(1, {"a": 1}), example(2, {"a": 1}), example(3, {"a": 0})], what="zero-shot"
  )
  scores = zero_shot.score_zero_shot(model, images, prompt_set(LETTERS))
  assert scores.classes is None and scores.example_scores is not None
  only = labelled_images.embed(
    model, [example(i, {"a" if i < 3 else "b": 1}) for i in range(1, 5)], what="zero-shot"
  )
  scores = zero_shot.score_zero_shot(model, only, prompt_set(LETTERS))
  assert scores.example_scores is None and scores.classes.names == ["a", "b"]
  rows = zero_shot.zero_shot_rows(scores, data="toy", resamples=0)
  assert {row.task for row in rows} == {"zero-shot-classes-mine"}
  silent = zero_shot.score_zero_shot(model, only, prompt_set(texts_of("z", ["z"])))
  assert zero_shot.zero_shot_rows(silent, data="toy") == []


def test_one_who_knows_and_one_who_does_not():
  """An image of a finding points where its prompt does; a constant model gets chance."""
  names = ["a"] * 30 + ["b"] * 30 + ["c"] * 30
  axes = {name: np.eye(4)[i] for i, name in enumerate("abc")}
  texts = {text: axes[text[0]] for each in LETTERS.values() for text in each.positive}
  examples = single(names)
  knows = Model(images={i: axes[name] for i, name in enumerate(names, 1)}, texts=dict(texts))
  blind = Model(images={i: np.ones(4) for i in range(1, 91)}, texts=dict(texts))
  for model, area, precision, right in ((knows, 1, 1, 1), (blind, 0.5, 1 / 3, 1 / 3)):
    images = labelled_images.embed(model, examples, what="zero-shot")
    scores = zero_shot.score_zero_shot(model, images, prompt_set(LETTERS))
    rows = cells(
      zero_shot.zero_shot_rows(scores, data="toy", resamples=0, protocols=zero_shot.PROTOCOLS)
    )
    assert rows["zero-shot-mine", "zero-shot-v1", "macro", "AUC", "run"].value == area
    macro = rows["zero-shot-mine", "zero-shot-v1", "macro", "average precision", "run"]
    assert macro.value == pytest.approx(precision)
    for protocol in ("zero-shot-classes-v1", "compat-gloria-global"):
      accuracy = rows["zero-shot-classes-mine", protocol, "all", "accuracy", "run"]
      assert accuracy.value == pytest.approx(right)
