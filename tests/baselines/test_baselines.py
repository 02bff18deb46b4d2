"""Whole baselines against torch, from an image and a text to vectors, similarities and maps."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer as tokens
from plan_jax.baselines import baseline, tokenization
from plan_jax.baselines.preprocessing import MiddleOfShortSide, PaddedSquare, resample
from plan_jax.models.bert import Bert
from plan_jax.models.weights.load import load_text

torch = pytest.importorskip("torch")
reference = pytest.importorskip("torch_reference")
theirs = pytest.importorskip("torch_baselines")

EXAMPLES = [radiograph.example(1, i, 96) for i in range(4)]
WHOLE = [images.decode(example.image) for example in EXAMPLES]
IMAGES = [WHOLE[0], WHOLE[1][:, 9:80], WHOLE[2][5:60]]  # square, high, wide
TEXTS = [
  ("Small left pleural effusion.",),
  ("1. No pneumothorax. 2. Heart: 1.5 cm, right-sided nodule!", "Normal."),
  ("Edema",),
  tuple(s for example in EXAMPLES for s in example.sentences) * 3,
]
TINY_RESNET = dict(base=8, deep=False)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  said = [" ".join(example.sentences) for example in EXAMPLES]
  tokens.train(said, folder, vocabulary_size=120)
  return folder


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
  from transformers import AutoTokenizer

  return AutoTokenizer.from_pretrained(str(vocabulary), local_files_only=True)


def config_of(name, **paths):
  config = ConfigDict(dict(evaluation=dict(batch_size=4), mesh=dict(data=-1, fsdp=1)))
  config.baseline = dict(name=name, weights="", text="", tokenizer="")
  config.baseline.update({key: str(path) for key, path in paths.items()})
  return config


def started(name, **paths):
  config = config_of(name, **paths)
  return baseline.on_devices(baseline.load(config), config)


def same(found, want, *, tolerance=1e-4):
  """To 1e-4 of its size."""
  want = want.detach().numpy() if torch.is_tensor(want) else np.asarray(want)
  assert np.shape(found) == want.shape and np.abs(want).std() > 1e-4
  np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max())


def unit(x):
  return torch.nn.functional.normalize(x, dim=-1)


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 96), (300, 211), (173, 401), (512, 622), (90, 31)])
def test_images_as_gloria_and_mgca_see_them(shape):
  image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  want = theirs.padded_square(image)[0, 0] / 2 + 0.5
  np.testing.assert_allclose(PaddedSquare().fit(image), want, atol=1e-6)
  want = theirs.enlarged(theirs.padded_square(image))[0, 1] / 2 + 0.5
  np.testing.assert_allclose(PaddedSquare(enlarged_px=299).fit(image), want, atol=5e-5)


@pytest.mark.parametrize("shape", [(96, 96), (512, 611), (700, 512), (300, 211)])
@pytest.mark.parametrize("crop", [448, 480])
def test_images_as_biovil_sees_them(shape, crop):
  image = np.random.default_rng(0).integers(3, 200, shape, np.uint8)
  np.testing.assert_allclose(
    MiddleOfShortSide(crop).fit(image), theirs.middle(image, crop)[0, 1], atol=1e-6
  )
  assert not MiddleOfShortSide(crop).fit(np.full(shape, 7, np.uint8)).any()


@pytest.mark.parametrize("shape", [(256, 256), (200, 311), (640, 500), (100, 37)])
def test_a_cell_of_the_square_lies_on_the_image_where_it_was_seen(shape):
  """A grid that holds the places of its cells gives each pixel its own place; none beyond."""
  from plan_jax.baselines.gloria import ENLARGED

  cells = np.arange(19)
  # Of the enlarged picture pixel 16 i, that is so far into the 224, of the 256, of the image.
  in_square = 16 * cells * 223 / 298 + 16
  height, width = shape
  scale = 256 / max(shape)
  rows, columns = (int(length * scale + 1e-9) for length in shape)
  y = (in_square - (256 - rows) // 2 + 0.5) * height / rows - 0.5
  x = (in_square - (256 - columns) // 2 + 0.5) * width / columns - 0.5
  for axis, places in enumerate((y, x)):
    grid = np.broadcast_to(places[:, None] if axis == 0 else places[None], (19, 19))
    image = ENLARGED.to_image(grid, shape)
    found = np.argwhere(~np.isnan(image))[:, axis]
    between = (found > places[0]) & (found < places[-1])  # beyond centres there is no slope
    np.testing.assert_allclose(image[~np.isnan(image)][between], found[between], atol=1e-2)
  seen = ~np.isnan(image)
  # The middle 224 of 256 in each direction, as far as the image goes.
  for length, whole, count in (
    (height, rows, seen.any(1).sum()), (width, columns, seen.any(0).sum())
  ):  # fmt: skip
    assert count == pytest.approx(min(224, whole) * length / whole, abs=1.01)
  patches = PaddedSquare(cell_px=16, first_px=7.5)
  near = patches.to_image(np.arange(196.0).reshape(14, 14), (256, 256), nearest=True)
  assert (near[16:240, 16:240] == np.kron(np.arange(196).reshape(14, 14), np.ones((16, 16)))).all()
  assert np.isnan(near[:16]).all() and np.isnan(near[:, 240:]).all()


@pytest.mark.parametrize("shape", [(256, 256), (200, 311), (640, 512), (500, 501)])
@pytest.mark.parametrize("crop", [448, 480])
def test_biovil_s_map_on_the_image(shape, crop):
  grid = np.random.default_rng(1).random((crop // 32, crop // 32)).astype(np.float32)
  model = theirs.BioViL(torch.nn.Identity(), 3, 3)
  model.crop = crop
  for mode, nearest in (("bilinear", False), ("nearest", True)):
    want = model.on_image(torch.tensor(grid), shape, mode).numpy()
    found = MiddleOfShortSide(crop).to_image(grid, shape, nearest=nearest)
    np.testing.assert_allclose(found, want, atol=1e-5)
  assert np.isnan(found).any()


def test_resampling_by_hand():
  grid = np.array([[0.0, 2], [4, 10]], np.float32)
  places = np.array([-1, 0, 0.25, 1, 5])
  found = resample(grid, places, np.array([0, 0.5]))
  np.testing.assert_allclose(found, [[0, 1], [0, 1], [1, 2.5], [4, 7], [4, 7]])
  near = resample(grid, places, np.array([0.4, 0.6]), nearest=True)
  np.testing.assert_array_equal(near, [[0, 2], [0, 2], [0, 2], [4, 10], [4, 10]])


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [97, 112, 9])
def test_texts_as_gloria_and_mgca_read_them(vocabulary, tokenizer, most):
  reader = tokenization.CleanedReader(tokenization.Vocabulary(vocabulary, "key"), most)
  for said in (*TEXTS[:2], TEXTS[3]):
    ids, there = theirs.tokens(tokenizer, said, most)
    reading = reader.read(said)
    assert reading.tokens == ids[0, : there.sum()].tolist()
    names, _ = theirs.aggregated(tokenizer, ids[0], torch.zeros(most, 1))
    assert reading.owner[-1] == len(names) - 1 == len(reading.words) + 1
    # The tokens of a word put together again are its name.
    for number, name in enumerate(names):
      ids_of = [
        i for i, owner in zip(reading.tokens, reading.owner, strict=True) if owner == number
      ]
      parts = tokenizer.convert_ids_to_tokens(ids_of)
      assert "".join(part.removeprefix("##") for part in parts) == name
    assert reading.cut == (len(tokenizer(theirs.cleaned(said))["input_ids"]) > most)
    for word in reading.words:
      assert said[word.sentence][word.start : word.end].lower() == word.text


def test_a_text_of_one_word_is_read_all_the_same(vocabulary):
  """Its own project would drop it; in company it is dropped here, too."""
  reader = tokenization.CleanedReader(tokenization.Vocabulary(vocabulary, "key"), 97)
  assert [word.text for word in reader.read(TEXTS[2]).words] == ["edema"]
  words = [word.text for word in reader.read(TEXTS[1]).words]
  assert words == ["no", "pneumothorax", "5", "cm", "right", "sided", "nodule"]
  for nothing in ((), ("",), ("...",), ("é",)):
    reading = reader.read(nothing)
    assert (len(reading.tokens), reading.words, reading.cut) == (2, [], False)
    assert not tokenization.arrays([reading], 16, 0)["word_mask"].any()


def test_vocabularies(vocabulary, tmp_path):
  whole = tokenization.Vocabulary(vocabulary, "key")
  names = sorted(whole.backend.get_vocab(), key=whole.backend.get_vocab().get)
  (tmp_path / "vocab.txt").write_text("\n".join(names))
  plain = tokenization.Vocabulary(tmp_path, "key")
  assert plain.size == whole.size == len(names)
  said = ("Small LEFT effusion.",)
  first, second = (tokenization.CleanedReader(v, 97).read(said).tokens for v in (whole, plain))
  assert first == second
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
  cased = tokenization.PlainReader(tokenization.Vocabulary(tmp_path, "key")).read(said).tokens
  assert cased != tokenization.PlainReader(plain).read(said).tokens
  (tmp_path / "vocab.txt").write_text("a\nb")
  with pytest.raises(UserError, match="key: .* is no BERT's vocabulary"):
    tokenization.Vocabulary(tmp_path, "key")
  with pytest.raises(UserError, match=r"key: .*nowhere holds neither tokenizer.json nor vocab.txt"):
    tokenization.Vocabulary(tmp_path / "nowhere", "key")


# --- models --------------------------------------------------------------------------------------


def gloria(folder, tokenizer, size=128, layers=5, resnet=TINY_RESNET):
  trunk, channels = theirs.resnet(**resnet)
  model = theirs.Gloria(trunk, channels, theirs.bert(len(tokenizer), size, layers), size)
  reference.randomise(model)
  with torch.no_grad():
    names, words, _ = model.text(tokenizer, TEXTS[0])
    region = model.image(IMAGES[1])[0]
    if torch.einsum("wd,dyx->wyx", words[1 : len(names) - 1], region).mean() < 0:
      model.gloria.img_encoder.local_embedder.weight.neg_()  # an image like the words somewhere
  tensors = model.state_dict()
  tensors["gloria.text_encoder.model.embeddings.position_ids"] = torch.arange(128)[None]
  torch.save({"state_dict": tensors, "epoch": 1}, folder / "gloria.ckpt")
  return model, folder / "gloria.ckpt"


def compare_gloria(model, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = [model.text(tokenizer, said) for said in TEXTS]
  assert mine.grid == (19, 19)
  same(mine.embed_images(IMAGES), torch.stack([unit(image) for _, image in images]))
  some = [0, 1, 3]  # one word alone their code would drop
  same(mine.embed_texts([TEXTS[i] for i in some]), torch.stack([unit(texts[i][2]) for i in some]))
  features = mine.local_features(IMAGES, [TEXTS[i] for i in some])
  regions = torch.stack([region.flatten(1).T for region, _ in images])
  same(features[0], regions, tolerance=1e-3)  # kept in half precision
  logits = mine.local_logits(features, np.arange(3)[:, None], np.array([[0, 1, 2]] * 3))
  similar = mine.local_similarities([TEXTS[i] for i in some])(IMAGES)
  for i, (region, _) in enumerate(images):
    for j, (names, words, _) in enumerate(texts[k] for k in some):
      kept = region.half().float(), words[: len(names) - 1].half().float()  # with [CLS]
      want = 10 * (5 * theirs.gloria_cosines(*kept)).exp().sum().log().item()
      assert logits[i, 0, j] == pytest.approx(want, rel=1e-3)
      cosine = theirs.gloria_cosines(region, words[1 : len(names) - 1])
      assert similar[i, j] == pytest.approx((5 * cosine).exp().max().log().item(), abs=2e-4)
  # The words of a phrase, and the phrase, against the regions.
  names, words, report = texts[0]
  region = images[1][0]
  each = torch.einsum("kd,dyx->kyx", words[1 : len(names) - 1], region)
  phrase = [" ".join(TEXTS[0])]
  same(mine.similarities(IMAGES[1:2], phrase, "words")[0], each.mean(0))
  lit = each.relu().mean(0)
  same(mine.ground_on_grid(IMAGES[1:2], phrase, "words")[0], lit / lit.max())
  cosine = torch.nn.functional.cosine_similarity(region, report[:, None, None], dim=0)
  same(mine.similarities(IMAGES[1:2], phrase, "phrase")[0], cosine)
  assert mine.peaks(IMAGES[1:2], phrase)[0] == pytest.approx(each.mean(0).max().item(), rel=1e-4)
  looked = mine.attend(IMAGES[1:2], TEXTS[:1])[0]
  assert [word for word, _, _ in looked] == names[1 : len(names) - 1]
  for (_, say, seen), want in zip(looked, each, strict=True):
    assert say == 1
    np.testing.assert_allclose(seen, want.relu(), atol=1e-4 * each.abs().max().item())


TINY_VIT = dict(embed_dim=64, depth=2, num_heads=1, mlp_dim=96)


def mgca(
  folder, tokenizer, name, size=64, layers=2, heads=(24, 10), resnet=TINY_RESNET, vit=TINY_VIT
):
  if name == "mgca_vit":
    trunk, channels = reference.ViT(**vit), (vit["size"],) * 2
  else:
    trunk, channels = theirs.resnet(**resnet)
  words = theirs.bert(len(tokenizer), size, layers, add_pooling_layer=False)
  model = theirs.Mgca(trunk, channels, words, size, *heads)
  reference.randomise(model)
  with torch.no_grad():
    words.embeddings.token_type_embeddings.weight.zero_()
  torch.save(model.checkpoint(), folder / f"{name}.ckpt")
  return model, folder / f"{name}.ckpt"


def compare_mgca(model, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = [model.text(tokenizer, said) for said in TEXTS]
  same(mine.embed_images(IMAGES), torch.stack([image for _, image in images]))
  some = [0, 1, 3]
  same(mine.embed_texts([TEXTS[i] for i in some]), torch.stack([texts[i][2] for i in some]))
  patches = images[2][0]
  assert mine.grid[0] ** 2 == len(patches)
  names, words, report, attention = texts[0]
  phrase = [" ".join(TEXTS[0])]
  cosine = (words[:-1] @ patches.T).reshape(-1, *mine.grid)  # without [SEP]
  share = attention[:-1] / attention[:-1].sum()
  looked = mine.attend(IMAGES[2:], TEXTS[:1])[0]
  assert [word for word, _, _ in looked] == names[:-1]
  for (_, say, seen), want, weight in zip(looked, cosine, share, strict=True):
    assert say == pytest.approx(weight.item(), abs=1e-5)
    np.testing.assert_allclose(seen, want.relu(), atol=1e-4)
  same(mine.similarities(IMAGES[2:], phrase, "words")[0], torch.einsum("w,whv->hv", share, cosine))
  of_phrase = (patches @ report).reshape(mine.grid)
  same(mine.similarities(IMAGES[2:], phrase, "phrase")[0], of_phrase)
  lit = of_phrase.relu()
  same(mine.ground_on_grid(IMAGES[2:], phrase, "phrase")[0], lit / lit.max())


@pytest.mark.parametrize("name", [pytest.param("mgca_resnet", marks=pytest.mark.slow), "mgca_vit"])
def test_mgca(tmp_path, vocabulary, tokenizer, name):
  model, path = mgca(tmp_path, tokenizer, name)
  mine = started(name, weights=path, tokenizer=vocabulary)
  compare_mgca(model, mine, tokenizer)
  assert mine.global_scale() == pytest.approx(1 / 0.07) and not mine.has_local_scores
  assert mine.has_significance


def test_the_weights_of_our_words(tmp_path, vocabulary, tokenizer):
  """MGCA reads "right-sided" as two words; what it does not read weighs nothing."""
  model, path = mgca(tmp_path, tokenizer, "mgca_vit")
  mine = started("mgca_vit", weights=path, tokenizer=vocabulary)
  said = ("A right-sided é nodule.",)
  with torch.no_grad():
    names, _, _, attention = model.text(tokenizer, said)
  assert names == ["a", "right", "sided", "nodule", "[SEP]"]
  share = (attention[:-1] / attention[:-1].sum()).tolist()
  ((found),) = mine.significances([said])
  assert [word for word, _ in found] == ["A", "right-sided", "é", "nodule"]
  want = [share[0], share[1] + share[2], 0, share[3]]
  assert [weight for _, weight in found] == pytest.approx(want, abs=1e-5)
  long = (" ".join(["small left effusion"] * 60),)
  ((cut),) = mine.significances([long])
  assert 10 < len(cut) < 180 and mine.note


def biovil(folder, tokenizer, name, size=128, layers=2, reduced=12, out=10, resnet=TINY_RESNET):
  trunk, channels = theirs.resnet(**resnet)
  trunk.fc = torch.nn.Linear(3, 3)
  model = theirs.BioViL(trunk, channels[1], out, reduced * (name == "biovil_t"))
  words = theirs.CxrBert(len(tokenizer), size, layers, out)
  reference.randomise(model)
  reference.randomise(words, 1)
  with torch.no_grad():
    if (model.image(IMAGES[1])[0] @ words.text(tokenizer, TEXTS[0])).mean() < 0:
      for x in model.projector.model[3].parameters():
        x.neg_()  # an image that is like the text somewhere
  torch.save(model.state_dict(), folder / f"{name}.pt")
  (folder / name).mkdir()
  torch.save(words.state_dict(), folder / name / "pytorch_model.bin")
  words.config.save_pretrained(folder / name)
  return model, words, folder / f"{name}.pt", folder / name


def compare_biovil(model, words, mine, tokenizer):
  with torch.no_grad():
    images = [model.image(image) for image in IMAGES]
    texts = [words.text(tokenizer, said) for said in TEXTS]
  same(mine.embed_images(IMAGES), torch.stack([image for _, image in images]))
  same(mine.embed_texts(TEXTS), torch.stack(texts))
  patches, phrase = images[1][0], [" ".join(TEXTS[0])]
  assert mine.grid == patches.shape[:2]
  cosine = patches @ texts[0]
  for of in ("words", "phrase"):
    same(mine.similarities(IMAGES[1:2], phrase, of)[0], cosine)
    smooth = torch.tensor(ndimage.gaussian_filter(cosine.numpy(), sigma=1.5))
    lit = smooth.relu() / smooth.max()
    same(mine.ground_on_grid(IMAGES[1:2], phrase, of)[0], lit)
    want = model.on_image(lit, IMAGES[1].shape, "bilinear").numpy()
    found = mine.ground(IMAGES[1:2], phrase, of)[0]
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert np.isnan(found).any()
  assert mine.peaks(IMAGES[1:2], phrase)[0] == pytest.approx(cosine.max().item(), rel=1e-4)
  looked = mine.attend(IMAGES[1:2], [TEXTS[1]])[0]
  assert [word for word, _, _ in looked][:4] == ["1", "No", "pneumothorax", "2"]
  assert all((region == looked[0][2]).all() and say == 1 for _, say, region in looked)
  small = mine.on_image(looked[0][2], IMAGES[1].shape)
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
  """It has no token types, and layers that it does not use."""
  model, path = mgca(tmp_path, tokenizer, "mgca_vit")
  sizes = dict(embed_dim=64, depth=2, num_heads=1, mlp_dim=128, max_position=128)
  encoder = Bert(len(tokenizer), **sizes)
  loaded = load_text(path, encoder)
  assert not loaded.params["type_embedding"].any()
  aside = loaded.provenance["left_aside"]
  assert any("crossattention" in name for name in aside) and "prototype_layer.weight" in aside
  ids, _ = theirs.tokens(tokenizer, TEXTS[0], 20)
  ids = ids[:, :6]
  with torch.no_grad():
    want = model.text_encoder_q.model(ids).last_hidden_state
  place = np.arange(6)[None]
  found = encoder.apply({"params": loaded.params}, ids.numpy(), np.zeros((1, 6), int), place)
  same(found, want)


# --- what can be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "paths", "words"),
  [
    ("gloria", {}, "config.baseline.weights: is empty; name the checkpoint of GLoRIA"),
    (
      "clip",
      {"weights": "x"},
      "baseline.name: is 'clip'; it must be one of gloria, mgca_resnet",
    ),
    ("mgca_vit", {"weights": "x"}, "config.baseline.tokenizer: is empty; .* Bio_ClinicalBERT"),
    ("biovil_t", {"weights": "x"}, "config.baseline.text: is empty; .* goes with BioViL-T"),
    ("gloria", {"weights": "x", "text": "y"}, "checkpoint of GLoRIA holds its text encoder"),
    (
      "gloria",
      {"weights": "none.pt", "tokenizer": "."},
      "config.baseline.tokenizer: . holds neither",
    ),
  ],
)
def test_keys_that_are_wrong(name, paths, words):
  with pytest.raises(UserError, match=words):
    baseline.load(config_of(name, **paths))


def test_weights_that_are_wrong(tmp_path, vocabulary, tokenizer):
  _, path = gloria(tmp_path, tokenizer)
  given = dict(weights=path, tokenizer=vocabulary)
  with pytest.raises(UserError, match="is no checkpoint of MGCA ViT: it is GLoRIA's"):
    baseline.load(config_of("mgca_vit", **given))
  with pytest.raises(UserError, match=r"config.baseline.weights: .*gone.pt is not there"):
    baseline.load(config_of("gloria", **given | {"weights": tmp_path / "gone.pt"}))
  whole = torch.load(path)["state_dict"]
  first, local = "gloria.img_encoder.model.conv1.weight", "gloria.img_encoder.local_embedder.weight"
  changed = {name: x for name, x in whole.items() if name != local}
  changed |= {"gloria.img_encoder.new": torch.ones(2)}
  changed |= {"gloria.img_encoder.global_embedder.bias": torch.ones(5)}
  torch.save(changed, path)
  with pytest.raises(UserError) as error:
    baseline.load(config_of("gloria", **given))
  for told in (
    "missing pixel_head/kernel", "unexpected gloria.img_encoder.new",
    "global_embedder.bias is (5,) for our image_head/bias of (128,)",
  ):  # fmt: skip
    assert told in str(error.value)
  torch.save({first: whole[first]}, path)
  with pytest.raises(UserError, match="missing text_encoder/token_embedding/embedding"):
    baseline.load(config_of("gloria", **given))
  torch.save({"conv1.weight": whole[first]}, path)
  with pytest.raises(UserError, match="is no checkpoint of GLoRIA: it begins with conv1.weight"):
    baseline.load(config_of("gloria", **given))


def test_vocabulary_and_text_that_are_not_the_weights(tmp_path, vocabulary, tokenizer):
  _, path = mgca(tmp_path, tokenizer, "mgca_vit")
  tokens.train(["a heart", "two lungs"] * 3, tmp_path / "other", vocabulary_size=30)
  given = dict(weights=path, tokenizer=tmp_path / "other")
  with pytest.raises(
    UserError, match="config.baseline.tokenizer: .*other has .* the weights have 120"
  ):
    baseline.load(config_of("mgca_vit", **given))
  _, _, weights, folder = biovil(tmp_path, tokenizer, "biovil_t")
  found = baseline.load(config_of("biovil_t", weights=weights, text=folder, tokenizer=vocabulary))
  assert found.provenance["weights"]["source"] == "BioViL-T: biovil_t.pt"
  assert found.provenance["text"]["source"] == "CXR-BERT: biovil_t"
  assert all(len(one["sha256"]) == 64 for one in found.provenance.values())
  assert "encoder.encoder.fc.bias" in found.provenance["weights"]["left_aside"]
  assert "encoder.vit_pooler.bias" in found.provenance["weights"]["left_aside"]
  with pytest.raises(UserError, match="is no checkpoint of BioViL: it is BioViL-T's"):
    baseline.load(config_of("biovil", weights=weights, text=folder, tokenizer=vocabulary))
  with pytest.raises(
    UserError, match="config.baseline.text: .* no checkpoint of CXR-BERT: it is Bio"
  ):
    baseline.load(config_of("biovil_t", weights=weights, text=weights, tokenizer=vocabulary))
  with pytest.raises(UserError, match="config.baseline.text: .* holds neither tokenizer.json"):
    baseline.load(config_of("biovil_t", weights=weights, text=folder))
  _, _, _, wider = biovil(tmp_path, tokenizer, "biovil", out=12)
  with pytest.raises(UserError, match="gives vectors of 12, the images' are of 10"):
    baseline.load(config_of("biovil_t", weights=weights, text=wider, tokenizer=vocabulary))
