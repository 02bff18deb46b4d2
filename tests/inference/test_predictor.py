"""The Predictor of a run: its stages, its local scores, its words; see also test_model_specs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.phantom import radiograph
from input_pipeline.text import reports
from input_pipeline.text import tokenizer as tokens
from plan_jax.alignment import curriculum
from plan_jax.alignment.methods.base import Alignment
from plan_jax.alignment.methods.by_name import pair_score
from plan_jax.alignment.similarity import l2_normalize
from plan_jax.inference import batches, prompts
from plan_jax.inference.inputs import InputError
from plan_jax.inference.load import of_state
from plan_jax.inference.predictor import Predictor
from plan_jax.inference.run_spec import spread_pixels
from plan_jax.models.two_towers import build
from plan_jax.training.assembly import assemble
from tiny_runs import mesh_of, tiny, two_stages

EXAMPLES = [radiograph.example(1, i, 64) for i in range(5)]
IMAGES = [images.decode(example.image) for example in EXAMPLES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  texts = [" ".join(example.sentences) for example in EXAMPLES]
  tokenizer = tokens.train(texts, tmp_path_factory.mktemp("tokenizer"), vocabulary_size=200)
  config = tiny(**{"evaluation.batch_size": 3})
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  return of_state(parts, state.replace(step=config.train.steps), tokenizer)


def test_sentence_order_does_not_change_a_report(model):
  sentences = EXAMPLES[0].sentences
  a, b = model.embed_texts([sentences, sentences[::-1]])
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (130, 70)])
def test_maps_cover_the_whole_image(model, shape):
  image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
  (heatmap,) = model.maps([image], ["small left effusion"])
  assert heatmap.shape == shape and heatmap.min() >= 0 and 0.5 < heatmap.max() <= 1
  grid = model.maps_on_grid([image], ["small left effusion"])
  assert grid.shape == (1, 16, 16) and grid.max() == 1


def test_every_word_has_a_region_that_sums_to_one(model):
  texts = [example.sentences for example in EXAMPLES[:2]]
  for text, words in zip(texts, model.attend(IMAGES[:2], texts), strict=True):
    assert [w for w, _, _ in words] == [s[a:b] for s in text for a, b in reports.words(s)]
    for _, weight, region in words:
      assert 0 <= weight <= 1
      np.testing.assert_allclose(region.sum(), 1, rtol=1e-4)


def test_map_moves_with_the_image(model):
  """The way back from the grid keeps the place."""
  image = np.zeros((64, 64), np.uint8)
  image[8:24, 8:24] = 255
  maps = model.maps([image, np.roll(image, 32, 1)], ["effusion"] * 2)
  flat = [np.abs(np.diff(heatmap, axis=1)).sum(0) for heatmap in maps]
  centre = [float((np.arange(63) * f).sum() / f.sum()) for f in flat]
  assert centre[1] > centre[0] + 5


def test_dropped_sentences_are_counted_once(model):
  """The last text fills up its batch of eight."""
  text = ("small left effusion",) * 400
  left_out = model.spec.texts.encode([text]).left_out
  assert 300 < left_out < 400 and not model.note
  model.embed_texts([text])
  assert model.note.startswith(f"{left_out} sentences found no room")


def test_run_without_a_local_loss_grounds_by_similarity(model):
  config = tiny(**{"evaluation.batch_size": 2})
  config.unlock()
  config.curriculum = {"words": config.curriculum.words.to_dict() | {"local_weight": 0.0}}
  tokenizer = model.spec.texts.tokenizer
  parts = assemble(config, tokenizer)
  plain = of_state(parts, jax.device_get(parts.initial_state()), tokenizer)
  (heatmap,) = plain.maps(IMAGES[:1], ["effusion"])
  assert heatmap.shape == (64, 64) and heatmap.min() >= 0 and heatmap.max() <= 1
  assert not plain.has_local_scores


def test_words_are_attended_as_at_the_stage_of_training(tmp_path):
  """The last stage has sharper regions."""
  tokenizer = tokens.train(["small left effusion"] * 9, tmp_path, vocabulary_size=60)
  config = two_stages(**{"train.steps": 100, "evaluation.batch_size": 2})
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  maps = []
  model = of_state(parts, state, tokenizer)
  for step in (50, 100):
    model.take(state.replace(step=np.int32(step)))
    assert model.step == step
    maps.append(model.maps_on_grid(IMAGES[:1], ["small left effusion"]))
  assert np.abs(maps[0] - maps[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["plan", "gloria"])
def test_local_logits_are_those_of_training(method, tmp_path):
  """Against the score of all pairs that the losses use."""
  texts = [example.sentences for example in EXAMPLES]
  config = tiny(**{"evaluation.batch_size": 3, "alignment.method": method})
  tokenizer = tokens.train([" ".join(t) for t in texts], tmp_path, vocabulary_size=200)
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  model = of_state(parts, state.replace(step=config.train.steps), tokenizer)
  assert model.global_scale() == pytest.approx(config.model.scale_init)
  features = model.local_features(IMAGES, texts)
  everything = np.arange(5)[None]
  logits = model.local_logits(features, everything, everything)[0]
  stage, alignment = parts.stages[-1], Alignment(**config.alignment)
  score = pair_score(alignment, stage)
  pixels, words = (jnp.asarray(x, jnp.float32) for x in features[:2])
  significance = jnp.asarray(features[2])
  weights = (significance > 0).astype(jnp.float32)
  if method == "plan":
    pixels, words = l2_normalize(pixels), l2_normalize(words)
    weights = curriculum.word_weights(stage, significance, significance > 0)
  want = score.logits(pixels, words, weights, config.model.scale_init)[0]
  np.testing.assert_allclose(logits, want, atol=1e-4)
  similarity = model.local_similarities(texts[:3])(IMAGES)
  scale = 10 if method == "gloria" else config.model.scale_init
  np.testing.assert_allclose(similarity, logits[:, :3] / scale, atol=1e-2)


def test_short_texts_are_read_in_short_arrays(model):
  short, report = ("small effusion",), tuple(s for example in EXAMPLES for s in example.sentences)
  texts = model.spec.texts
  (cut,), (whole,) = (texts.encode([short], same_length=same).arrays for same in (False, True))
  for name in ("tokens", "word_mask"):
    halvings = (len(whole[name]) // len(cut[name])).bit_length() - 1
    assert halvings > 0 and len(cut[name]) == len(whole[name]) >> halvings
    np.testing.assert_array_equal(cut[name], whole[name][: len(cut[name])])
  assert len(texts.encode([short, report]).arrays[0]["tokens"]) > len(cut["tokens"])
  together = model.embed_texts([short, report])[0]
  np.testing.assert_allclose(model.embed_texts([short])[0], together, atol=1e-5)


def test_pairs_are_attended_in_parts_where_all_would_not_fit(model, monkeypatch):
  small = Predictor(model.spec, model.variables, mesh_of(1), batch_size=8, step=model.step)
  phrases = ["small left effusion", "the heart is large"] * 4
  whole, sizes, run = small.maps_on_grid(IMAGES[:1] * 8, phrases), [], batches.run
  monkeypatch.setattr(batches, "run", lambda *x: sizes.append(x[2]) or run(*x))
  monkeypatch.setattr(small, "_most_pairs", 3)
  np.testing.assert_allclose(small.maps_on_grid(IMAGES[:1] * 8, phrases), whole, atol=1e-5)
  assert sizes == [8, 8, 3]  # images, texts, pairs
  sizes.clear()
  small.ground(IMAGES[0], phrases[:2])
  assert sizes == [1, 2, 2]


@pytest.mark.parametrize(
  ("change", "side"),
  [
    ({"alignment.spread_steps": 0}, 0),
    ({"model.image.spread_stage": 1}, 16),
    ({"model.image.spread_stage": 2}, 8),
    ({"model.image.spread_stage": 0}, 8),
    ({"alignment.method": "gloria"}, 0),
  ],
)
def test_the_memory_of_a_pair_is_by_the_grid_of_what_looks_alike(change, side):
  config = tiny(**{"model.image.output_stride": 8} | change)
  assert spread_pixels(config) == side**2
  if side:
    model = build(config.model, 50)
    image = np.zeros((1, 64, 64, 1), np.float32)
    variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), image, method=model.embed_images)
    )
    embed = partial(model.apply, method=model.embed_images)
    assert jax.eval_shape(embed, variables, image).features.shape[1] == side**2


@pytest.mark.parametrize(
  ("count", "most", "devices", "want"),
  [(1, 32, 1, 1), (5, 32, 1, 8), (40, 32, 1, 32), (1, 32, 8, 8), (5, 33, 3, 9), (2, 33, 3, 3)],
)
def test_a_batch_of_few_is_a_power_of_two(count, most, devices, want):
  assert batches.size_of_few(count, most, devices) == want


def test_a_class_with_prompts_of_its_own_needs_no_known_name(model):
  for name in ("vindr", "ours"):  # they spell out what COPD is
    (scored,) = prompts.classifier(model, ["COPD"], name)(IMAGES[:1])
    assert scored.keys() == {"COPD"} and np.isfinite(scored["COPD"])
  with pytest.raises(InputError, match="the class 'COPD' has no word that the model knows"):
    prompts.classifier(model, ["COPD"], "carzero")
