"""Tiny baselines with random weights, as checkpoints in the names of their projects."""

from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from transformers import AutoTokenizer

import torch_baselines as theirs
import torch_reference as reference
from input_pipeline import images
from input_pipeline.phantom import radiograph
from input_pipeline.text import tokenizer as tokens
from plan_jax.baselines import load

EXAMPLES = [radiograph.example(1, i, 96) for i in range(4)]
WHOLE = [images.decode(example.image) for example in EXAMPLES]
IMAGES = [WHOLE[0], WHOLE[1][:, 9:80], WHOLE[2][5:60]]  # square, high, wide
TEXTS = [
  ("Small left pleural effusion.",),
  ("1. No pneumothorax. 2. Heart: 1.5 cm, right-sided nodule!", "Normal."),
  ("Edema",),
  tuple(s for example in EXAMPLES for s in example.sentences) * 3,
]
JOINED = [" ".join(text) for text in TEXTS]  # as the projects' own code takes them
TINY_RESNET = dict(base=8, deep=False)
TINY_VIT = dict(embed_dim=64, depth=2, num_heads=1, mlp_dim=96)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  write_vocabulary(folder)
  return folder


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
  return read_tokenizer(vocabulary)


def write_vocabulary(folder):
  """Writes a vocabulary of the phantom's words."""
  tokens.train([" ".join(text.sentences) for text in EXAMPLES], folder, vocabulary_size=120)


def read_tokenizer(folder):
  return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def config_of(name, **paths):
  config = ConfigDict(dict(evaluation=dict(batch_size=4), mesh=dict(data=-1, fsdp=1)))
  config.baseline = dict(name=name, weights="", text="", tokenizer="")
  config.baseline.update({key: str(path) for key, path in paths.items()})
  return config


def started(name, **paths):
  return load.load(config_of(name, **paths)).model


def files_of(folder, name, vocabulary, tokenizer) -> dict[str, Path]:
  """A tiny checkpoint of any baseline, as `config.baseline` names it."""
  if name == "gloria":
    return dict(weights=gloria(folder, tokenizer)[1], tokenizer=vocabulary)
  if name == "afloc":
    return dict(weights=afloc(folder, tokenizer)[1], tokenizer=vocabulary)
  if name.startswith("mgca"):
    return dict(weights=mgca(folder, tokenizer, name)[1], tokenizer=vocabulary)
  *_, weights, text = biovil(folder, tokenizer, name)
  return dict(weights=weights, text=text, tokenizer=vocabulary)


def gloria(folder, tokenizer, size=128, layers=5, resnet=TINY_RESNET):
  trunk, channels = theirs.resnet(**resnet)
  model = theirs.Gloria(trunk, channels, theirs.bert(len(tokenizer), size, layers), size)
  reference.randomise(model)
  with torch.no_grad():
    names, words, _ = model.text(tokenizer, JOINED[0])
    region = model.image(IMAGES[1])[0]
    if torch.einsum("wd,dyx->wyx", words[1 : len(names) - 1], region).mean() < 0:
      model.gloria.img_encoder.local_embedder.weight.neg_()  # an image like the words somewhere
  tensors = model.state_dict()
  tensors["gloria.text_encoder.model.embeddings.position_ids"] = torch.arange(128)[None]
  torch.save({"state_dict": tensors, "epoch": 1}, folder / "gloria.ckpt")
  return model, folder / "gloria.ckpt"


def afloc(folder, tokenizer):
  """A tiny AFLoc, which is GLoRIA's module under another name with one projection more."""
  model, _ = gloria(folder, tokenizer)
  tensors = {name.replace("gloria.", "afloc.", 1): x for name, x in model.state_dict().items()}
  channels = TINY_RESNET["base"] * 2
  tensors["afloc.img_encoder.local2_embedder.weight"] = torch.ones(128, channels, 1, 1)
  torch.save({"state_dict": tensors}, folder / "afloc.ckpt")
  return model, folder / "afloc.ckpt"


def mgca(
  folder, tokenizer, name, size=64, layers=2, heads=(24, 10), resnet=TINY_RESNET, vit=TINY_VIT
):
  if name == "mgca_vit":
    trunk, channels = reference.ViT(*vit.values()), (vit["embed_dim"],) * 2
  else:
    trunk, channels = theirs.resnet(**resnet)
  words = theirs.BlipBert(len(tokenizer), size, layers)
  model = theirs.Mgca(trunk, channels, words, size, *heads)
  reference.randomise(model)
  with torch.no_grad():
    if (model.image(IMAGES[2])[0] @ model.text(tokenizer, JOINED[0])[2]).max() < 0:
      head = model.img_encoder_q.local_embed.head
      for x in (*head[3].parameters(), head[4].running_mean):
        x.neg_()  # an image that is like the text somewhere
  torch.save(model.checkpoint(), folder / f"{name}.ckpt")
  return model, folder / f"{name}.ckpt"


def biovil(folder, tokenizer, name, size=128, layers=2, reduced=12, out=10, resnet=TINY_RESNET):
  trunk, channels = theirs.resnet(**resnet)
  trunk.fc = torch.nn.Linear(3, 3)
  model = theirs.BioViL(trunk, channels[1], out, reduced * (name == "biovil_t"))
  words = theirs.CxrBert(len(tokenizer), size, layers, out)
  reference.randomise(model)
  reference.randomise(words, 1)
  with torch.no_grad():
    if (model.image(IMAGES[1])[0] @ words.prompts(tokenizer, JOINED[:1])[0]).mean() < 0:
      for x in model.projector.model[3].parameters():
        x.neg_()  # an image that is like the text somewhere
  torch.save(model.state_dict(), folder / f"{name}.pt")
  (folder / name).mkdir()
  torch.save(words.state_dict(), folder / name / "pytorch_model.bin")
  words.config.save_pretrained(folder / name)
  return model, words, folder / f"{name}.pt", folder / name
