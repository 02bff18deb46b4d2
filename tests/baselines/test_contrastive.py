"""CLIP and its kin against transformers: images, texts, maps and scores."""

import json

import numpy as np
import pytest

from input_pipeline.errors import UserError
from plan_jax.baselines import load, tokenization
from plan_jax.baselines.preprocessing import MiddleOfShortSide
from plan_jax.inference import prompts

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tiny_contrastive")
tiny_baselines = pytest.importorskip("tiny_baselines")
IMAGES, TEXTS, JOINED = tiny_baselines.IMAGES, tiny_baselines.TEXTS, tiny_baselines.JOINED
started, config_of = tiny_baselines.started, tiny_baselines.config_of
byte_pairs, vocabulary = theirs.byte_pairs, tiny_baselines.vocabulary
tokenizer = tiny_baselines.tokenizer


def same(value, want):
  np.testing.assert_allclose(value, want, atol=1e-5)


def compare(mine, images, texts):
  """Compares with the patches and embeddings of IMAGES, and the embeddings of TEXTS."""
  same(mine.embed_images(IMAGES), torch.stack([image for _, image in images]))
  same(mine.embed_texts(TEXTS), torch.stack(texts))
  patches, phrase = images[1][0], JOINED[:1]
  assert mine.grid[0] ** 2 == len(patches)
  cosine = (patches @ texts[0]).reshape(mine.grid)
  assert cosine.std() > 1e-3 and cosine.max() > 0
  for query in ("words", "phrase"):
    same(mine.similarities(IMAGES[1:2], phrase, query)[0], cosine)
    same(mine.maps_on_grid(IMAGES[1:2], phrase, query)[0], cosine.relu() / cosine.max())
  attended = mine.attend(IMAGES[1:2], TEXTS[:1])[0]
  assert [word for word, _, _ in attended] == ["Small", "left", "pleural", "effusion"]
  assert not mine.has_local_scores and not mine.has_significance


@pytest.mark.parametrize("openai", [False, True])
def test_clip(tmp_path, byte_pairs, openai):
  model, tokenizer, folder, file = theirs.clip(tmp_path, byte_pairs, **theirs.TINY)
  mine = started("clip", weights=file if openai else folder, tokenizer=byte_pairs)
  compare(
    mine,
    [theirs.clip_image(model, theirs.middle(x, 32), theirs.CLIP_PIXELS) for x in IMAGES],
    [theirs.clip_text(model, tokenizer, text) for text in JOINED],
  )
  assert mine.global_scale() == pytest.approx(np.exp(2.5)) and mine.grid == (4, 4)
  assert mine.note.startswith("1 texts were longer than the 40 tokens that CLIP reads")
  mapped = mine.maps(IMAGES[1:2], JOINED[:1])[0]
  assert mapped.shape == IMAGES[1].shape and np.isnan(mapped).any()  # what the middle leaves out


@pytest.mark.slow
def test_chexzero_at_its_size(tmp_path, byte_pairs):
  model, tokenizer, _, file = theirs.clip(tmp_path, byte_pairs, **theirs.VIT_B_32)
  mine = started("chexzero", weights=file, tokenizer=byte_pairs)
  squares = [theirs.chexzero_square(image, 224) for image in IMAGES]
  images = [theirs.clip_image(model, square, theirs.CHEXZERO_PIXELS) for square in squares]
  compare(mine, images, [theirs.clip_text(model, tokenizer, text, 77) for text in JOINED])
  assert mine.grid == (7, 7)


@pytest.mark.parametrize("openai", [False, True])
def test_chexzero(tmp_path, byte_pairs, openai):
  model, tokenizer, folder, file = theirs.clip(tmp_path, byte_pairs, **theirs.TINY)
  mine = started("chexzero", weights=file if openai else folder, tokenizer=byte_pairs)
  squares = [theirs.chexzero_square(image, 32) for image in IMAGES]
  images = [theirs.clip_image(model, square, theirs.CHEXZERO_PIXELS) for square in squares]
  compare(mine, images, [theirs.clip_text(model, tokenizer, text) for text in JOINED])
  # Its score of a finding: softmax of the cosines with the label, and with the label denied.
  label = "Pleural Effusion"
  scores = mine.classify(IMAGES, [label], prompts="chexzero")
  yes, no = (theirs.clip_text(model, tokenizer, text) for text in (label, f"no {label}"))
  want = [torch.stack([image @ yes, image @ no]).softmax(0)[0].item() for _, image in images]
  same([score[label] for score in scores], want)
  # Patches tile the square around the image; nothing of the image is left out.
  grid = np.arange(16, dtype=np.float32).reshape(4, 4)
  want = torch.nn.functional.interpolate(
    torch.tensor(grid)[None, None], (320, 320), mode="bilinear", align_corners=False
  )[0, 0]
  same(mine.to_image(grid, (320, 320)), want)
  same(mine.to_image(grid, (320, 160)), want[:, 80:240])


