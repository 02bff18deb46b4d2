"""Other projects' whole models in torch, in the names of their checkpoints, as their code runs.

Written from the code that is named at each part, step by step, with the argument order of its calls
and what it does by mistake; nothing in here is taken from ours. A text is one string, as theirs.
"""

import re
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel

import torch_reference as reference


def bert(vocabulary, size, layers, kind=BertModel, **more):
  config = BertConfig(
    vocab_size=vocabulary,
    hidden_size=size,
    num_hidden_layers=layers,
    intermediate_size=2 * size,
    num_attention_heads=max(1, size // 64),
    max_position_embeddings=128,
    attn_implementation="eager",
  )
  return kind(config, **more)


class BlipBert(nn.Module):
  """BLIP's BERT (MGCA, backbones/med.py): no token types, and positions are its third argument."""

  def __init__(self, vocabulary, size, layers, heads=None, inside=None, places=128):
    super().__init__()
    self.heads, inside = heads or max(1, size // 64), inside or 2 * size
    self.embeddings = nn.Module()
    self.embeddings.word_embeddings = nn.Embedding(vocabulary, size)
    self.embeddings.position_embeddings = nn.Embedding(places, size)
    self.embeddings.LayerNorm = nn.LayerNorm(size, eps=1e-12)
    self.embeddings.register_buffer("position_ids", torch.arange(places)[None])
    self.encoder = nn.Module()
    self.encoder.layer = nn.ModuleList(self._layer(size, inside) for _ in range(layers))

  @classmethod
  def _layer(cls, size, inside):
    layer = nn.Module()
    layer.attention, layer.crossattention = cls._attention(size), cls._attention(size)
    layer.intermediate, layer.output = nn.Module(), cls._output(inside, size)
    layer.intermediate.dense = nn.Linear(size, inside)
    return layer

  @classmethod
  def _attention(cls, size):
    attention = nn.Module()
    attention.self, attention.output = nn.Module(), cls._output(size, size)
    for name in ("query", "key", "value"):
      setattr(attention.self, name, nn.Linear(size, size))
    return attention

  @staticmethod
  def _output(inside, size):
    output = nn.Module()
    output.dense, output.LayerNorm = nn.Linear(inside, size), nn.LayerNorm(size, eps=1e-12)
    return output

  def forward(self, input_ids, attention_mask, position_ids=None):
    """Hidden states [B, L, C] behind each layer, and attentions [B, heads, L, L] in each."""
    if position_ids is None:
      position_ids = self.embeddings.position_ids[:, : input_ids.shape[1]]
    x = self.embeddings.word_embeddings(input_ids)
    x = self.embeddings.LayerNorm(x + self.embeddings.position_embeddings(position_ids))
    states, attentions = [x], []
    for layer in self.encoder.layer:
      own = layer.attention.self
      q, k, v = (
        project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for project in (own.query, own.key, own.value)
      )
      scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
      attention = (scores + (1.0 - attention_mask[:, None, None].float()) * -10000.0).softmax(-1)
      y = (attention @ v).transpose(1, 2).flatten(2)
      x = layer.attention.output.LayerNorm(layer.attention.output.dense(y) + x)
      y = functional.gelu(layer.intermediate.dense(x))
      x = layer.output.LayerNorm(layer.output.dense(y) + x)
      states.append(x)
      attentions.append(attention)
    return SimpleNamespace(last_hidden_state=x, hidden_states=states, attentions=attentions)


# --- GLoRIA and MGCA: images and texts ------------------------------------------------------------


def padded_square(image, side=256, crop=224):
  """[1, 3, crop, crop], normalised by one half (gloria_model.py; MGCA's datasets/utils.py)."""
  height, width = image.shape
  if height >= width:
    rows, columns = side, int(float(width) * (side / float(height)))
  else:
    rows, columns = int(float(height) * (side / float(width))), side
  small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
  top, left = (side - rows) // 2, (side - columns) // 2
  square = np.pad(small, [(top, side - rows - top), (left, side - columns - left)])
  edge = int(round((side - crop) / 2.0))  # torchvision's CenterCrop
  box = (edge, edge, edge + crop, edge + crop)
  pixels = np.asarray(Image.fromarray(square).convert("RGB").crop(box))
  return (torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def enlarged(x):
  return nn.Upsample(size=(299, 299), mode="bilinear", align_corners=True)(x)


def stages(trunk, x):
  """Maps behind the third and the fourth stage."""
  x = trunk.maxpool(functional.relu(trunk.bn1(trunk.conv1(x))))
  third = trunk.layer3(trunk.layer2(trunk.layer1(x)))
  return third, trunk.layer4(third)


def cleaned(text):
  """The text that goes to the tokenizer (GLoRIA's process_text; MGCA's path_2_sent_mapping)."""
  points = re.compile(r"[0-9]+\.").split(text.replace("\n", " "))
  statements = []
  for statement in (part for point in points for part in point.split(".")):
    words = re.findall(r"\w+", statement.replace("\ufffd\ufffd", " ").lower())
    if len(words) <= 1:
      continue
    plain = [word.encode("ascii", "ignore").decode("ascii") for word in words]
    statements.append(" ".join(word for word in plain if word))
  return " ".join(filter(None, statements))


def tokens(tokenizer, text, most):
  """Ids, mask and token types [1, most]: cut, or padded."""
  out = tokenizer(
    cleaned(text), return_tensors="pt", truncation=True, padding="max_length", max_length=most
  )
  return out["input_ids"], out["attention_mask"], torch.zeros_like(out["input_ids"])


def aggregated(tokenizer, ids, *tokens_of):
  """Words' names, and the sums [L, ...] of their tokens' values, zero behind the [SEP].

  Runs as long as the shortest of `tokens_of`, as their zip does; a word that no other token follows
  is never added.
  """
  names, sums, name, bank = [], [[] for _ in tokens_of], "", None
  for number, *values in zip(ids.tolist(), *tokens_of, strict=False):
    token = tokenizer.convert_ids_to_tokens(number)
    if token.startswith("##") and token != "[SEP]":
      name, bank = name + token[2:], [x + y for x, y in zip(bank, values, strict=True)]
      continue
    if bank is not None:
      names.append(name)
      [kept.append(x) for kept, x in zip(sums, bank, strict=True)]
    name, bank = token, values
    if token == "[SEP]":
      names.append(token)
      [kept.append(x) for kept, x in zip(sums, values, strict=True)]
      break
  pads = len(ids) - len(names)
  return names, *(torch.stack(kept + [torch.zeros_like(kept[0])] * pads) for kept in sums)


# --- GLoRIA (models/{vision_model,text_model,gloria_model}.py, loss/gloria_loss.py) --------------


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

  def image(self, image, side=256):
    """Regions [D, 19, 19] and the image [D]; AFLoc is evaluated with a side of 224."""
    encoder = self.gloria.img_encoder
    third, last = stages(encoder.model, enlarged(padded_square(image, side)))
    pooled = nn.AdaptiveAvgPool2d((1, 1))(last).flatten(1)
    return encoder.local_embedder(third)[0], encoder.global_embedder(pooled)[0]

  def text(self, tokenizer, text):
    """Names of [CLS], words and [SEP], their vectors and pads [97, D], and the text [D]."""
    ids, mask, types = tokens(tokenizer, text, 97)
    # BertModel of transformers takes token types third.
    out = self.gloria.text_encoder.model(ids, mask, types, output_hidden_states=True)
    layers = torch.stack([state[0] for state in out.hidden_states[-4:]], 1)  # [97, 4, D]
    names, layers = aggregated(tokenizer, ids[0], layers)
    return names, layers.sum(1), layers.mean(0).sum(0)


def gloria_cosines(regions, words):
  """Cosine [W] of words [W, D] and what each attends to of regions [D, h, w]: attention_fn."""
  context = regions.flatten(1)
  attention = (4.0 * (context.T @ words.T).softmax(-1)).T.softmax(-1)
  weighted = (context @ attention.T).T
  norms = words.norm(dim=1) * weighted.norm(dim=1)
  return (words * weighted).sum(1) / norms.clamp(min=1e-8)


def gloria_training_score(regions, names, words):
  """The local score of the loss: words from [CLS] on, as many as are not in brackets, plus one."""
  length = len([name for name in names if not name.startswith("[")]) + 1
  return 10.0 * (5.0 * gloria_cosines(regions, words[:length])).exp().sum().log()


def gloria_zero_shot_score(regions, words, length):
  """The local similarity of `length` words behind [CLS]; its own code gives the text's letters."""
  return (5.0 * gloria_cosines(regions, words[1 : length + 1])).exp().max().log()


# --- MGCA (mgca/models/backbones/encoder.py, mgca/models/mgca/mgca_module.py) ---------------------


class Head(nn.Module):
  """GlobalEmbedding, or with `conv` LocalEmbedding; to unit norm, as the module does behind it."""

  def __init__(self, inside, hidden, out, conv):
    super().__init__()
    layer = (lambda *sizes: nn.Conv1d(*sizes, 1)) if conv else nn.Linear
    self.head, self.conv = (
      nn.Sequential(
        layer(inside, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        layer(hidden, out),
        nn.BatchNorm1d(out, affine=False),
      ),
      conv,
    )

  def forward(self, x):
    """[B, C], or [B, L, C] of a convolution -> alike."""
    x = self.head(x.permute(0, 2, 1)).permute(0, 2, 1) if self.conv else self.head(x)
    return functional.normalize(x, dim=-1)


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
    return {"state_dict": self.state_dict(), "epoch": 3}

  def image(self, image):
    """Patches [P, D] and the image [D], unit norm."""
    encoder, x = self.img_encoder_q, padded_square(image)
    if isinstance(encoder.model, reference.ViT):
      features = encoder.model.tokens(x)
      whole, local = features[:, 0], features[:, 1:]
    else:
      third, last = stages(encoder.model, enlarged(x))
      whole, local = last.mean((2, 3)), third.flatten(2).permute(0, 2, 1)
    return encoder.local_embed(local)[0], encoder.global_embed(whole)[0]

  def hidden(self, tokenizer, text):
    """Ids [112], hidden states [112, C] and the attention [112] of [CLS] in the last layer."""
    ids, mask, types = tokens(tokenizer, text, 112)
    out = self.text_encoder_q.model(ids, mask, types)  # the third argument of BLIP's BERT
    return ids[0], out.last_hidden_state[0], out.attentions[-1][0, :, 0].mean(0)

  def text(self, tokenizer, text):
    """Names of words and [SEP], vectors with pads [111, D], the report [D], weights [111]."""
    ids, hidden, attention = self.hidden(tokenizer, text)
    names, vectors, weights = aggregated(tokenizer, ids, hidden, attention[1:])
    words = self.text_encoder_q.local_embed(vectors[None, 1:])[0]
    report = self.text_encoder_q.global_embed(vectors[None, 0])[0]
    return names[1:], words, report, weights[1:]


# --- BioViL (hi-ml-multimodal, health_multimodal/{image,text,vlp}) --------------------------------


def middle(grey_image, crop):
  """[1, 3, crop, crop] in [0, 1] (image/data/io.py, and torchvision's Resize and CenterCrop)."""
  grey = grey_image.astype(float)
  grey -= grey.min()
  grey /= grey.max()
  grey *= 255
  image = Image.fromarray(grey.astype(np.uint8)).convert("L")
  width, height = image.size
  if width <= height:
    size = (512, int(512 * height / width))
  else:
    size = (int(512 * width / height), 512)
  image = image.resize(size, Image.Resampling.BILINEAR)
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

  def prompts(self, tokenizer, prompts, normalize=True):
    """Prompts [N, D], get_embeddings_from_prompt; refuses special tokens and what is too long."""
    special = set(tokenizer.all_special_tokens) - {tokenizer.mask_token}
    if any(token in " ".join(prompts) for token in special):
      raise ValueError("a special token")
    prompts = [prompt.rstrip("!?.") for prompt in prompts]
    batch = tokenizer(prompts, add_special_tokens=True, padding="longest", return_tensors="pt")
    if batch["input_ids"].shape[1] > self.config.max_position_embeddings:
      raise ValueError("too long")
    head = self.cls_projection_head
    x = self.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
    x = head.dense_to_output(head.LayerNorm(functional.gelu(head.dense_to_hidden(x))))
    return functional.normalize(x, dim=1) if normalize else x

  def score(self, image, tokenizer, prompts):
    """The similarity of an image [D] to several prompts, get_similarity_score_from_raw_data."""
    mean = self.prompts(tokenizer, prompts, normalize=False).mean(0)
    return image @ functional.normalize(mean, dim=0)


def resnet(base, deep=True):
  """ResNet-50, or -18, and the channels of its third and fourth stage."""
  trunk = reference.ResNet((3, 4, 6, 3) if deep else (2, 2, 2, 2), deep, base=base)
  return trunk, tuple(base * times for times in ((16, 32) if deep else (4, 8)))
