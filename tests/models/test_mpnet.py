"""MPNet: equal to transformers' class with the same weights, tokens and hidden states."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from configs import base
from foreign_weights import BERT, assert_same_texts
from input_pipeline.text.tokenizer import Tokenizer
from plan_jax.models.bert import Bert
from plan_jax.models.layers.attention import attend
from plan_jax.models.mpnet import MPNet, buckets
from plan_jax.models.two_towers import build, text_encoder
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_text
from plan_jax.models.weights.settings import text_settings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch_reference import randomise  # noqa: E402

SENTENCES = ("the heart is large", "no pleural effusion is seen today", "normal")
SPECIAL = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")


def mpnet(**more):
  sizes = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3)
  sizes |= dict(intermediate_size=40, max_position_embeddings=22, layer_norm_eps=1e-5)
  return randomise(transformers.MPNetModel(transformers.MPNetConfig(**sizes | more)))


def test_buckets_are_those_of_transformers():
  distance = np.arange(-700, 700)
  want = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(
    torch.tensor(distance)
  )
  np.testing.assert_array_equal(buckets(distance), want.numpy())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("prefix", ["", "mpnet."])
def test_the_encoder_is_that_of_transformers(tmp_path, layers, prefix):
  """Texts of three lengths and padding; positions begin at the third row of the table."""
  model = mpnet()
  model.save_pretrained(tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  save_file({f"{prefix}{name}": x for name, x in tensors.items()}, tmp_path / "model.safetensors")

  def theirs(ids, real, **more):
    position = torch.arange(2, 2 + ids.shape[1]).expand(ids.shape)  # whatever the ids
    return model(ids, real, position_ids=position, **more)

  loaded = assert_same_texts(tmp_path, MPNet(**BERT, last_layers=layers), theirs, layers)
  aside = [f"{prefix}pooler.dense.{leaf}" for leaf in ("bias", "weight")]
  assert loaded.provenance["left_aside"] == aside
  settings = text_settings(tmp_path)
  assert settings.pop("text.name") == "mpnet"
  assert settings == {f"text.{key}": x for key, x in BERT.items() if key != "vocabulary_size"}
  with pytest.raises(WeightsError, match=r"holds a MPNet: set text\.name=mpnet"):
    load_text(tmp_path, Bert(**BERT))


def test_words_of_a_report_are_those_of_its_sentences(tmp_path):
  """Its own vocabulary; a packed report holds what each sentence gives alone."""
  words = sorted({word for sentence in SENTENCES for word in sentence.split()})
  vocabulary = {token: i for i, token in enumerate((*SPECIAL, *words, "##s"))}
  (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
  theirs = transformers.MPNetTokenizer(vocab=vocabulary)
  theirs.save_pretrained(tmp_path)
  model = mpnet(vocab_size=len(vocabulary))
  model.save_pretrained(tmp_path)
  encoder = MPNet(**BERT | dict(vocabulary_size=len(vocabulary)))
  params = load_text(tmp_path, encoder).params
  report = Tokenizer(tmp_path).encode(SENTENCES, max_tokens=24, max_words=16)
  arrays = (report.tokens, report.sentence_index, report.position)
  states = encoder.apply({"params": params}, *(x[None] for x in arrays))[0]
  for number, sentence in enumerate(SENTENCES):
    ids = theirs(sentence, return_tensors="pt")
    here = report.sentence_index == number
    assert report.tokens[here].tolist() == ids["input_ids"][0].tolist()
    with torch.no_grad():
      want = model(ids["input_ids"], ids["attention_mask"]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states[here], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
  ("entry", "words"),
  [
    ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets 64, ours is 32"),
    ({"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12, ours is 1e-05"),
    ({"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001, ours is"),
  ],
)
def test_another_computation_is_refused(tmp_path, entry, words):
  mpnet().save_pretrained(tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | entry))
  with pytest.raises(WeightsError, match=words):
    load_text(tmp_path, MPNet(**BERT))


def test_the_attention_of_the_first_token_has_the_bias():
  net = MPNet(**BERT | dict(depth=1))
  arrays = jnp.arange(6)[None], jnp.zeros((1, 6), int), jnp.arange(6)[None]
  params = net.init(jax.random.key(0), *arrays)["params"]
  params["position_bias"]["embedding"] = params["position_bias"]["embedding"].at[18].set(100.0)
  _, kept = net.apply({"params": params}, *arrays, mutable=["attention"])
  (first,) = kept["attention"]["layer1"]["first"]
  np.testing.assert_allclose(first[0], np.eye(6)[2], atol=1e-6)  # two tokens on


def test_the_bias_is_added_by_the_kernels_of_other_devices_too(monkeypatch):
  parts = jax.random.normal(jax.random.key(0), (3, 2, 6, 3, 8))
  mask = jnp.tri(6, dtype=bool)[None, None].repeat(2, 0)
  bias = jax.random.normal(jax.random.key(1), (1, 3, 6, 6))
  here = attend(*parts, mask, bias)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  np.testing.assert_allclose(here, attend(*parts, mask, bias), atol=1e-5)
  assert np.abs(here - attend(*parts, mask)).max() > 0.1


def test_our_export_of_it_is_weights_too(tmp_path):
  net = MPNet(**BERT)
  params = net.init(jax.random.key(0), *(jnp.zeros((1, 2), int),) * 3)["params"]
  named = {f"text_encoder.{name}": x for name, x in flatten_dict(params, sep=".").items()}
  save_file(jax.device_get(named), tmp_path / "model.safetensors")
  loaded = load_text(tmp_path, net)
  assert loaded.provenance["source"].startswith("plan_jax MPNet")
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_the_config_names_the_text_encoder():
  config = base.get_config()
  assert type(text_encoder(config.model.text, 9)) is Bert
  config.model.text.name = "mpnet"
  assert type(text_encoder(config.model.text, 9)) is MPNet
  assert build(config.model, 9).text_name == "mpnet"
