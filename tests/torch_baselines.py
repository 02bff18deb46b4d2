"""Other projects' whole models in torch, in the names of their checkpoints, with their formulas.

Written from the facts that plan_jax/baselines states, text by text and word by word.
"""

import re

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel

import torch_reference as reference


def bert(vocabulary, size, layers, kind=BertModel, heads=None, **more):
  config = BertConfig(
    vocab_size=vocabulary,
    hidden_size=size,
    num_hidden_layers=layers,
    intermediate_size=2 * size,
    num_attention_heads=heads or max(1, size // 64),
    max_position_embeddings=128,
    attn_implementation="eager",
  )
  return kind(config, **more)


# --- GLoRIA and MGCA: images and texts ------------------------------------------------------------


def padded_square(image, side=256, crop=224):
  """[1, 3, crop, crop], normalised by one half."""
  height, width = image.shape
  if height >= width:
    rows, columns = side, int(float(width) * (side / float(height)))
  else:
    rows, columns = int(float(height) * (side / float(width))), side
  small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
  top, left = (side - rows) // 2, (side - columns) // 2
  square = np.pad(small, [(top, side - rows - top), (left, side - columns - left)])
  edge = (side - crop) // 2
  box = (edge, edge, edge + crop, edge + crop)
  pixels = np.asarray(Image.fromarray(square).convert("RGB").crop(box))
  return (torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def enlarged(x):
  return nn.Upsample(size=(299, 299), mode="bilinear", align_corners=True)(x)


def cleaned(sentences):
  """The text that goes to the tokenizer."""
  statements = []
  for sentence in sentences:
    for part in re.split(r"[0-9]+\.", sentence):
      for statement in part.split("."):
        parts = re.findall(r"\w+", statement.lower())
        if len(parts) > 1:
          words = [word.encode("ascii", "ignore").decode("ascii") for word in parts]
          statements.append(" ".join(word for word in words if word))
  return " ".join(statements)


def tokens(tokenizer, sentences, most):
  """Ids with padding to `most`, and which are there."""
  ids = tokenizer(cleaned(sentences), add_special_tokens=False)["input_ids"][: most - 2]
  vocabulary = tokenizer.get_vocab()
  ids = [vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]]
  mask = [1] * len(ids) + [0] * (most - len(ids))
  return torch.tensor([ids + [vocabulary["[PAD]"]] * (most - len(ids))]), torch.tensor([mask])


def aggregated(tokenizer, ids, hidden):
  """Words' names and sums of tokens: [CLS], words, [SEP], then zeros to the length of the text."""
  names, sums = [], []
  for number, vector in zip(ids.tolist(), hidden, strict=True):
    token = tokenizer.convert_ids_to_tokens(number)
    if token.startswith("##"):
      names[-1] += token[2:]
      sums[-1] = sums[-1] + vector
    else:
      names.append(token)
      sums.append(vector)
    if token == "[SEP]":
      break
  pads = len(ids) - len(sums)
  return names, torch.stack(sums + [torch.zeros_like(hidden[0])] * pads)


class Gloria(nn.Module):
  """As the training module holds it."""

  def __init__(self, trunk, channels, text, size):
    super().__init__()
    self.gloria = nn.Module()
    self.gloria.img_encoder = nn.Module()
    self.gloria.img_encoder.model = trunk
    self.gloria.img_encoder.global_embedder = nn.Linear(channels[1], size)
    self.gloria.img_encoder.local_embedder = nn.Conv2d(channels[0], size, 1, bias=False)
    self.gloria.text_encoder = nn.Module()
    self.gloria.text_encoder.model = text

  def image(self, image):
    """Regions [D, 19, 19] and the image [D]."""
    encoder = self.gloria.img_encoder
    third, last = stages(encoder.model, enlarged(padded_square(image)))
    regions = encoder.local_embedder(third)[0]
    return regions, encoder.global_embedder(last.mean((2, 3)))[0]

  def text(self, tokenizer, sentences):
    """Names and vectors of [CLS], words and [SEP], and the report [D]."""
    ids, mask = tokens(tokenizer, sentences, 97)
    out = self.gloria.text_encoder.model(ids, mask, output_hidden_states=True).hidden_states[-4:]
    each = [aggregated(tokenizer, ids[0], layer[0]) for layer in out]
    names = each[0][0]
    layers = torch.stack([vectors for _, vectors in each])
    return names, layers.sum(0)[: len(names)], layers.mean(1).sum(0)


def gloria_cosines(regions, words):
  """cos(t_w, c_w) of regions [D, h, w] and words [W, D]."""
  v = regions.flatten(1).T
  attention = (4 * (v @ words.T).softmax(1)).softmax(0)
  context = attention.T @ v
  return functional.cosine_similarity(context, words, dim=1)


def stages(trunk, x):
  """Maps behind the third and the fourth stage."""
  x = trunk.maxpool(functional.relu(trunk.bn1(trunk.conv1(x))))
  third = trunk.layer3(trunk.layer2(trunk.layer1(x)))
  return third, trunk.layer4(third)


class Head(nn.Module):
  def __init__(self, inside, hidden, out, conv):
    super().__init__()
    first, second = (
      (nn.Conv1d(inside, hidden, 1), nn.Conv1d(hidden, out, 1))
      if conv
      else (nn.Linear(inside, hidden), nn.Linear(hidden, out))
    )
    self.head = nn.Sequential(
      first, nn.BatchNorm1d(hidden), nn.ReLU(), second, nn.BatchNorm1d(out, affine=False)
    )

  def forward(self, x):
    """[N, C], or [C, L] of a convolution -> alike, unit norm."""
    x = self.head(x[None])[0].T if x.ndim == 2 and self.conv else self.head(x)
    return functional.normalize(x, dim=-1)

  @property
  def conv(self):
    return isinstance(self.head[0], nn.Conv1d)


class Mgca(nn.Module):
  def __init__(self, trunk, channels, text, text_size, hidden, size):
    super().__init__()
    self.img_encoder_q, self.text_encoder_q = nn.Module(), nn.Module()
    for module, model, (local, whole) in (
      (self.img_encoder_q, trunk, channels),
      (self.text_encoder_q, text, (text_size, text_size)),
    ):
      module.model = model
      module.global_embed = Head(whole, hidden, size, conv=False)
      module.local_embed = Head(local, hidden, size, conv=True)
    self.prototype_layer = nn.Linear(size, 5, bias=False)
    self.patch_local_atten_layer = nn.MultiheadAttention(size, 1)
    self.word_local_atten_layer = nn.MultiheadAttention(size, 1)

  def checkpoint(self):
    """BLIP's BERT has no token types, and layers for another sequence."""
    tensors = {k: v for k, v in self.state_dict().items() if "token_type_embeddings" not in k}
    layer = "text_encoder_q.model.encoder.layer.0.crossattention"
    tensors[f"{layer}.self.query.weight"] = torch.ones(3, 3)
    tensors[f"{layer}.output.LayerNorm.bias"] = torch.ones(3)
    tensors["text_encoder_q.model.embeddings.position_ids"] = torch.arange(128)[None]
    return {"state_dict": tensors, "epoch": 3}

  def image(self, image):
    """Patches [P, D] and the image [D], unit norm."""
    encoder, x = self.img_encoder_q, padded_square(image)
    if isinstance(encoder.model, reference.ViT):
      tokens = encoder.model.tokens(x)[0]
      local, whole = tokens[1:].T, tokens[:1]
    else:
      third, last = stages(encoder.model, enlarged(x))
      local, whole = third[0].flatten(1), last.mean((2, 3))
    return encoder.local_embed(local), encoder.global_embed(whole)[0]

  def text(self, tokenizer, sentences):
    """Names and vectors of words and [SEP], the report [D], and the words' attention."""
    ids, mask = tokens(tokenizer, sentences, 112)
    out = self.text_encoder_q.model(ids, mask, output_attentions=True)
    names, vectors = aggregated(tokenizer, ids[0], out.last_hidden_state[0])
    attention = out.attentions[-1][0, :, 0].mean(0)
    _, of_words = aggregated(tokenizer, ids[0], attention[:, None])
    words = self.text_encoder_q.local_embed(vectors[1 : len(names)].T)
    report = self.text_encoder_q.global_embed(vectors[:1])[0]
    return names[1:], words, report, of_words[1 : len(names), 0]


# --- BioViL --------------------------------------------------------------------------------------


def middle(grey_image, crop):
  """[1, 3, crop, crop] in [0, 1]."""
  grey = grey_image.astype(float)
  grey -= grey.min()
  grey = (grey / grey.max() * 255).astype(np.uint8)
  height, width = grey.shape
  if width <= height:
    size = (512, int(512 * height / width))
  else:
    size = (int(512 * width / height), 512)
  image = Image.fromarray(grey).convert("L").resize(size, Image.Resampling.BILINEAR)
  left, top = (int(round((length - crop) / 2.0)) for length in size)
  image = image.crop((left, top, left + crop, top + crop))
  return (torch.tensor(np.asarray(image)).float() / 255).repeat(1, 3, 1, 1)


class BioViL(nn.Module):
  """The images' model; with `reduced` BioViL-T's."""

  def __init__(self, trunk, inside, size, reduced=0):
    super().__init__()
    self.encoder = nn.Module()
    self.encoder.encoder = trunk
    if reduced:
      self.encoder.backbone_to_vit = nn.Conv2d(inside, reduced, 1, bias=False)
      self.encoder.missing_previous_emb = nn.Parameter(torch.randn(1, reduced, 1, 1))
      self.encoder.vit_pooler = nn.Linear(3, 3)  # stands for what one image does not ask
    self.projector = reference.Projector(2 * reduced or inside, size)
    self.crop = 448 if reduced else 480

  def image(self, image):
    """Patches [h, w, D] and the image [D], unit norm."""
    x = self.encoder.encoder(middle(image, self.crop))
    if hasattr(self.encoder, "backbone_to_vit"):
      x = self.encoder.backbone_to_vit(x)
      missing = self.encoder.missing_previous_emb.repeat(1, 1, *x.shape[2:])
      x = torch.cat([x, missing], 1)
    x = self.projector(x)
    patches = functional.normalize(x, dim=1)[0].permute(1, 2, 0)
    return patches, functional.normalize(x.mean((2, 3)), dim=-1)[0]

  def on_image(self, similarity, shape, mode):
    """Its map [h, w] of an image: NaN beyond what it saw."""
    height, width = shape
    side = int(self.crop * min(shape) / 512)
    more = {} if mode == "nearest" else {"align_corners": False}
    image = functional.interpolate(similarity[None, None], (side, side), mode=mode, **more)
    right, down = width - side, height - side
    margins = (right // 2, right - right // 2, down // 2, down - down // 2)
    return functional.pad(image[0, 0], margins, value=float("nan"))


class CxrBert(nn.Module):
  def __init__(self, vocabulary, size, layers, out):
    super().__init__()
    whole = bert(vocabulary, size, layers, BertForMaskedLM)
    self.bert, self.cls = whole.bert, whole.cls
    self.config = whole.config
    self.cls_projection_head = nn.Module()
    self.cls_projection_head.dense_to_hidden = nn.Linear(size, out)
    self.cls_projection_head.LayerNorm = nn.LayerNorm(out, eps=1e-12)
    self.cls_projection_head.dense_to_output = nn.Linear(out, out)

  def text(self, tokenizer, sentences):
    """The text [D], unit norm."""
    statements = " ".join(sentences).rstrip("!?.")
    vocabulary = tokenizer.get_vocab()
    ids = tokenizer(statements, add_special_tokens=False)["input_ids"][:126]
    ids = torch.tensor([[vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]]])
    head = self.cls_projection_head
    x = self.bert(ids).last_hidden_state[:, 0]
    x = head.LayerNorm(functional.gelu(head.dense_to_hidden(x)))
    return functional.normalize(head.dense_to_output(x), dim=-1)[0]


def resnet(base, deep=True):
  """ResNet-50, or -18, and the channels of its third and fourth stage."""
  trunk = reference.ResNet((3, 4, 6, 3) if deep else (2, 2, 2, 2), deep, base=base)
  return trunk, tuple(base * times for times in ((16, 32) if deep else (4, 8)))
