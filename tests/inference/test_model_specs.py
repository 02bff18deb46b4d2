"""The promises of a Predictor, kept by the spec of a run and of every baseline."""

import jax
import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.phantom import radiograph
from input_pipeline.text import reports
from input_pipeline.text import tokenizer as tokens
from plan_jax.inference.inputs import InputError
from plan_jax.inference.load import of_state
from plan_jax.training.assembly import assemble
from tiny_runs import tiny

EXAMPLES = [radiograph.example(1, i, 64) for i in range(5)]
WHOLE = [images.decode(example.image) for example in EXAMPLES]
IMAGES = [WHOLE[0], WHOLE[1][:, 9:60], WHOLE[2][5:40], *WHOLE[3:]]  # square, high, wide
TEXTS = [example.sentences for example in EXAMPLES]
PHRASES = ["small left effusion", "the heart is large", "no edema", "opacity", "normal lungs"]
RUN = ("plan", "plan-spread", "gloria-run")


def make_run(folder, name):
  tokenizer = tokens.train([" ".join(text) for text in TEXTS], folder, vocabulary_size=200)
  config = tiny(**{"evaluation.batch_size": 3})
  if name == "plan":
    config.alignment.spread_steps = 0  # else on a grid that is twice as fine
  if name == "gloria-run":
    config.alignment.method = "gloria"
  parts = assemble(config, tokenizer)
  state = jax.device_get(parts.initial_state())
  return of_state(parts, state.replace(step=config.train.steps), tokenizer)


def make_baseline(folder, name):
  pytest.importorskip("torch")
  import tiny_baselines
  import tiny_pairs

  words = [" ".join(example.sentences) for example in tiny_baselines.EXAMPLES]
  vocabulary = folder / "vocabulary"
  tokens.train(words, vocabulary, vocabulary_size=120)
  tokenizer = tiny_baselines.AutoTokenizer.from_pretrained(str(vocabulary), local_files_only=True)
  return tiny_baselines.started(name, **tiny_pairs.files_of(folder, name, vocabulary, tokenizer))


@pytest.fixture(
  scope="module",
  params=[
    *RUN,
    "gloria",
    "mgca_vit",
    "biovil_t",
    pytest.param("mgca_resnet", marks=pytest.mark.slow),
    pytest.param("biovil", marks=pytest.mark.slow),
    pytest.param("radzero", marks=pytest.mark.slow),
  ],
)
def model(request, tmp_path_factory):
  make = make_run if request.param in RUN else make_baseline
  return make(tmp_path_factory.mktemp(request.param), request.param)


def test_embeddings_have_unit_norm_and_do_not_depend_on_the_batch(model):
  image, text = model.embed_images(IMAGES), model.embed_texts(TEXTS)
  assert image.shape == text.shape and image.dtype == text.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(model.embed_images(IMAGES[3:4]), image[3:4], atol=1e-5)
  np.testing.assert_allclose(model.embed_texts(TEXTS[4:]), text[4:], atol=1e-5)
  with pytest.raises(ValueError, match="empty"):
    model.embed_images([])
  with pytest.raises(ValueError, match="empty"):
    model.embed_texts([])


@pytest.mark.parametrize("query", ["words", "phrase"])
def test_maps(request, model, query):
  grids = model.maps_on_grid(IMAGES, PHRASES, query)
  finer = 2 if request.node.callspec.params["model"] == "plan-spread" and query == "words" else 1
  assert grids.shape == (5, *(finer * length for length in model.grid))
  assert grids.dtype == np.float32 and grids.min() >= 0
  assert set(grids.max((1, 2)).tolist()) <= {0.0, 1.0}
  similarity = model.similarities(IMAGES, PHRASES, query)
  assert similarity.shape == (5, *model.grid)
  if query == "words":
    np.testing.assert_array_equal(model.peaks(IMAGES, PHRASES), similarity.max((1, 2)))
  heatmaps = model.maps(IMAGES, PHRASES, query)
  for heatmap, grid, image in zip(heatmaps, grids, IMAGES, strict=True):
    assert heatmap.shape == image.shape and heatmap.dtype == np.float32
    visible = heatmap[~np.isnan(heatmap)]
    assert visible.min() >= 0 and visible.max() <= 1
    nearest = model.to_image(grid, image.shape, nearest=True)
    assert np.isin(nearest[~np.isnan(nearest)], grid).all()
    small = model.on_image(grid, image.shape)
    assert max(small.shape) == 32 and np.isfinite(small).all()


