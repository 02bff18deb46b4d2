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
import torch_baselines
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

MIDDLE = PIXELS | dict(
  image_processor_type="BitImageProcessor",
  size=dict(shortest_edge=SIDE_PX),
  crop_size=dict(height=SIDE_PX, width=SIDE_PX),
  do_center_crop=True,
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


class Conns(nn.Module):
  """CoNNS (conns/model.py, conns/loss.py) with the CXR-BERT that hi-ml has."""

  def __init__(self, text, size=24):
    super().__init__()
    self.vision_encoder, self.text_encoder = nn.Module(), nn.Module()
    self.vision_encoder.rad_dino_model = Dinov2Model(
      Dinov2Config(image_size=SIDE_PX, patch_size=14, **DINO)
    )
    self.vision_encoder.transformer_blocks = Dinov2Encoder(Dinov2Config(**DINO))
    self.text_encoder.model = text
    self.vision_proj = nn.Linear(128, size, bias=False)
    self.text_proj = nn.Linear(128, size, bias=False)
    self.criterion = nn.Module()
    self.criterion.loss_temperature = nn.Parameter(torch.FloatTensor([np.log(0.2)]))

  @torch.no_grad()
  def image(self, image):
    """Projected class token and patches [1 + P, D] (BitImageProcessor, VisionEncoder)."""
    x = normalised(
      tiny_contrastive.middle(image, SIDE_PX), (MIDDLE["image_mean"], MIDDLE["image_std"])
    )
    tokens = self.vision_encoder.rad_dino_model(pixel_values=x).last_hidden_state
    return self.vision_proj(self.vision_encoder.transformer_blocks(tokens)["last_hidden_state"])[0]

  @torch.no_grad()
  def words(self, tokenizer, text, most=128):
    """The projected text [D] (TextEncoder)."""
    more = dict(padding="max_length", truncation=True, max_length=most, return_tensors="pt")
    batch = tokenizer(text, **more)
    out = self.text_encoder.model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])
    return self.text_proj(out.last_hidden_state[:, 0])[0]

  @torch.no_grad()
  def compare(self, images, texts):
    """Scores [images, texts] before the temperature, and maps of the patches (SimilarityLogit)."""
    q = functional.normalize(torch.stack(texts), p=2, dim=-1)
    v = functional.normalize(torch.stack(images), p=2, dim=-1)
    scores = torch.einsum("nd, bld -> bnl", q, v) / self.criterion.loss_temperature.exp()
    pooled = torch.einsum("bnl, bld -> bnd", functional.softmax(scores, dim=-1), v)
    pooled = functional.normalize(pooled, p=2, dim=-1)
    return (pooled * q.unsqueeze(0)).sum(dim=-1), scores[:, :, 1:]


def conns(folder, tokenizer):
  """A tiny CoNNS and its file, with the settings of its image encoder's pixels beside it."""
  folder = folder / "conns"
  folder.mkdir()
  model = Conns(torch_baselines.CxrBert(len(tokenizer), 128, 2, 16))
  reference.randomise(model)
  with torch.no_grad():
    model.criterion.loss_temperature.fill_(np.log(0.2))
    _, scores = model.compare([model.image(IMAGES[1])], [model.words(tokenizer, JOINED[0])])
    if scores.mean() < 0:
      model.text_proj.weight.neg_()  # an image that is like the text somewhere
  tensors = older_names(model.state_dict()) | {"criterion.nli_model.x": torch.ones(2)}
  torch.save({"model": tensors, "epoch": 1}, folder / "conns.pth")
  (folder / "preprocessor_config.json").write_text(json.dumps(MIDDLE))
  return model, folder / "conns.pth"


class DecoderLayer(nn.Module):
  """Cross-attention without self-attention (CARZero/models/transformer_decoder.py, forward_pre)."""

  def __init__(self, size, heads, inside):
    super().__init__()
    # The first two are built, and not called.
    self.self_attn = nn.MultiheadAttention(size, heads)
    self.norm1 = nn.LayerNorm(size)
    self.multihead_attn = nn.MultiheadAttention(size, heads)
    self.linear1, self.linear2 = nn.Linear(size, inside), nn.Linear(inside, size)
    self.norm2, self.norm3 = nn.LayerNorm(size), nn.LayerNorm(size)

  def forward(self, tgt, memory):
    tgt2, weights = self.multihead_attn(query=self.norm2(tgt), key=memory, value=memory)
    tgt = tgt + tgt2
    return tgt + self.linear2(functional.relu(self.linear1(self.norm3(tgt)))), weights


