"""Baselines that score pairs, against their projects' models: images, texts, maps and scores."""

import json

import numpy as np
import pytest
from torch.nn.functional import normalize

from input_pipeline.errors import UserError
from plan_jax.baselines import load
from plan_jax.inference import predictor

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tiny_pairs")
tiny_baselines = pytest.importorskip("tiny_baselines")
IMAGES, TEXTS, JOINED = tiny_baselines.IMAGES, tiny_baselines.TEXTS, tiny_baselines.JOINED
started, config_of = tiny_baselines.started, tiny_baselines.config_of
vocabulary, tokenizer = tiny_baselines.vocabulary, tiny_baselines.tokenizer


def same(value, want):
  np.testing.assert_allclose(value, want, atol=1e-5)


def radzero_features(model, own):
  images = [model.image(theirs.squashed(image, theirs.SIDE_PX)) for image in IMAGES]
  return images, [model.words(own, text) for text in JOINED]


@pytest.fixture(scope="module")
def radzero(tmp_path_factory, tokenizer):
  return theirs.radzero(tmp_path_factory.mktemp("radzero"), tokenizer)


@pytest.fixture(scope="module")
def mine(radzero):
  return started("radzero", weights=radzero[-1])


def test_radzero(radzero, mine):
  model, own, _ = radzero
  images, texts = radzero_features(model, own)
  logits, maps = model.compare(images, texts)
  norm = model.loss_fns["RadZeroLoss"].layer_norm
  with torch.no_grad():
    same(mine.embed_images(IMAGES), normalize(norm(torch.stack([x[0] for x in images])), dim=-1))
    same(mine.embed_texts(TEXTS), normalize(norm(torch.stack(texts)), dim=-1))
  assert logits.std() > 1e-2
  same(mine.similarity(IMAGES, TEXTS), logits)
  assert mine.grid == (4, 4) and mine.global_scale() == pytest.approx(5)
  assert "texts were longer than the 40 tokens that RadZero reads" in mine.note
  cosine = 0.2 * maps[1, 0].reshape(4, 4)
  assert cosine.max() > 0
  for query in ("words", "phrase"):
    same(mine.similarities(IMAGES[1:2], JOINED[:1], query)[0], cosine)
    same(mine.maps_on_grid(IMAGES[1:2], JOINED[:1], query)[0], cosine.relu() / cosine.max())
  assert mine.has_pair_scores and not mine.has_local_scores and not mine.has_significance


def test_pairs_are_compared_in_blocks(mine, monkeypatch):
  """Whatever the size of a block, and for one image as for several."""
  whole = mine.similarity(IMAGES, TEXTS)
  monkeypatch.setattr(predictor, "_PAIRS", 3)  # of 8 images with 3 texts: a block of 3 and one of 1
  same(mine.similarity(IMAGES, TEXTS), whole)
  compare = mine.pair_scores(TEXTS)
  same(compare(IMAGES[1]), whole[1:2])
  same(compare(IMAGES[::-1]), whole[::-1])


def test_classes_are_scored_by_pairs(radzero, mine, tmp_path):
  """Several prompts are the mean of their scores; denials are weighed as zero-shot-v1 does."""
  model, own, _ = radzero
  images, _ = radzero_features(model, own)
  label = "Lung Opacity"
  prompts = {"positive": ["There is {}.", "left {}"], "negative": ["There is no {}."]}
  file = tmp_path / "several.json"
  file.write_text(json.dumps({"source": "test", "template": prompts}))
  each = ["There is lung opacity.", "left lung opacity", "There is no lung opacity."]
  logits, _ = model.compare(images, [model.words(own, text) for text in each])
  yes, no = logits[:, :2].mean(1), logits[:, 2]
  want = torch.stack([yes, no]).softmax(0)[0]
  same([scores[label] for scores in mine.classify(IMAGES, [label], str(file))], want)
  scores = mine.classify(IMAGES, [label, "Opacity"], "carzero")
  same([score[label] for score in scores], logits[:, 0])


