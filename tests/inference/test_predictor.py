import jax
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.phantom import radiograph
from input_pipeline.text import reports
from input_pipeline.text import tokenizer as tokens
from plan_jax.alignment import curriculum
from plan_jax.alignment.l2_normalize import unit
from plan_jax.alignment.methods import Alignment, pair_score
from plan_jax.inference import load as grounder
from plan_jax.training.assembly import assemble
from tiny_runs import tiny

EXAMPLES = [radiograph.example(1, i, 64) for i in range(5)]
IMAGES = [images.decode(example.image) for example in EXAMPLES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  texts = [" ".join(example.sentences) for example in EXAMPLES]
  tokenizer = tokens.train(texts, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=200)
  config = tiny(**{"evaluation.batch_size": 3})
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  return grounder.of_state(parts, state.replace(step=config.train.steps), tokenizer)


def test_embeddings_are_unit_and_do_not_depend_on_the_batch(model):
  images, texts = model.embed_images(IMAGES), model.embed_texts([s.sentences for s in EXAMPLES])
  assert images.shape == texts.shape == (5, 8)
  np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(model.embed_images(IMAGES[3:4]), images[3:4], atol=1e-6)
  np.testing.assert_allclose(model.embed_texts([EXAMPLES[4].sentences]), texts[4:], atol=1e-6)


def test_sentence_order_does_not_change_a_report(model):
  sentences = EXAMPLES[0].sentences
  a, b = model.embed_texts([sentences, sentences[::-1]])
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (130, 70)])
def test_maps_have_the_image_s_shape_and_a_maximum_of_one(model, shape):
  image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
  (heat,) = model.ground([image], ["small left effusion"])
  assert heat.shape == shape and heat.dtype == np.float32
  assert heat.min() >= 0 and 0.5 < heat.max() <= 1
  grid = model.ground_on_grid([image], ["small left effusion"])
  assert grid.shape == (1, 8, 8) and grid.max() == 1


def test_phrase_map_is_the_words_regions_by_significance(model):
  phrase = "small left effusion"
  ((*words,),) = model.attend(IMAGES[:1], [(phrase,)])
  assert [word for word, _, _ in words] == phrase.split()
  mixed = sum(significance * region for _, significance, region in words)
  np.testing.assert_allclose(
    model.ground_on_grid(IMAGES[:1], [phrase])[0], mixed / mixed.max(), atol=1e-5
  )


def test_look_gives_every_word_a_region(model):
  texts = [example.sentences for example in EXAMPLES[:2]]
  for text, words in zip(texts, model.attend(IMAGES[:2], texts), strict=True):
    assert [w for w, _, _ in words] == [s[a:b] for s in text for a, b in reports.words(s)]
    for _, significance, region in words:
      assert 0 <= significance <= 1 and region.shape == model.grid
      np.testing.assert_allclose(region.sum(), 1, rtol=1e-4)


def test_a_phrase_that_follows_the_image(model):
  """Moving the image moves the map: the way back from the grid keeps its place."""
  image = np.zeros((64, 64), np.uint8)
  image[8:24, 8:24] = 255
  maps = model.ground([image, np.roll(image, 32, 1)], ["effusion"] * 2)
  flat = [np.abs(np.diff(heat, axis=1)).sum(0) for heat in maps]
  centre = [float((np.arange(63) * f).sum() / f.sum()) for f in flat]
  assert centre[1] > centre[0] + 5


def test_sentences_without_room_are_counted_once(model):
  """The last text fills up its batch of eight."""
  before = model.dropped_sentences
  model.embed_texts([("small left effusion",) * 400])
  assert model.dropped_sentences - before == 400 - len(
    model._encode(("small left effusion",) * 400).kept
  )


def test_nothing_to_embed(model):
  with pytest.raises(ValueError, match="empty"):
    model.embed_images([])


def test_a_run_without_local_rounds_grounds_by_similarity(model, tmp_path):
  config = tiny(**{"evaluation.batch_size": 2})
  config.unlock()
  rounds = dict.fromkeys(("local_weight", "tau", "gamma"), ())
  config.curriculum = {"words": config.curriculum.words.to_dict() | rounds}
  tokenizer = model._tokenizer
  parts = assemble(config, tokenizer)
  plain = grounder.of_state(parts, jax.device_get(parts.initial_state()), tokenizer)
  (heat,) = plain.ground(IMAGES[:1], ["effusion"])
  assert heat.shape == (64, 64) and heat.min() >= 0 and heat.max() <= 1


def test_words_are_looked_at_as_the_stage_of_training_does(tmp_path):
  """Before the rounds begin a map is that of round 0."""
  tokenizer = tokens.train(["small left effusion"] * 9, tmp_path, vocabulary_size=60)
  config = tiny(**{"train.steps": 100, "evaluation.batch_size": 2})
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  maps = []
  model = grounder.of_state(parts, state, tokenizer)
  for step in (50, 100):
    model.take(state.replace(step=np.int32(step)))
    assert model.step == step
    maps.append(model.ground_on_grid(IMAGES[:1], ["small left effusion"]))
  assert np.abs(maps[0] - maps[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["plan", "gloria"])
def test_local_logits_are_those_of_training(model, method, tmp_path):
  """Against the score of all pairs that the losses use."""
  texts = [example.sentences for example in EXAMPLES]
  config = tiny(**{"evaluation.batch_size": 3, "alignment.method": method})
  if method == "gloria":
    config.curriculum.refine.update(local_weight=(1.0,), tau=(0.2,), gamma=(0.0,))
  tokenizer = tokens.train([" ".join(t) for t in texts], tmp_path, vocabulary_size=200)
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  one = grounder.of_state(parts, state.replace(step=config.train.steps), tokenizer)
  assert one.has_local_scores and one.global_scale() == pytest.approx(config.model.scale_init)
  features = one.local_features(IMAGES, texts)
  everything = np.arange(5)[None].repeat(4, 0)
  got = one.local_logits(features, everything[:1], everything[:1])[0]
  stage, alignment = parts.stages[-1], Alignment(**config.alignment)
  score = pair_score(alignment, stage)
  pixels, words = (np.asarray(x, np.float32) for x in features[:2])
  say = (features[2] > 0).astype(np.float32)
  if method == "plan":
    pixels, words = unit(pixels), unit(words)
    say = curriculum.say(stage, features[2], features[2] > 0)
  wanted = score.logits(score.prepare(pixels), words, say, config.model.scale_init)[0][-1]
  np.testing.assert_allclose(got, wanted, atol=1e-4)
  pairs = np.array([[0, 3], [4, 1], [2, 2], [1, 0]])
  by_pair = one.local_logits(features, np.arange(4)[:, None], pairs)
  np.testing.assert_allclose(by_pair[:, 0], np.take_along_axis(got[:4], pairs, 1), atol=1e-4)
  similar = one.local_similarities(texts[:3])(IMAGES)
  scale = 10 if method == "gloria" else config.model.scale_init
  np.testing.assert_allclose(similar, np.asarray(got)[:, :3] / scale, atol=1e-2)
  np.testing.assert_allclose(
    one.local_similarities(texts)(IMAGES[1:2])[:, :3], similar[1:2], atol=1e-6
  )
  other = tiny(**{"alignment.method": "none"})
  other = grounder.of_state(assemble(other, tokenizer), state, tokenizer)
  assert not other.has_local_scores
  with pytest.raises(ValueError, match="no score"):
    other.local_logits(features, everything, everything)
  with pytest.raises(ValueError, match="no score"):
    other.local_similarities(texts)