def test_groundings_are_the_maps_and_the_peaks(model):
  results, maps = model.ground(IMAGES, PHRASES), model.maps(IMAGES, PHRASES)
  scores = [result.score for result in results]
  np.testing.assert_allclose(scores, model.peaks(IMAGES, PHRASES), atol=1e-4)
  for result, heatmap, phrase in zip(results, maps, PHRASES, strict=True):
    np.testing.assert_allclose(result.map, heatmap, atol=1e-3)
    assert [word.text for word in result.words] == phrase.split()
    assert all(word.map.shape == heatmap.shape for word in result.words)


IMAGE_FUNCTIONS = {
  "embed_images": lambda model, images: model.embed_images(images),
  "maps": lambda model, images: model.maps(images, PHRASES[:3]),
  "maps_on_grid": lambda model, images: model.maps_on_grid(images, PHRASES[:3], "phrase"),
  "similarities": lambda model, images: model.similarities(images, PHRASES[:3]),
  "peaks": lambda model, images: model.peaks(images, PHRASES[:3]),
  "attend": lambda model, images: [text[0][2] for text in model.attend(images, TEXTS[:3])],
  "local_features": lambda model, images: model.local_features(images, TEXTS[:3])[0],
  "local_similarities": lambda model, images: model.local_similarities(TEXTS[:1])(images),
  "similarity": lambda model, images: model.similarity(images, TEXTS[:1]),
}
TEXT_FUNCTIONS = {
  "embed_texts": lambda model, texts: model.embed_texts(texts),
  "significances": lambda model, texts: model.significances(texts),
  "attend": lambda model, texts: model.attend(IMAGES[:1], texts),
  "local_features": lambda model, texts: model.local_features(IMAGES[:1], texts),
  "local_similarities": lambda model, texts: model.local_similarities(texts),
  "similarity": lambda model, texts: model.similarity(IMAGES[:1], texts),
  "maps": lambda model, phrases: model.maps(IMAGES[:1], phrases),
  "maps_on_grid": lambda model, phrases: model.maps_on_grid(IMAGES[:1], phrases, "phrase"),
  "similarities": lambda model, phrases: model.similarities(IMAGES[:1], phrases),
  "peaks": lambda model, phrases: model.peaks(IMAGES[:1], phrases),
}


def skip_without_local_scores(model, name):
  if name.startswith("local") and not model.has_local_scores:
    pytest.skip("has no local scores")


@pytest.mark.parametrize("name", IMAGE_FUNCTIONS)
def test_images_of_another_form(model, name):
  skip_without_local_scores(model, name)
  function, (first, image, third) = IMAGE_FUNCTIONS[name], IMAGES[:3]
  grey = np.repeat(image[..., None], 3, 2)
  same = function(model, (first[..., None], grey, third))
  for got, want in zip(same, function(model, [first, image, third]), strict=True):
    np.testing.assert_array_equal(got, want)
  for other in (image / 127.5 - 1, image.astype(np.int32), image * np.nan):
    with pytest.raises(InputError, match=r"images\[1\] is (float64|int32) \[64, 51\]"):
      function(model, [first, other, third])
  with pytest.raises(InputError, match="give a list of "):
    function(model, None)
  with pytest.raises(InputError, match="no.png cannot be read"):
    function(model, [first, "no.png", third])