@pytest.mark.parametrize(
  ("name", "square"), [("siglip", "squashed"), ("medsiglip", "squashed_bilinear")]
)
def test_siglip(tmp_path, name, square):
  model, pieces, folder = theirs.siglip(tmp_path)
  mine = started(name, weights=folder)
  squares = [getattr(theirs, square)(image, 32) for image in IMAGES]
  images = [theirs.siglip_image(model, pixels) for pixels in squares]
  texts = [theirs.siglip_text(model, pieces, text) for text in JOINED]
  compare(mine, images, texts)
  assert mine.global_scale() == pytest.approx(np.exp(1.5))
  assert mine.note.startswith("1 texts were longer than the 64 tokens")
  # Its score of a finding: each text has a sigmoid of its own.
  file = tmp_path / "one.json"
  file.write_text(json.dumps({"source": "test", "template": {"positive": ["There is {}."]}}))
  label = "Pneumothorax"
  scores = mine.classify(IMAGES, [label], prompts=str(file))
  text = theirs.siglip_text(model, pieces, "There is pneumothorax.")
  want = [torch.sigmoid(np.exp(1.5) * image @ text - 0.7).item() for _, image in images]
  same([score[label] for score in scores], want)
  mapped = mine.maps(IMAGES[1:2], JOINED[:1])[0]
  assert np.isfinite(mapped).all()  # the whole image is seen
  grid = np.arange(16, dtype=np.float32).reshape(4, 4)
  want = torch.nn.functional.interpolate(
    torch.tensor(grid)[None, None], (50, 30), mode="bilinear", align_corners=False
  )[0, 0]
  same(mine.to_image(grid, (50, 30)), want)


def test_biomedclip(tmp_path, vocabulary, tokenizer):
  model, file = theirs.biomedclip(tmp_path, tokenizer)
  mine = started("biomedclip", weights=file, tokenizer=vocabulary)
  images = [model.image(theirs.middle(image, 224)) for image in IMAGES]
  compare(mine, images, [model.words(tokenizer, text) for text in JOINED])
  assert mine.grid == (14, 14) and mine.global_scale() == pytest.approx(np.exp(2.5))
  tensors = torch.load(file)
  tensors["text.transformer.pooler.dense.bias"] = torch.ones(2)
  tensors["text.proj.0.bias"] = torch.ones(76)
  torch.save(tensors, file)
  with pytest.raises(UserError, match="does not fit weights: unexpected text.proj.0.bias$"):
    load.load(config_of("biomedclip", weights=file, tokenizer=vocabulary))


def test_what_does_not_fit_siglip(tmp_path, byte_pairs):
  _, _, folder = theirs.siglip(tmp_path)
  with pytest.raises(UserError, match="weights: .*name the folder that it lies in: config.json"):
    load.load(config_of("siglip", weights=folder / "model.safetensors", tokenizer=folder))
  with pytest.raises(UserError, match="tokenizer: .* is no vocabulary with </s>"):
    load.load(config_of("siglip", weights=folder, tokenizer=byte_pairs))
  with pytest.raises(UserError, match="no checkpoint of OpenAI CLIP or Hugging Face CLIP: it is"):
    load.load(config_of("clip", weights=folder, tokenizer=byte_pairs))
  (folder / "tokenizer.json").unlink()
  (folder / "spiece.model").write_bytes(b"no model")
  with pytest.raises(UserError, match="weights: .*(pip install sentencepiece|no whole tokenizer)"):
    load.load(config_of("siglip", weights=folder))