class Fusion(nn.Module):
  """CARZero's TQN_Model (CARZero/models/dqn_wo_self_atten_mlp.py)."""

  def __init__(self, size, widths=(40, 20, 10, 1)):
    super().__init__()
    self.logit_scale = nn.Parameter(torch.ones([]))
    self.decoder_norm = nn.LayerNorm(size)
    self.decoder = nn.Module()
    self.decoder.layers = nn.ModuleList(DecoderLayer(size, 4, 48) for _ in range(4))
    self.decoder.norm = self.decoder_norm  # one module under two names
    layers = []
    for before, width in zip((size, *widths), widths, strict=False):
      layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(0.1)]
    self.mlp_head = nn.Sequential(*layers[:-2])

  def forward(self, image_features, text_features):
    """Numbers [batch, queries, 1], and the attention [batch, queries, tokens] of each layer."""
    memory = self.decoder_norm(image_features.transpose(0, 1))
    queries = text_features.unsqueeze(1).repeat(1, image_features.shape[0], 1)
    features, attentions = self.decoder_norm(queries), []
    for layer in self.decoder.layers:
      features, weights = layer(features, memory)
      attentions.append(weights)
    return self.mlp_head(self.decoder.norm(features).transpose(0, 1)), attentions


class CarZero(nn.Module):
  """CARZero as its training module holds it (CARZero_model_dqn_wo_self_atten_gl_mlp.py)."""

  def __init__(self, text, size=128):
    super().__init__()
    self.CARZero = nn.Module()
    self.CARZero.img_encoder, self.CARZero.text_encoder = nn.Module(), nn.Module()
    self.CARZero.img_encoder.model = reference.ViT(size, 2, 2, 96)
    self.CARZero.text_encoder.model = text
    self.CARZero.fusion_module = Fusion(size)

  @torch.no_grad()
  def image(self, image):
    """Class token and patches [1 + P, D]."""
    x = torch_baselines.padded_square(image) * 0.5 + 0.5
    return self.CARZero.img_encoder.model.tokens((x - 0.4978) / 0.2449)[0]

  @torch.no_grad()
  def words(self, tokenizer, text):
    """Text, words and pads [98, D] (text_model.py, which is GLoRIA's)."""
    ids, mask, types = torch_baselines.tokens(tokenizer, text, 97)
    out = self.CARZero.text_encoder.model(ids, mask, types, output_hidden_states=True)
    layers = torch.stack([state[0] for state in out.hidden_states[-4:]], 1)
    _, layers = torch_baselines.aggregated(tokenizer, ids[0], layers)
    return torch.cat([layers.mean(0).sum(0)[None], layers.sum(1)])

  @torch.no_grad()
  def compare(self, images, texts):
    """Scores [images, texts] and maps [images, texts, P] (get_dqn_similarities, get_grounding_map).

    Image by image, as its code does.
    """
    texts, scores, maps = torch.stack(texts), [], []
    for image in images:
      by_text, attentions = self.CARZero.fusion_module(image[None], texts[:, 0])
      by_image, _ = self.CARZero.fusion_module(texts, image[None, 0])
      scores.append((by_text.squeeze(-1) + by_image.squeeze(-1).transpose(1, 0)) / 2)
      maps.append(sum(attention[:, :, 1:] for attention in attentions[-4:]) / 4)
    return torch.cat(scores), torch.cat(maps)


def carzero(folder, tokenizer):
  """A tiny CARZero and its file."""
  model = CarZero(torch_baselines.bert(len(tokenizer), 128, 5))
  reference.randomise(model)
  torch.save({"state_dict": model.state_dict(), "epoch": 1}, folder / "carzero.ckpt")
  return model, folder / "carzero.ckpt"


def files_of(folder, name, vocabulary, tokenizer):
  """A tiny checkpoint of any baseline, as `config.baseline` names it."""
  if name == "radzero":
    return dict(weights=radzero(folder, tokenizer)[-1])
  if name == "conns":
    return dict(weights=conns(folder, tokenizer)[-1], tokenizer=vocabulary)
  if name == "carzero":
    return dict(weights=carzero(folder, tokenizer)[-1], tokenizer=vocabulary)
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
