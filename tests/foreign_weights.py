"""Small checkpoints of other projects, and assertions on encoders that load them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plan_jax.models.bert import Bert
from plan_jax.models.weights.load import load_image, load_text

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOUR = dict(mean=MEAN, std=STD)
VIT = dict(embed_dim=24, depth=2, num_heads=3, mlp_dim=40, patch_px=8, grid=4)
BERT = dict(vocabulary_size=50, embed_dim=24, depth=3, num_heads=3, mlp_dim=40, max_position=20)


def image(rows=64, columns=48):
  return np.random.default_rng(0).random((2, rows, columns, 1), np.float32)


def torch_image(x, mean=MEAN, std=STD):
  import torch

  x = torch.tensor(np.repeat(x, len(mean), 3)).permute(0, 3, 1, 2)
  return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def assert_same_images(path, encoder, model, x, mean=MEAN, std=STD):
  """Asserts that our grid from the file equals the model's, to 1e-4 of its size."""
  import torch

  with torch.no_grad():
    want = model(torch_image(x, mean, std)).permute(0, 2, 3, 1).numpy()
  loaded = load_image(path, encoder)
  grid = encoder.apply({"params": loaded.params, "batch_stats": loaded.batch_stats}, x)
  np.testing.assert_allclose(grid, want, atol=1e-4 * np.abs(want).max())
  assert np.abs(want).std() > 1e-3
  return loaded


def torch_resnet(depth, base=8, **more):
  reference = pytest.importorskip("torch_reference")
  blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
  return reference.randomise(reference.ResNet(blocks, depth == 50, base=base, **more))


def torch_vit(**more):
  reference = pytest.importorskip("torch_reference")
  return reference.randomise(reference.ViT(*VIT.values(), **more))


def saved(path, tensors):
  import torch

  torch.save(tensors, path)
  return path


def torch_bert(seed=0, **more):
  pytest.importorskip("torch")
  from transformers import BertConfig, BertModel

  from torch_reference import randomise

  sizes = dict(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=20,
    attn_implementation="eager",
  )
  return randomise(BertModel(BertConfig(**sizes | more)), seed)


def assert_same_texts(path, encoder, model, layers=1, project=lambda x: x):
  """Asserts equal states of sentences of three lengths, as a batch with padding."""
  import torch

  loaded = load_text(path, encoder)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, encoder.vocabulary_size, (3, 12), np.int32)
  lengths = np.array([12, 7, 3])
  real = np.arange(12) < lengths[:, None]
  with torch.no_grad():
    out = model(
      torch.tensor(ids).long(), torch.tensor(real).long(), output_hidden_states=True
    ).hidden_states
    want = project(sum(out[-layers:])).numpy()
  position = np.broadcast_to(np.arange(12), ids.shape)
  states = encoder.apply({"params": loaded.params}, ids, np.where(real, 0, -1), position)
  np.testing.assert_allclose(states[real], want[real], atol=1e-4 * np.abs(want).max())
  return loaded


def small_dinov2(folder, layers, *, std=0.25, size=None, seed=0):
  """Writes a random DINOv2 at 56 px to a Hugging Face folder; `size` as its processor has it."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(seed)
  sizes = dict(hidden_size=24, num_hidden_layers=layers, num_attention_heads=3, mlp_ratio=2)
  settings = transformers.Dinov2Config(**sizes, image_size=56, patch_size=14)
  transformers.Dinov2Model(settings).save_pretrained(folder)
  pixels = {"image_mean": [0.5] * 3, "image_std": [std] * 3, "size": size or {"height": 56}}
  (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


def small_bert(folder, **change):
  """Writes a BERT of TINY's sizes to a Hugging Face folder, without torch."""
  sizes = dict(vocabulary=200, embed_dim=16, depth=1, mlp_dim=16, position=128) | change
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  size, mlp = sizes["embed_dim"], sizes["mlp_dim"]
  tensors = {
    "embeddings.word_embeddings.weight": normal(sizes["vocabulary"], size),
    "embeddings.position_embeddings.weight": normal(sizes["position"], size),
    "embeddings.token_type_embeddings.weight": normal(2, size),
  }
  shapes = {
    "attention.self.query": (size, size),
    "attention.self.key": (size, size),
    "attention.self.value": (size, size),
    "attention.output.dense": (size, size),
    "intermediate.dense": (mlp, size),
    "output.dense": (size, mlp),
  }
  norms = ["embeddings.LayerNorm"]
  for i in range(sizes["depth"]):
    layer = f"encoder.layer.{i}"
    norms += [f"{layer}.{where}output.LayerNorm" for where in ("attention.", "")]
    for name, shape in shapes.items():
      tensors[f"{layer}.{name}.weight"] = normal(*shape)
      tensors[f"{layer}.{name}.bias"] = normal(shape[0])
  for norm in norms:
    tensors |= {f"{norm}.weight": 1 + 0.1 * normal(size), f"{norm}.bias": normal(size)}
  folder.mkdir(exist_ok=True)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2, "hidden_act": "gelu"}))
  return tensors


SMALL_BERT = Bert(200, 16, 1, 2, 16, 128)


def changed(folder, change):
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")