def test_the_released_names_and_what_does_not_fit_radzero(tmp_path, tokenizer):
  _, _, folder = theirs.radzero(tmp_path, tokenizer, "KeyPhraseAlignmentLoss")
  assert load.load(config_of("radzero", weights=folder)).provenance["weights"]["left_aside"] == [
    "text_model.pooler.dense.bias",
    "text_model.pooler.dense.weight",
    "vision_model.embeddings.mask_token",
  ]
  file = folder / "preprocessor_config.json"
  file.unlink()
  with pytest.raises(UserError, match="does not tell image.mean, image.std, image_px: put that"):
    load.load(config_of("radzero", weights=folder))
  for change, words in (
    ({"size": {"height": 57, "width": 57}}, "image of 57 px.*whole patches of 14 px"),
    ({"resample": 2}, "resized bicubically"),
    (theirs.MIDDLE, "the whole of it as a square"),
    ({"image_mean": "grey"}, "preprocessor_config.json: mean is 'grey'"),
  ):
    file.write_text(json.dumps(theirs.PIXELS | change))
    with pytest.raises(UserError, match=words):
      load.load(config_of("radzero", weights=folder))
  file.write_text(json.dumps(theirs.PIXELS))
  settings = json.loads((folder / "config.json").read_text())
  settings["align_transformer_config"]["num_attention_heads"] = 3
  (folder / "config.json").write_text(json.dumps(settings))
  with pytest.raises(UserError, match="num_attention_heads 3, which does not divide the width of"):
    load.load(config_of("radzero", weights=folder))


def test_conns(tmp_path, vocabulary, tokenizer):
  model, file = theirs.conns(tmp_path, tokenizer)
  mine = started("conns", weights=file, tokenizer=vocabulary)
  images = [model.image(image) for image in IMAGES]
  texts = [model.words(tokenizer, text) for text in JOINED]
  scores, maps = model.compare(images, texts)
  same(mine.embed_images(IMAGES), normalize(torch.stack([x[0] for x in images]), dim=-1))
  same(mine.embed_texts(TEXTS), normalize(torch.stack(texts), dim=-1))
  assert scores.std() > 1e-2
  same(mine.similarity(IMAGES, TEXTS), scores)
  cosine = 0.2 * maps[1, 0].reshape(4, 4)
  assert cosine.max() > 0
  same(mine.similarities(IMAGES[1:2], JOINED[:1])[0], cosine)
  same(mine.maps_on_grid(IMAGES[1:2], JOINED[:1])[0], cosine.relu() / cosine.max())
  mapped = mine.maps(IMAGES[1:2], JOINED[:1])[0]
  assert np.isnan(mapped).any()  # beyond the middle
  settings = file.parent / "preprocessor_config.json"
  settings.write_text(json.dumps(theirs.PIXELS))
  with pytest.raises(UserError, match="ours, which is the middle of the shorter side"):
    load.load(config_of("conns", weights=file, tokenizer=vocabulary))


def test_carzero(tmp_path, vocabulary, tokenizer):
  model, file = theirs.carzero(tmp_path, tokenizer)
  mine = started("carzero", weights=file, tokenizer=vocabulary)
  images = [model.image(image) for image in IMAGES]
  readable = [0, 1, 3]  # a text of one word is an empty one there
  texts = [model.words(tokenizer, JOINED[i]) for i in readable]
  asked = [TEXTS[i] for i in readable]
  scores, maps = model.compare(images, texts)
  same(mine.embed_images(IMAGES), normalize(torch.stack([x[0] for x in images]), dim=-1))
  same(mine.embed_texts(asked), normalize(torch.stack([x[0] for x in texts]), dim=-1))
  assert scores.std() > 1e-2
  same(mine.similarity(IMAGES, asked), scores)
  assert mine.grid == (14, 14) and mine.has_pair_scores and not mine.has_local_scores
  share = maps[1, 0].reshape(14, 14)
  assert share.std() > 1e-5
  for query in ("words", "phrase"):
    same(mine.similarities(IMAGES[1:2], JOINED[:1], query)[0], share)
    same(mine.maps_on_grid(IMAGES[1:2], JOINED[:1], query)[0], share / share.max())
  attended = mine.attend(IMAGES[1:2], TEXTS[:1])[0]
  assert [word for word, _, _ in attended] == ["small", "left", "pleural", "effusion"]
  same(attended[2][2], share)
  (phrase,) = mine.ground(IMAGES[1:2], JOINED[:1])
  assert phrase.score == pytest.approx(float(share.max()), abs=1e-5)
  provenance = load.load(config_of("carzero", weights=file, tokenizer=vocabulary)).provenance
  aside = provenance["weights"]["left_aside"]
  assert "CARZero.fusion_module.logit_scale" in aside and len(aside) == 4 * 6 + 2 + 1 + 2