def test_pieces_are_those_of_transformers(tmp_path):
  """Of spiece.model alone, with names of special tokens in a text read as letters."""
  trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
  from transformers import SiglipTokenizer

  (tmp_path / "texts.txt").write_text("\n".join(map(theirs.canonical, theirs.SENTENCES)))
  ids = dict(bos_id=0, eos_id=1, unk_id=2, pad_id=-1, vocab_size=150, hard_vocab_limit=False)
  names = dict(input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "spiece"))
  trainer.train(**names, **ids, minloglevel=2)
  whole = SiglipTokenizer(vocab_file=str(tmp_path / "spiece.model"))
  vocabulary = tokenization.Vocabulary(tmp_path, "key", tokenization.SIGLIP)
  texts = tokenization.BaselineTexts(vocabulary, 64, load.siglip.SIGLIP.reader, padded=True)
  for text in [*JOINED, "1. Heart:  1.5 cm, é ½!", ""]:
    want = whole(text, padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert texts.encode([(text,)]).arrays[0]["tokens"].tolist() == want


@pytest.mark.parametrize("shape", [(200, 300), (333, 257), (320, 320), (97, 40)])
def test_pixels_at_the_networks_size(shape):
  image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  want = theirs.chexzero_square(image, 224)
  same(load.clip._square(_Sizes).fit(image), want)
  short = MiddleOfShortSide(224, 224, resampling="BICUBIC", spread=False)
  same(short.fit(image), theirs.middle(image, 224))
  same(load.siglip.SIGLIP.images(_Sizes).fit(image), theirs.squashed(image, 224))
  square = load.siglip.MEDSIGLIP.images(_Sizes).fit(image)
  assert (np.abs(square - theirs.squashed_bilinear(image, 224).numpy()) > 1e-5).mean() < 1e-3


class _Sizes:
  image = dict(grid=7, patch_px=32)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_does_not_fit_clip(tmp_path, byte_pairs, vocabulary):
  model, _, folder, file = theirs.clip(tmp_path, byte_pairs, **theirs.TINY)
  with pytest.raises(UserError, match="tokenizer: is empty; .* openai/clip-vit-base-patch32"):
    load.load(config_of("chexzero", weights=file))
  with pytest.raises(UserError, match="weights: .* holds none of tokenizer.json"):
    load.load(config_of("clip", weights=folder))
  theirs.save_byte_pairs(folder)
  loaded = load.load(config_of("clip", weights=folder))
  assert loaded.provenance["weights"]["source"] == "Hugging Face CLIP: clip"
  tensors = torch.load(file) | {"input_resolution": torch.tensor(32)}
  torch.save(tensors, file)
  loaded = load.load(config_of("chexzero", weights=file, tokenizer=folder))
  assert loaded.provenance["weights"]["left_aside"] == ["input_resolution"]
  with pytest.raises(UserError, match="no checkpoint of GLoRIA: it is OpenAI CLIP's"):
    load.load(config_of("gloria", weights=file, tokenizer=vocabulary))
  tensors["text_projection"] = tensors["text_projection"][0]
  tensors["visual.ln_new.bias"] = tensors.pop("visual.ln_post.bias")
  torch.save(tensors, file)
  with pytest.raises(UserError) as error:
    load.load(config_of("clip", weights=file, tokenizer=folder))
  for part in (
    "missing image_encoder/norm/bias",
    "unexpected visual.ln_new.bias",
    "text_projection is (24,) for our text_head/kernel of (128, 24)",
  ):
    assert part in str(error.value)
  module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
  module.save(str(file))
  with pytest.raises(UserError, match="is a TorchScript archive.*torch.jit.load"):
    load.load(config_of("clip", weights=file, tokenizer=folder))
  settings = json.loads((folder / "config.json").read_text())
  settings["text_config"] |= {"hidden_act": "gelu"}
  settings["vision_config"] |= {"num_attention_heads": 3}
  (folder / "config.json").write_text(json.dumps(settings))
  with pytest.raises(UserError, match="num_attention_heads 3, which does not divide"):
    load.load(config_of("clip", weights=folder))
  settings["vision_config"] |= {"num_attention_heads": 2}
  (folder / "config.json").write_text(json.dumps(settings))
  with pytest.raises(UserError, match="hidden_act 'gelu', ours is 'quick_gelu'"):
    load.load(config_of("clip", weights=folder))


def test_prompts_of_the_variant():
  from configs import baselines

  assert baselines.get_config("chexzero").evaluation.prompts == ("ours", "chexzero")
  assert prompts.load(["chexzero"])[0].prompts("Edema") == (("edema",), ("no edema",))
