"""Checkpoints and keys of the config that do not fit."""

import json
import shutil

import pytest

from input_pipeline.errors import UserError
from input_pipeline.text import tokenizer as tokens
from plan_jax.baselines import load

torch = pytest.importorskip("torch")
tiny_baselines = pytest.importorskip("tiny_baselines")
config_of, gloria, mgca, biovil = (
  tiny_baselines.config_of,
  tiny_baselines.gloria,
  tiny_baselines.mgca,
  tiny_baselines.biovil,
)
vocabulary, tokenizer = tiny_baselines.vocabulary, tiny_baselines.tokenizer


@pytest.mark.parametrize(
  ("name", "paths", "words"),
  [
    ("gloria", {}, "weights: is empty; name the checkpoint of GLoRIA"),
    (
      "convirt",
      {"weights": "x"},
      "name: is 'convirt'; it must be one of gloria, mgca_resnet",
    ),
    ("mgca_vit", {"weights": "x"}, "tokenizer: is empty; .* Bio_ClinicalBERT"),
    ("biovil_t", {"weights": "x"}, "text: is empty; .* goes with BioViL-T"),
    ("gloria", {"weights": "x", "text": "y"}, "checkpoint of GLoRIA holds its text encoder"),
    (
      "gloria",
      {"weights": "none.pt", "tokenizer": "."},
      "tokenizer: . holds none of tokenizer.json",
    ),
  ],
)
def test_keys_that_are_wrong(name, paths, words):
  with pytest.raises(UserError, match=words):
    load.load(config_of(name, **paths))


def test_weights_that_are_wrong(tmp_path, vocabulary, tokenizer):
  _, path = gloria(tmp_path, tokenizer)
  given = dict(weights=path, tokenizer=vocabulary)
  with pytest.raises(UserError, match="is no checkpoint of MGCA ViT: it is GLoRIA's"):
    load.load(config_of("mgca_vit", **given))
  with pytest.raises(UserError, match=r"weights: .*gone.pt is not there"):
    load.load(config_of("gloria", **given | {"weights": tmp_path / "gone.pt"}))
  whole = torch.load(path)["state_dict"]
  first, local = "gloria.img_encoder.model.conv1.weight", "gloria.img_encoder.local_embedder.weight"
  changed = {name: x for name, x in whole.items() if name != local}
  changed |= {"gloria.img_encoder.new": torch.ones(2)}
  changed |= {"gloria.img_encoder.global_embedder.bias": torch.ones(5)}
  torch.save(changed, path)
  with pytest.raises(UserError) as error:
    load.load(config_of("gloria", **given))
  for part in (
    "missing pixel_head/kernel",
    "unexpected gloria.img_encoder.new",
    "global_embedder.bias is (5,) for our image_head/bias of (128,)",
  ):
    assert part in str(error.value)
  torch.save({first: whole[first]}, path)
  with pytest.raises(UserError, match="missing text_encoder/token_embedding/embedding"):
    load.load(config_of("gloria", **given))
  torch.save({"conv1.weight": whole[first]}, path)
  with pytest.raises(UserError, match="is no checkpoint of GLoRIA: it begins with conv1.weight"):
    load.load(config_of("gloria", **given))


def test_vocabulary_and_text_that_are_not_the_weights(tmp_path, vocabulary, tokenizer):
  _, path = mgca(tmp_path, tokenizer, "mgca_vit")
  tokens.train(["a heart", "two lungs"] * 3, tmp_path / "other", vocabulary_size=30)
  given = dict(weights=path, tokenizer=tmp_path / "other")
  with pytest.raises(UserError, match="tokenizer: .*other has .* the weights have 120"):
    load.load(config_of("mgca_vit", **given))
  _, _, weights, folder = biovil(tmp_path, tokenizer, "biovil_t")
  loaded = load.load(config_of("biovil_t", weights=weights, text=folder, tokenizer=vocabulary))
  assert loaded.provenance["weights"]["source"] == "BioViL-T: biovil_t.pt"
  assert loaded.provenance["text"]["source"] == "CXR-BERT: biovil_t"
  assert all(len(entry["sha256"]) == 64 for entry in loaded.provenance.values())
  assert "encoder.encoder.fc.bias" in loaded.provenance["weights"]["left_aside"]
  assert "encoder.vit_pooler.bias" in loaded.provenance["weights"]["left_aside"]
  with pytest.raises(UserError, match="is no checkpoint of BioViL: it is BioViL-T's"):
    load.load(config_of("biovil", weights=weights, text=folder, tokenizer=vocabulary))
  with pytest.raises(UserError, match="text: .* no checkpoint of CXR-BERT: it is Bio"):
    load.load(config_of("biovil_t", weights=weights, text=weights, tokenizer=vocabulary))
  with pytest.raises(UserError, match="text: .* holds none of tokenizer.json"):
    load.load(config_of("biovil_t", weights=weights, text=folder))
  _, _, _, wider = biovil(tmp_path, tokenizer, "biovil", out=12)
  with pytest.raises(UserError, match="gives vectors of 12, the images' are of 10"):
    load.load(config_of("biovil_t", weights=weights, text=wider, tokenizer=vocabulary))


@pytest.mark.parametrize(
  ("entry", "words"),
  [
    ({"num_attention_heads": 7}, "num_attention_heads 7, which does not divide the width of 128"),
    ({"num_attention_heads": 0}, "num_attention_heads 0, which does not divide"),
    ({"num_attention_heads": "2"}, "num_attention_heads '2', which does not divide"),
    ({"hidden_act": "relu"}, "hidden_act 'relu', ours is 'gelu'"),
    ({"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001, ours is at most"),
  ],
)
def test_settings_of_another_computation(tmp_path, vocabulary, tokenizer, entry, words):
  _, _, weights, folder = biovil(tmp_path, tokenizer, "biovil_t")
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | entry))
  with pytest.raises(UserError, match=f"text: {folder}: its config.json has {words}"):
    load.load(config_of("biovil_t", weights=weights, text=folder, tokenizer=vocabulary))


@pytest.mark.parametrize("damage", ["cut", "empty", "bytes", "deep"])
def test_files_that_are_damaged_are_one_line(tmp_path, vocabulary, tokenizer, damage):
  """They are the user's own, without digests: what can be read of them is read."""
  folder = shutil.copytree(vocabulary, tmp_path / "words")
  *_, weights, text = biovil(tmp_path, tokenizer, "biovil")
  given = config_of("biovil", weights=weights, text=text, tokenizer=folder)
  names = ("tokenizer.json", "tokenizer_config.json")
  for path in (weights, *text.iterdir(), *(folder / name for name in names)):
    whole = path.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "bytes": b"\xff\xfe\0"}
    path.write_bytes(contents.get(damage, b"[" * 100_000))
    with pytest.raises(UserError) as error:
      load.load(given)
    # A library reads a vocabulary, and its folder is named.
    assert str(path) in str(error.value) or str(path.parent) in str(error.value)
    assert "\\n" not in str(error.value)
    path.write_bytes(whole)
  load.load(given)
