"""Decoding: each image of a set once for all evaluators, and no more of them held than is said."""

import copy
import weakref
from collections import Counter

import numpy as np
import pytest

from fakes.images import noise, png
from input_pipeline import images, records
from input_pipeline.errors import UserError
from input_pipeline.example import Example, Region
from plan_jax import evaluate
from plan_jax.evaluators import (
  datasets,
  decoded,
  embeddings,
  grounding,
  grounding_compat,
  mass_inside,
  presence,
  segmentation_compat,
  side,
  terms,
)
from plan_jax.evaluators.decoded import DecodedImages
from plan_jax.inference import prompts
from plan_jax.inference.load import load
from plan_jax.runtime.workdir import Workdir
from tiny_runs import untrained

IMAGES, VIEWS = 8, 2  # of the test split, and those of the report, which decodes its own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp("decoded")
  more = {"evaluation.compatibility": True, "evaluation.report_images": VIEWS}
  config = untrained(path, **{"data.records": str(path / "records")} | more)
  config.unlock()
  every = tuple(grounding_compat.PROTOCOLS)
  config.evaluation.evaluators.grounding_compat.protocols = every
  config.evaluation.evaluators.segmentation_compat = {
    "protocols": segmentation_compat.PublishedSegmentation.protocols
  }
  return config, load(Workdir(path / "a"), config), path


@pytest.fixture
def counts(monkeypatch):
  """How often the bytes of each image were decoded."""
  counter: Counter[bytes] = Counter()
  decode = images.decode

  def counting(data):
    counter[data] += 1
    return decode(data)

  monkeypatch.setattr(images, "decode", counting)
  return counter


def evaluated(run, place):
  config, model, path = run
  own = datasets.own(config, path / "records")
  return evaluate.evaluate(model, copy.deepcopy(config), Workdir(path / place), [own])


def of_split(run, counts, split):
  source = records.RecordSource(run[2] / "records", split)
  return [counts[source[i].image] for i in range(len(source))]


def test_each_image_is_decoded_once_and_no_value_changes(run, counts, monkeypatch):
  shared = evaluated(run, "shared")
  once = of_split(run, counts, "test")
  # All but what the report shows again.
  assert len(once) == IMAGES and set(once) == {1, 2} and once.count(2) == VIEWS
  counts.clear()
  monkeypatch.setattr(decoded.DecodedImages.__init__, "__defaults__", (0,))
  monkeypatch.setattr(embeddings.Embeddings, "offer", lambda *_: None)
  alone = evaluated(run, "alone")
  each = of_split(run, counts, "test")  # with regions and without, each evaluator on its own
  assert max(each) >= 9 and min(each) >= 4
  tasks = {row.task for row in shared}
  assert {"grounding", "grounding-by-phrase", "mass-inside", "side", "retrieval"} <= tasks
  assert {"presence", "zero-shot-ours", "reranked-retrieval", "segmentation", "terms"} <= tasks
  assert repr(shared) == repr(alone)
  kept, again = (
    {file.name: file.read_bytes() for file in (run[2] / place / "example_scores").iterdir()}
    for place in ("shared", "alone")
  )
  assert kept == again and len(kept) > 10


def test_labelled_images_beyond_the_room_are_still_decoded_once(run, counts, monkeypatch):
  """Presence hands its images on, so that of two readings of a large set one is enough."""
  config, model, path = run
  monkeypatch.setattr(decoded.DecodedImages.__init__, "__defaults__", (0,))
  config = copy.deepcopy(config)
  both = {name: config.evaluation.evaluators[name] for name in ("presence", "zero_shot")}
  both["zero_shot"].protocols = ("zero-shot-v1",)
  config.evaluation.update(compatibility=False, report_images=0)
  config.evaluation.evaluators = both
  own = datasets.own(config, path / "records")
  rows = evaluate.evaluate(model, config, Workdir(path / "both"), [own])
  assert {row.task for row in rows} == {"presence", "zero-shot-ours"}
  assert set(of_split(run, counts, "test")) == {1}
  # Nobody asks for embeddings: presence offers in vain, and the encoder does no more than it must.
  del config.evaluation.evaluators["zero_shot"]
  asked = []
  monkeypatch.setattr(type(model), "embed_images", lambda *_: asked.append(1))
  evaluate.evaluate(model, config, Workdir(path / "presence"), [own])
  assert not asked


