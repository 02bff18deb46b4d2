"""Whole baselines against torch, from an image and a text to embeddings, similarities and maps."""

import numpy as np
import pytest
from scipy import ndimage

from plan_jax.inference.prompts import similarities
from plan_jax.models.bert import Bert
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_text

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("torch_baselines")
tiny_baselines = pytest.importorskip("tiny_baselines")
IMAGES, TEXTS, JOINED = tiny_baselines.IMAGES, tiny_baselines.TEXTS, tiny_baselines.JOINED
started = tiny_baselines.started
gloria, mgca, biovil = tiny_baselines.gloria, tiny_baselines.mgca, tiny_baselines.biovil
vocabulary, tokenizer = tiny_baselines.vocabulary, tiny_baselines.tokenizer


def same(value, want, *, tolerance=1e-4):
  """Compares to 1e-4 of its size."""
  want = want.detach().numpy() if torch.is_tensor(want) else np.asarray(want)
  assert np.shape(value) == want.shape and np.abs(want).std() > 1e-4
  np.testing.assert_allclose(value, want, atol=tolerance * np.abs(want).max())


def unit(x):
  return torch.nn.functional.normalize(x, dim=-1)


def compare_gloria(model, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = [model.text(tokenizer, text) for text in JOINED]
  assert mine.grid == (19, 19)
  same(mine.embed_images(IMAGES), torch.stack([unit(image) for _, image in images]))
  readable = [0, 1, 3]  # one word alone their code would drop
  want = torch.stack([unit(texts[i][2]) for i in readable])
  same(mine.embed_texts([TEXTS[i] for i in readable]), want)
  features = mine.local_features(IMAGES, [TEXTS[i] for i in readable])
  regions = torch.stack([region.flatten(1).T for region, _ in images])
  same(features[0], regions, tolerance=1e-3)  # kept in half precision
  logits = mine.local_logits(features, np.arange(3)[:, None], np.array([[0, 1, 2]] * 3))
  similar = mine.local_similarities([TEXTS[i] for i in readable])(IMAGES)
  for i, (region, _) in enumerate(images):
    for j, (names, words, _) in enumerate(texts[k] for k in readable):
      # There a word in brackets costs the last word, unknown ones too; ours counts all words.
      names = [name.replace("[UNK]", "unknown") for name in names]
      want = theirs.gloria_training_score(region.half().float(), names, words.half().float())
      assert logits[i, 0, j] == pytest.approx(want.item(), rel=1e-3)
      want = theirs.gloria_zero_shot_score(region, words, len(names) - 2)  # the words alone
      assert similar[i, j] == pytest.approx(want.item(), abs=2e-4)
  # The words of a phrase, and the phrase, against the regions.
  names, words, report = texts[0]
  region = images[1][0]
  each = torch.einsum("kd,dyx->kyx", words[1 : len(names) - 1], region)
  phrase = JOINED[:1]
  same(mine.similarities(IMAGES[1:2], phrase, "words")[0], each.mean(0))
  foreground = each.relu().mean(0)
  same(mine.maps_on_grid(IMAGES[1:2], phrase, "words")[0], foreground / foreground.max())
  cosine = torch.nn.functional.cosine_similarity(region, report[:, None, None], dim=0)
  same(mine.similarities(IMAGES[1:2], phrase, "phrase")[0], cosine)
  assert mine.peaks(IMAGES[1:2], phrase)[0] == pytest.approx(each.mean(0).max().item(), rel=1e-4)
  attended = mine.attend(IMAGES[1:2], TEXTS[:1])[0]
  assert [word for word, _, _ in attended] == names[1 : len(names) - 1]
  for (_, weight, region), want in zip(attended, each, strict=True):
    assert weight == 1
    np.testing.assert_allclose(region, want.relu(), atol=1e-4 * each.abs().max().item())


def own_attention(model, tokenizer, text):
  """The attention that [CLS] pays each word's own tokens; theirs is that of the tokens after."""
  ids, _, attention = model.hidden(tokenizer, text)
  names, sums = theirs.aggregated(tokenizer, ids, attention)
  return sums[1 : len(names) - 1]


def compare_mgca(model, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = [model.text(tokenizer, text) for text in JOINED]
    own = own_attention(model, tokenizer, JOINED[0])
  same(mine.embed_images(IMAGES), torch.stack([image for _, image in images]))
  readable = [0, 1, 3]
  same(mine.embed_texts([TEXTS[i] for i in readable]), torch.stack([texts[i][2] for i in readable]))
  patches = images[2][0]
  assert mine.grid[0] ** 2 == len(patches)
  names, words, report, _ = texts[0]
  phrase, count = JOINED[:1], len(names) - 1  # without [SEP]
  cosine = (words[:count] @ patches.T).reshape(-1, *mine.grid)
  share = own / own.sum()
  attended = mine.attend(IMAGES[2:], TEXTS[:1])[0]
  assert [word for word, _, _ in attended] == names[:-1]
  for (_, weight, region), want, share_of_word in zip(attended, cosine, share, strict=True):
    assert weight == pytest.approx(share_of_word.item(), abs=1e-5)
    np.testing.assert_allclose(region, want.relu(), atol=1e-4)
  same(mine.similarities(IMAGES[2:], phrase, "words")[0], torch.einsum("w,whv->hv", share, cosine))
  phrase_cosine = (patches @ report).reshape(mine.grid)
  same(mine.similarities(IMAGES[2:], phrase, "phrase")[0], phrase_cosine)
  foreground = phrase_cosine.relu()
  same(mine.maps_on_grid(IMAGES[2:], phrase, "phrase")[0], foreground / foreground.max())


@pytest.mark.parametrize("name", [pytest.param("mgca_resnet", marks=pytest.mark.slow), "mgca_vit"])
def test_mgca(tmp_path, vocabulary, tokenizer, name):
  model, path = mgca(tmp_path, tokenizer, name)
  mine = started(name, weights=path, tokenizer=vocabulary)
  compare_mgca(model, mine, tokenizer)
  assert mine.global_scale() == pytest.approx(1 / 0.07) and not mine.has_local_scores
  assert mine.has_significance


def test_significances_are_those_of_the_report_s_words(tmp_path, vocabulary, tokenizer):
  """MGCA reads "right-sided" as two words; what it does not read weighs nothing."""
  model, path = mgca(tmp_path, tokenizer, "mgca_vit")
  mine = started("mgca_vit", weights=path, tokenizer=vocabulary)
  text = ("A right-sided é nodule.",)
  with torch.no_grad():
    names = model.text(tokenizer, text[0])[0]
    attention = own_attention(model, tokenizer, text[0])
  assert names == ["a", "right", "sided", "nodule", "[SEP]"]
  share = (attention / attention.sum()).tolist()
  (significances,) = mine.significances([text])
  assert [word for word, _ in significances] == ["A", "right-sided", "é", "nodule"]
  want = [share[0], share[1] + share[2], 0, share[3]]
  assert [weight for _, weight in significances] == pytest.approx(want, abs=1e-5)
  long = (" ".join(["small left effusion"] * 60),)
  (cut,) = mine.significances([long])
  assert 10 < len(cut) < 180 and mine.note


def compare_biovil(model, words, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = words.prompts(tokenizer, JOINED[:3])
    with pytest.raises(ValueError, match="too long"):
      words.prompts(tokenizer, JOINED[3:])
  same(mine.embed_images(IMAGES), torch.stack([image for _, image in images]))
  same(mine.embed_texts(TEXTS[:3]), texts)
  assert not mine.note
  mine.embed_texts(TEXTS[3:])  # cut, and counted
  assert mine.note.startswith("1 texts were longer than the 128 tokens")
  patches, phrase = images[1][0], JOINED[:1]
  assert mine.grid == patches.shape[:2]
  cosine = patches @ texts[0]
  for query in ("words", "phrase"):
    same(mine.similarities(IMAGES[1:2], phrase, query)[0], cosine)
    smooth = torch.tensor(ndimage.gaussian_filter(cosine.numpy(), sigma=1.5))
    foreground = smooth.relu() / smooth.max()
    same(mine.maps_on_grid(IMAGES[1:2], phrase, query)[0], foreground)
    want = model.on_image(foreground, IMAGES[1].shape, "bilinear").numpy()
    heatmap = mine.maps(IMAGES[1:2], phrase, query)[0]
    np.testing.assert_allclose(heatmap, want, atol=1e-4)
    assert np.isnan(heatmap).any()
  assert mine.peaks(IMAGES[1:2], phrase)[0] == pytest.approx(cosine.max().item(), rel=1e-4)
  prompts = [(text,) for text in (JOINED[0], "No edema", "The heart is large!")]
  whole = mine.embed_images(IMAGES)
  with torch.no_grad():
    scores = [words.score(image, tokenizer, [text for (text,) in prompts]) for _, image in images]
  same(similarities(whole, mine.embed_prompts(prompts), "embeddings"), torch.stack(scores))
  units = mine.embed_texts(prompts)
  assert np.abs(similarities(whole, units, "embeddings") - np.array(scores)).max() > 1e-5
  for ensemble in ("similarities", "highest"):
    want = similarities(whole, units, ensemble)
    same(similarities(whole, mine.embed_prompts(prompts), ensemble), want)
  attended = mine.attend(IMAGES[1:2], [TEXTS[1]])[0]
  assert [word for word, _, _ in attended][:4] == ["1", "No", "pneumothorax", "2"]
  assert all((region == attended[0][2]).all() and weight == 1 for _, weight, region in attended)
  small = mine.on_image(attended[0][2], IMAGES[1].shape)
  assert max(small.shape) == 32 and np.isfinite(small).all() and small.min() >= 0


@pytest.mark.parametrize(
  ("name", "side"), [pytest.param("biovil", 15, marks=pytest.mark.slow), ("biovil_t", 14)]
)
def test_biovil(tmp_path, vocabulary, tokenizer, name, side):
  model, words, weights, folder = biovil(tmp_path, tokenizer, name)
  mine = started(name, weights=weights, text=folder, tokenizer=vocabulary)
  compare_biovil(model, words, mine, tokenizer)
  assert mine.grid == (side, side) and not mine.has_local_scores and not mine.has_significance
  assert (mine.map_sigma, mine.map_nearest) == (1.5, True)


def test_afloc(tmp_path, vocabulary, tokenizer):
  model, path = tiny_baselines.afloc(tmp_path, tokenizer)
  mine = started("afloc", weights=path, tokenizer=vocabulary)
  with torch.no_grad():
    images = [model.image(image, 224) for image in IMAGES]
    texts = [model.text(tokenizer, text)[2] for text in JOINED]
  same(mine.embed_images(IMAGES), torch.stack([unit(image) for _, image in images]), tolerance=1e-5)
  readable = [0, 1, 3]
  want = torch.stack([unit(texts[i]) for i in readable])
  same(mine.embed_texts([TEXTS[i] for i in readable]), want, tolerance=1e-5)
  # localization/common.py: dot product with the report, smoothed, tiled over the square.
  smooth = torch.tensor(
    ndimage.gaussian_filter(torch.einsum("d,dyx->yx", texts[0], images[0][0]).numpy(), sigma=1.5)
  )
  assert smooth.max() > 0
  want = smooth.relu() / smooth.max()
  for query in ("words", "phrase"):
    same(mine.maps_on_grid(IMAGES[:1], JOINED[:1], query)[0], want, tolerance=1e-5)
  side = IMAGES[0].shape
  want = torch.nn.functional.interpolate(want[None, None], side, mode="bilinear")[0, 0]
  same(mine.maps(IMAGES[:1], JOINED[:1])[0], want)
  words = [word for word, _, _ in mine.attend(IMAGES[:1], TEXTS[:1])[0]]
  assert words == ["small", "left", "pleural", "effusion"] and not mine.has_local_scores


def test_gloria(tmp_path, vocabulary, tokenizer):
  model, path = gloria(tmp_path, tokenizer)
  mine = started("gloria", weights=path, tokenizer=vocabulary)
  compare_gloria(model, mine, tokenizer)
  assert mine.global_scale() == 10 and mine.has_local_scores and not mine.has_significance
  assert "texts were longer than the 97 tokens that GLoRIA reads" in mine.note


# --- at their sizes ------------------------------------------------------------------------------

FULL_RESNET = dict(base=64, deep=True)
BASE = dict(size=768, layers=12)


@pytest.mark.slow
def test_gloria_at_its_size(tmp_path, vocabulary, tokenizer):
  model, path = gloria(tmp_path, tokenizer, **BASE, resnet=FULL_RESNET)
  compare_gloria(model, started("gloria", weights=path, tokenizer=vocabulary), tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mgca_resnet", "mgca_vit"])
def test_mgca_at_its_size(tmp_path, vocabulary, tokenizer, name):
  vit = dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072)
  model, path = mgca(
    tmp_path, tokenizer, name, size=768, layers=6, heads=(2048, 128), resnet=FULL_RESNET, vit=vit
  )
  compare_mgca(model, started(name, weights=path, tokenizer=vocabulary), tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["biovil", "biovil_t"])
def test_biovil_at_its_size(tmp_path, vocabulary, tokenizer, name):
  model, words, weights, folder = biovil(
    tmp_path, tokenizer, name, **BASE, reduced=256, out=128, resnet=FULL_RESNET
  )
  mine = started(name, weights=weights, text=folder, tokenizer=vocabulary)
  compare_biovil(model, words, mine, tokenizer)


def test_mgca_s_text_can_start_a_run(tmp_path, tokenizer):
  """It has no token types, layers that it does not use, and the position 0 for every token."""
  model, path = mgca(tmp_path, tokenizer, "mgca_vit")
  sizes = dict(embed_dim=64, depth=2, num_heads=1, mlp_dim=128, max_position=128)
  encoder = Bert(len(tokenizer), **sizes)
  loaded = load_text(path, encoder)
  assert not loaded.params["type_embedding"].any()
  aside = loaded.provenance["left_aside"]
  assert any("crossattention" in name for name in aside) and "prototype_layer.weight" in aside
  with torch.no_grad():
    ids, want, _ = model.hidden(tokenizer, JOINED[0])
  place = np.arange(len(ids))[None]
  real = np.where(ids == tokenizer.pad_token_id, -1, 0)[None]
  hidden = encoder.apply({"params": loaded.params}, ids[None].numpy(), real, place)
  same(hidden[0, real[0] == 0], want[real[0] == 0])
  name = "text_encoder_q.model.embeddings.token_type_embeddings.weight"
  torch.save({"state_dict": model.state_dict() | {name: torch.zeros(2, 64)}}, path)
  with pytest.raises(WeightsError, match=f"unexpected {name}"):  # of another BERT
    load_text(path, encoder)
