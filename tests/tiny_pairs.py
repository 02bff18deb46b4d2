"""Tiny models that score pairs, with random weights, as checkpoints in the names of their projects.

Written from the code that is named at each part; a text is one string, as theirs.
"""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import (
  Dinov2Config,
  Dinov2Model,
  MPNetConfig,
  MPNetModel,
  MPNetTokenizer,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2Encoder

import tiny_contrastive
import torch_reference as reference
from tiny_baselines import IMAGES, JOINED
from tiny_contrastive import normalised

DINO = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2)
SIDE_PX = 56  # 4 x 4 patches of 14 px, on positions for 3 x 3
PIXELS = dict(
  image_processor_type="BlipImageProcessor",
  size=dict(height=SIDE_PX, width=SIDE_PX),
  resample=3,
  do_normalize=True,
  image_mean=[0.5, 0.4, 0.3],
  image_std=[0.2, 0.25, 0.3],
)


class SimilarityLoss(nn.Module):
  """RadZero's loss, what it computes without a loss (exp/cxr_pt/model/losses.py)."""

  def __init__(self, size):
    super().__init__()
    self.layer_norm = nn.LayerNorm(size)
    self.loss_temperature = nn.Parameter(torch.FloatTensor([np.log(0.07)]))

  def forward(self, text_features, vision_tokens):
    """Logits [images, texts] before the temperature, and scores [images, texts, tokens]."""
    vision_tokens = self.layer_norm(vision_tokens)
    queries = self.layer_norm(text_features)
    queries = queries.unsqueeze(0).expand(vision_tokens.shape[0], *queries.shape)
    queries = functional.normalize(queries, p=2, dim=-1)
    local = functional.normalize(vision_tokens, p=2, dim=-1)
    scores = torch.bmm(queries, local.permute(0, 2, 1)) / self.loss_temperature.exp()
    pooled = functional.normalize(torch.matmul(scores.softmax(-1), local), p=2, dim=-1)
    logits = torch.matmul(queries.unsqueeze(2), pooled.unsqueeze(-1))
    return logits.squeeze(-1).squeeze(-1), scores


class RadZero(nn.Module):
  """RadZero's CxrAlignModel (exp/cxr_pt/model/modeling.py, align_transformers.py)."""

  def __init__(self, words, loss="RadZeroLoss"):
    super().__init__()
    self.vision_model = Dinov2Model(Dinov2Config(image_size=42, patch_size=14, **DINO))
    sizes = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=2)
    sizes |= dict(intermediate_size=96, max_position_embeddings=42, layer_norm_eps=1e-5)
    self.text_model = MPNetModel(MPNetConfig(vocab_size=words, **sizes))
    self.align_transformer = nn.Module()
    # Its layers keep Dinov2Config's own, but for what its experiment sets.
    config = Dinov2Config(**DINO | dict(num_attention_heads=4))
    self.align_transformer.transformer_layers = Dinov2Encoder(config)
    self.loss_fns = nn.ModuleDict({loss: SimilarityLoss(128)})

  @torch.no_grad()
  def image(self, pixels):
    """Tokens [L, D] of a square."""
    x = normalised(pixels, (PIXELS["image_mean"], PIXELS["image_std"]))
    tokens = self.vision_model(x)["last_hidden_state"]
    return self.align_transformer.transformer_layers(tokens)["last_hidden_state"][0]

  @torch.no_grad()
  def words(self, tokenizer, text, most=40):
    """The text [D]."""
    batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
    hidden = self.text_model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    real = batch["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
    return (torch.sum(hidden * real, 1) / torch.clamp(real.sum(1), min=1e-9))[0]

  @torch.no_grad()
  def compare(self, images, texts):
    """Logits [images, texts] before the temperature, and similarity maps of the patches."""
    (loss,) = self.loss_fns.values()
    logits, scores = loss(torch.stack(texts), torch.stack(images))
    return logits, scores[:, :, 1:]


def older_names(tensors):
  """A state dict with DINOv2's attention under the names of transformers 4, as on the hub."""
  names = {f"{x[0]}_proj": f"attention.{x}" for x in ("query", "key", "value")}
  names["o_proj"] = "output.dense"
  older = {}
  for name, tensor in tensors.items():
    for new, old in names.items():
      name = name.replace(f".attention.{new}.", f".attention.{old}.")
    older[name] = tensor.contiguous()
  return older


def files_of(folder, name, vocabulary, tokenizer):
  """A tiny checkpoint of any baseline, as `config.baseline` names it."""
  if name == "radzero":
    return dict(weights=radzero(folder, tokenizer)[-1])
  return tiny_contrastive.files_of(folder, name, vocabulary, tokenizer)


def squashed(image, side):
  """BlipImageProcessor: the whole image as a square."""
  image = Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
  return torch.tensor(np.array(image)).permute(2, 0, 1)[0].float() / 255


def radzero(folder, tokenizer, loss="RadZeroLoss"):
  """A tiny RadZero, its tokenizer and its folder; `tokenizer` is a BERT's."""
  folder = folder / "radzero"
  tokens = [token for token in tokenizer.get_vocab() if not token.startswith("[")]
  special = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
  own = MPNetTokenizer(vocab={token: i for i, token in enumerate((*special, *tokens))})
  own.save_pretrained(folder)
  model = RadZero(len(own), loss)
  reference.randomise(model)
  with torch.no_grad():
    (part,) = model.loss_fns.values()
    part.loss_temperature.fill_(np.log(0.2))
    _, scores = model.compare(
      [model.image(squashed(IMAGES[1], SIDE_PX))], [model.words(own, JOINED[0])]
    )
    if scores.mean() < 0:
      for x in model.text_model.encoder.layer[-1].output.LayerNorm.parameters():
        x.neg_()  # an image that is like the text somewhere
  save_file(older_names(model.state_dict()), folder / "model.safetensors")
  vision = model.vision_model.config.to_dict()
  align = model.align_transformer.transformer_layers.config.to_dict()
  settings = dict(vision_config=vision, text_config=dict(model_type="mpnet"))
  settings |= dict(align_transformer_config=align)
  (folder / "config.json").write_text(json.dumps(settings))
  (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
  return model, own, folder