def test_what_came_first_is_held(counts):
  pixels = [noise(10, 10, seed=i) for i in range(4)]
  examples = [Example(png(p), 10, 10, f"i{i}", "s", "p") for i, p in enumerate(pixels)]
  shared = DecodedImages(250)  # of 100 bytes each
  for _ in range(3):
    for example, own in zip(examples, pixels, strict=True):
      image = shared.get(example)
      np.testing.assert_array_equal(image, own)
  assert [counts[example.image] for example in examples] == [1, 1, 3, 3]
  with pytest.raises(ValueError, match="read-only"):
    shared.get(examples[0])[0, 0] = 1
  with pytest.raises(UserError, match="image bad: the bytes are no readable"):
    shared.get(Example(b"no image", 10, 10, "bad", "s", "p"))


def test_other_splits_are_not_held(run):
  config, _, path = run
  shared = DecodedImages()
  own = datasets.replace(datasets.own(config, path / "records"), decoded=shared)
  assert all(example.pixels is None for example in own.examples(split="validation"))
  first, *_ = own.examples()
  assert first.pixels() is shared.get(first)


class Model:
  """Maps that are flat, peaks and significances that are alike."""

  grid, variables, has_significance = (2, 2), None, True

  def maps(self, images, phrases, of="words"):
    return [np.ones(image.shape, np.float32) for image in images]

  def similarities(self, images, phrases, of="words"):
    return np.ones((len(images), 2, 2), np.float32)

  def to_image(self, grid, shape, *, nearest=False):
    return np.ones(shape, np.float32)

  def peaks(self, images, phrases):
    return np.arange(len(images), dtype=np.float32)

  def significances(self, texts):
    return [[(word, 0.5) for word in text.split()] for (text,) in texts]

  def global_scale(self):
    return 1.0


def kinds(example, number):
  return ["other"] * len(example.sentences[number].split())


SCORED = {
  "grounding": lambda m, e: grounding.score_grounding(m, e, grounding.box_prior([]), batch=8),
  "mass inside": lambda m, e: mass_inside.score_mass_inside(m, e, batch=8),
  "side": lambda m, e: side.score_side(m, e, batch=8),
  "presence": lambda m, e: presence.score_presence(m, e, batch=8),
  "terms": lambda m, e: terms.score_terms(m, e, kinds, lambda s: [True] * len(s.split())),
  "segmentation": lambda m, e: segmentation_compat.score_segmentation(
    m, e, prompts.load(("carzero",))[0], batch=8
  ),
}


@pytest.mark.parametrize("name", SCORED)
def test_examples_are_let_go(name):
  """An evaluator holds a batch of images at most, however many there are."""
  alive = most = 0
  count = 120

  def gone():
    nonlocal alive
    alive -= 1

  def examples():
    nonlocal alive, most
    for i in range(count):
      region = Region("left mass", "mass", np.array([[6, 2, 9, 5]], np.float32))
      regions = (region,) if i % 2 else ()
      example = Example(
        png(noise(10, 10, seed=i)),
        10,
        10,
        f"i{i}",
        f"s{i}",
        f"p{i}",
        sentences=(f"mass number {i}",),
        labels={"mass": i % 2},
        regions=regions,
      )
      weakref.finalize(example, gone)
      alive += 1
      most = max(most, alive)
      yield example
      del example

  assert SCORED[name](Model(), examples())
  assert most <= 18  # a batch, the one that fills up, and the one at hand