@pytest.mark.parametrize("name", TEXT_FUNCTIONS)
def test_texts_of_another_form(model, name):
  skip_without_local_scores(model, name)
  function = TEXT_FUNCTIONS[name]
  for texts in (b"left", None):
    with pytest.raises(InputError, match="give a list of"):
      function(model, texts)
  # A phrase is a string, a text may also be a list of sentences.
  is_text = name in ("embed_texts", "significances", "attend", "similarity")
  is_text |= name.startswith("local")
  for wrong in [("left effusion", 3)] if is_text else [("left effusion",), 3]:
    with pytest.raises(InputError, match=r"\[0\] is or holds a value of type (tuple|int)"):
      function(model, [wrong])
  with pytest.raises(InputError, match=r"\[0\] has no word"):
    function(model, [["?"] if is_text else "?"])


def test_pairs_that_do_not_match(model):
  for given, phrases in ((IMAGES[:2], PHRASES[:1]), (IMAGES[:1], PHRASES)):
    message = "images, and . texts for them: give one for each"
    with pytest.raises(InputError, match=message):
      model.maps(given, phrases)
    with pytest.raises(InputError, match=message):
      model.local_features(given, [(phrase,) for phrase in phrases])
  with pytest.raises(InputError, match="query is 'word': it is 'words' or 'phrase'"):
    model.maps(IMAGES, PHRASES, "word")


def test_repeated_images_and_phrases(model):
  order = [1, 0, 1, 1]
  maps = model.similarities([IMAGES[i] for i in order], [PHRASES[i] for i in order])
  single = model.similarities(IMAGES[:2], PHRASES[:2])
  np.testing.assert_allclose(maps, single[order], atol=1e-5)


def test_attended_words_make_the_map_of_the_phrase(model):
  attended = model.attend(IMAGES, [(phrase,) for phrase in PHRASES])
  maps = model.maps_on_grid(IMAGES, PHRASES)
  for words, grid, phrase in zip(attended, maps, PHRASES, strict=True):
    assert [word for word, _, _ in words] == phrase.split()
    assert all(weight >= 0 and region.shape == grid.shape for _, weight, region in words)
    mixed = sum(weight * region for _, weight, region in words)
    if not model.map_sigma and mixed.max() > 0:
      np.testing.assert_allclose(grid, mixed / mixed.max(), atol=1e-4)


def test_significances_cover_the_words_of_a_report(model):
  if not model.has_significance:
    return
  for text, words in zip(TEXTS, model.significances(TEXTS), strict=True):
    expected = [s[start:end] for s in text for start, end in reports.words(s)]
    assert [word for word, _ in words] == expected[: len(words)] and words
    assert all(0 <= weight <= 1 for _, weight in words)


def test_local_scores(model):
  if not model.has_local_scores:
    with pytest.raises(ValueError, match="no score"):
      model.local_logits((), np.zeros((1, 1), int), np.zeros((1, 1), int))
    with pytest.raises(ValueError, match="no score"):
      model.local_similarities(TEXTS)
    return
  features = model.local_features(IMAGES, TEXTS)
  pixels, words, significance = features
  assert pixels.shape[1] == np.prod(model.grid) and words.shape[:2] == significance.shape
  assert pixels[0].nbytes + words[0].nbytes == model.local_bytes
  everything = np.arange(5)[None]
  logits = model.local_logits(features, everything, everything)
  assert logits.shape == (1, 5, 5) and np.isfinite(logits).all()
  pairs = np.array([[0, 3], [4, 1], [2, 2], [1, 0]])
  by_pair = model.local_logits(features, np.arange(4)[:, None], pairs)[:, 0]
  np.testing.assert_allclose(by_pair, np.take_along_axis(logits[0, :4], pairs, 1), rtol=1e-4)
  similarity = model.local_similarities(TEXTS)(IMAGES)
  assert similarity.shape == (5, 5)
  single = model.local_similarities(TEXTS[1:3])(IMAGES[2:3])
  np.testing.assert_allclose(single, similarity[2:3, 1:3], rtol=1e-4)
  assert model.global_scale() > 0


def test_texts_that_do_not_fit_are_counted(model):
  """The count does not include the copies that fill a batch."""
  before = model.note
  model.embed_texts([PHRASES[:1]])
  assert model.note == before
  model.embed_texts([PHRASES[:1] * 400])
  assert model.note and model.note != before
