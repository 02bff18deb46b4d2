"""Retrieval from end to end: galleries, left-out examples, shared embeddings."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from input_pipeline.example import Example
from plan_jax.evaluators import labelled_images, retrieval
from plan_jax.evaluators.embeddings import embed_pairs
from plan_jax.evaluators.labelled_images import ImageEmbeddings


class _Model:
  """Embeds an image by its brightness and a report by the number in it."""

  def __init__(self):
    self.batches = []

  def embed_images(self, images):
    self.batches.append(len(images))
    return self._circle([image.mean() for image in images])

  def embed_texts(self, texts):
    return self._circle([float(text[0].lower().split("level ")[1].strip(". ")) for text in texts])

  @staticmethod
  def _circle(levels):
    angle = np.array(levels) / 80
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def _example(i, level, text, kind="report"):
  image = cv2.imencode(".png", np.full((8, 10), level, np.uint8))[1].tobytes()
  return Example(
    image=image,
    width=10,
    height=8,
    image_id=f"i{i}",
    study_id=f"s{i}",
    patient_id=f"p{i // 2}",
    sentences=text,
    text_kind=kind,
  )


def _examples():
  for i in range(40):
    yield _example(i, 5 * i, (f"Level {5 * i}.",))
  yield _example(40, 0, ("level 0",))  # the same words as the first: a hit for either
  yield _example(41, 7, ())
  yield _example(42, 9, ("...",))


def evaluate(model, examples, *, batch=64, resamples=20):
  galleries = retrieval.score_retrieval(embed_pairs(model, examples, batch=batch))
  return retrieval.retrieval_rows(galleries, data="toy/test", resamples=resamples)


def test_evaluator_from_end_to_end():
  model = _Model()
  rows = evaluate(model, _examples(), batch=16, resamples=50)
  assert model.batches == [16, 16, 9]
  assert len(rows) == 16 and {(r.group, r.n, r.gallery) for r in rows} == {("all", 41, 41)}
  cells = {(r.metric, r.model): r for r in rows}
  for direction in ("image-to-text", "text-to-image"):
    assert cells[f"R@1 {direction}", "run"].value == 1
    assert cells[f"median rank {direction}", "run"].value == 1
    expected = (39 / 41 + 2 * 2 / 41) / 41
    assert cells[f"R@1 {direction}", "chance"].value == pytest.approx(expected)
    assert math.isnan(cells[f"R@1 {direction}", "chance"].low)
    assert 19 <= cells[f"median rank {direction}", "chance"].value <= 21
  assert evaluate(model, [_example(0, 1, ())]) == []


def test_kinds_of_text_get_galleries_of_their_own():
  examples = list(_examples())[:40]
  examples += [_example(100 + i, 5 * i + 1, (f"level {5 * i + 1}",), "labels") for i in range(10)]
  rows = evaluate(_Model(), examples)
  assert {(r.group, r.gallery) for r in rows} == {("all", 50), ("labels", 10), ("report", 40)}


def test_an_image_is_embedded_once_for_all_evaluators():
  model, examples = _Model(), list(_examples())[:20]
  embeddings = ImageEmbeddings(model, batch=16)
  pairs = embed_pairs(model, examples, embeddings=embeddings)
  labelled = [dataclasses.replace(each, labels={"mass": i % 2}) for i, each in enumerate(examples)]
  others = [
    dataclasses.replace(each, image_id=f"other {each.image_id}", sentences=())
    for each in labelled[:5]
  ]
  images = labelled_images.embed(model, [*labelled, *others], "zero-shot", embeddings=embeddings)
  assert model.batches == [16, 4, 5]
  np.testing.assert_array_equal(images.embeddings[:20], pairs.images)
  np.testing.assert_array_equal(images.embeddings[20:], pairs.images[:5])
